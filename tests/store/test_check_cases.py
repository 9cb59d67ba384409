"""Each case that ``check`` has to find, by name: found, and repaired or kept. docs/check.md is their list.

The numbered ones are those of the check suite of containers/storage; cases that do not apply stand in the
document with the reason.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from layerlimit import Driver, Limit, Store
from layerlimit.driver.holds import boot_id
from layerlimit.linux import mount
from layerlimit.linux.statx import is_mount_point
from layerlimit.store import Finding, check_root
from tests import scratch
from tests.archive.images import layer_tar
from tests.driver.ground import run

MIB = 1 << 20

pytestmark = pytest.mark.lane("overlay", "loop")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An imported base, and over it a limited layer and one without a limit."""
    with Store(tmp_path / "root") as store:
        store.import_tar("base", io.BytesIO(layer_tar({"etc/": b"", "etc/issue": b"x"})))
        store.create("web", "base", limit=Limit(16 * MIB))
        store.create("plain", "base")
        yield store
        with contextlib.suppress(Exception):
            store.driver.cleanup()


def image(store: Store, name: str = "web") -> Path:
    return store.root / "containers_quota" / f"{store.stat(name).id}.ext4"


def found(
    store: Store, *, repair: bool = False, force: bool = False, quick: bool = False
) -> dict[str, Finding]:
    """The findings by code; there is one of each."""
    findings = list(store.check(repair=repair, force=force, quick=quick))
    by_code = {finding.code: finding for finding in findings}
    assert len(by_code) == len(findings), findings
    return by_code


def is_kept(store: Store, code: str, **options: bool) -> Finding:
    """The one finding is ``code``; a repair changes nothing of it, and says so beforehand."""
    before = found(store, **options)
    assert list(before) == [code]
    assert before[code].repair == ""
    after = found(store, repair=True, **options)
    assert list(after) == [code]
    assert not after[code].repaired
    return after[code]


def is_repaired(store: Store, *codes: str, force: bool = False) -> None:
    """A plain check finds exactly these, says what a repair does and changes nothing; a repair mends them."""
    for _ in range(2):
        before = found(store)
        assert sorted(before) == sorted(codes)
        assert all(finding.repair and not finding.repaired for finding in before.values())
    after = found(store, repair=True, force=force)
    assert all(after[code].repaired for code in codes), after
    assert found(store) == {}


def test_nothing_is_found_when_nothing_is_wrong(store: Store) -> None:
    store.mount("web")
    store.mount("base")
    with store.mounted("plain"):
        assert found(store) == {}


# -- as containers/storage numbers them -----------------------------------------------------------------


def test_case_01_layers_without_records(store: Store) -> None:
    for id, parent in (("one", ""), ("two", "one"), ("three", "")):
        store.driver.create(id, parent)
    assert [finding.code for finding in store.check()] == ["layer.unnamed"] * 3
    assert all(finding.repaired for finding in store.check(repair=True))
    assert found(store) == {}
    assert store.stat("two").parent == "one"


def test_case_04_layers_that_nobody_references(store: Store) -> None:
    """Removed, but not deleted yet: silent, and the next gc deletes them, children first."""
    store.rm("web")
    store.rm("plain")
    store.rm("base")
    assert found(store) == {}
    assert len(store.driver.ids()) == 3
    assert store.gc() == []
    assert store.driver.ids() == []


def test_case_07_file_of_a_layer_overwritten(store: Store) -> None:
    (store.root / "diff" / store.stat("base").id / "etc/issue").write_bytes(b"y")
    assert found(store, quick=True) == {}
    finding = is_kept(store, "content.mismatch")
    assert (finding.layer, finding.subject) == ("base", "base")


def test_case_09_file_added_to_a_layer(store: Store) -> None:
    path = store.root / "diff" / store.stat("base").id
    (path / "etc/more").write_bytes(b"")
    is_kept(store, "content.mismatch")


def test_case_10_layer_deleted_underneath(store: Store) -> None:
    (store.root / "layers" / store.stat("plain").id).rename(store.root.parent / "gone")
    for place in ("diff", "mnt", "work", "meta"):
        shutil.rmtree(store.root / place / store.stat("plain").id, ignore_errors=True)
    (store.root / "meta" / store.stat("plain").id).unlink()
    is_repaired(store, "layer.missing")
    assert not store.exists("plain")


def test_case_12_parent_of_a_layer_deleted(store: Store) -> None:
    """The name goes when forced to; the children are kept, and go on being reported."""
    id = store.stat("base").id
    for place in ("diff", "layers", "meta", "work"):
        (store.root / place / id).rename(store.root.parent / place)
    before = [finding.code for finding in store.check(repair=True)]
    assert sorted(before) == ["chain.broken", "chain.broken", "layer.missing"]
    assert store.exists("base")
    list(store.check(repair=True, force=True))
    assert not store.exists("base")
    assert {finding.code for finding in store.check()} == {"chain.broken"}
    assert image(store).exists()


def test_case_14_data_of_a_layer_deleted(store: Store) -> None:
    record = store.root / "meta" / store.stat("web").id
    raw = record.read_bytes()
    record.unlink()
    is_kept(store, "layer.no_record")
    record.write_bytes(raw)
    assert found(store) == {}


def test_case_15_content_of_a_layer_deleted(store: Store) -> None:
    content = store.root / "diff" / store.stat("plain").id
    content.rmdir()
    is_kept(store, "layer.diff_missing")


def test_case_16_names_deleted(store: Store) -> None:
    store.close()
    for path in store.root.glob("store.db*"):
        path.unlink()
    (finding,) = check_root(store.root)
    assert (finding.code, finding.repaired) == ("store.missing", False)
    (finding,) = check_root(store.root, repair=True)
    assert finding.repaired
    assert list(check_root(store.root)) == []


def test_case_18_data_of_a_layer_grown(store: Store) -> None:
    with (store.root / "meta" / store.stat("web").id).open("ab") as file:
        file.write(b"}")
    is_kept(store, "layer.record")


def test_case_20_image_missing(store: Store) -> None:
    image(store).rename(store.root.parent / "kept")
    is_kept(store, "image.missing")


def test_case_21_image_grown(store: Store) -> None:
    with image(store).open("ab") as file:
        file.write(bytes(4096))
    is_kept(store, "image.size")


# -- images -------------------------------------------------------------------------------------------


def test_case_image_truncated(store: Store) -> None:
    os.truncate(image(store), image(store).stat().st_size // 2)
    is_kept(store, "image.truncated")


def test_case_image_overwritten(store: Store) -> None:
    with image(store).open("r+b") as file:
        file.write(bytes(8192))
    is_kept(store, "image.magic")


def test_case_image_with_another_uuid(store: Store) -> None:
    store.create("other", "base", limit=Limit(16 * MIB))
    shutil.copyfile(image(store, "other"), image(store))
    is_kept(store, "image.swapped")


def test_case_two_layers_on_one_image(store: Store) -> None:
    store.create("other", "base", limit=Limit(16 * MIB))
    image(store).unlink()
    os.link(image(store, "other"), image(store))
    codes = [finding.code for finding in store.check(repair=True)]
    assert sorted(codes) == ["image.shared", "image.shared", "image.swapped"]
    assert os.path.samefile(image(store, "other"), image(store))


def test_case_limit_recorded_is_not_the_real_one(store: Store) -> None:
    record = store.root / "meta" / store.stat("web").id
    text = record.read_text()
    assert f'"bytes": {16 * MIB}' in text
    record.write_text(text.replace(f'"bytes": {16 * MIB}', f'"bytes": {32 * MIB}'))
    assert sorted(found(store)) == ["limit.mismatch", "promised.mismatch"]
    assert not found(store, repair=True)["limit.mismatch"].repaired
    is_kept(store, "limit.mismatch")


def test_case_limit_is_real_after_growing(store: Store) -> None:
    store.create("inodes", "base", limit=Limit(16 * MIB, inodes=100))
    for name in ("web", "inodes"):
        store.resize(name, Limit(300 * MIB))
    store.create("large", "base", limit=Limit(700 * MIB, inodes=100_000))
    assert found(store) == {}


def test_case_killed_while_growing(store: Store) -> None:
    """The promise is raised and the growth announced: the account is that of the layer that has grown."""
    id = store.stat("web").id
    record = store.root / "meta" / id
    meta = msgspec.json.decode(record.read_bytes())
    meta["record"]["growing"] = {**meta["record"]["limit"], "bytes": 32 * MIB}
    record.write_bytes(msgspec.json.encode(meta))
    with store.database.writing() as db:
        db.execute("UPDATE entry SET promised = ? WHERE id = ?", (32 * MIB, id))
    assert found(store, repair=True)["resize.unfinished"].repaired
    assert (store.limit("web"), store.stat("web").promised) == (Limit(32 * MIB), 32 * MIB)
    assert found(store) == {}


def break_journal(path: Path) -> None:
    """As after a crash: the file system was mounted and says so."""
    run("debugfs", "-w", "-R", "feature needs_recovery", path)


def test_case_dirty_journal(store: Store) -> None:
    break_journal(image(store))
    is_repaired(store, "image.unclean")


def test_case_file_system_damaged(store: Store) -> None:
    run("debugfs", "-w", "-R", "set_inode_field upper links_count 77", image(store))
    before = image(store).read_bytes()
    assert found(store, quick=True) == {}
    assert sorted(found(store)) == ["image.damaged"]
    assert image(store).read_bytes() == before


# -- loop devices -----------------------------------------------------------------------------------------


def test_case_loop_device_leaked(store: Store) -> None:
    run("losetup", "--find", image(store))
    try:
        is_repaired(store, "loop.kept")
        assert scratch.leftovers(store.root, patience=2) == []
    finally:
        scratch.release(store.root)


def test_case_loop_device_on_a_deleted_image(store: Store) -> None:
    device = run("losetup", "--find", "--show", image(store)).stdout.strip()
    try:
        store.create("other", "base", limit=Limit(16 * MIB))
        image(store).unlink()
        before = found(store)
        assert sorted(before) == ["image.missing", "loop.deleted"]
        assert before["loop.deleted"].subject == device
        assert found(store, repair=True)["loop.deleted"].repaired
        assert sorted(found(store)) == ["image.missing"]
    finally:
        scratch.release(store.root)


def test_case_loop_device_kept_by_another_mount_namespace(store: Store) -> None:
    """The process that keeps it is named; nothing is taken from it."""
    store.mount("web")
    script = "import sys; print('there', flush=True); sys.stdin.read()"
    keeper = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"there\n"
        store.umount("web")
        for repair in (False, True):
            finding = found(store, repair=repair)["loop.kept"]
            assert f"process {keeper.pid} (" in finding.message
            assert not finding.repaired
    finally:
        keeper.communicate(b"")


# -- mounts and holds -------------------------------------------------------------------------------------


def test_case_layer_mounted_but_not_recorded(store: Store) -> None:
    path = store.mount("plain")
    shutil.rmtree(store.root / "holds" / store.stat("plain").id)
    is_repaired(store, "mount.unrecorded")
    assert not is_mount_point(path)


def test_case_image_mounted_but_not_recorded(store: Store) -> None:
    store.mount("web")
    id = store.stat("web").id
    mount.unmount(store.root / "mnt" / id)
    shutil.rmtree(store.root / "holds" / id)
    is_repaired(store, "mount.unrecorded")
    assert not is_mount_point(store.root / "img" / id)


@pytest.mark.parametrize("name", ["web", "plain"])
def test_case_reference_count_is_not_the_mounts(store: Store, name: str) -> None:
    id = store.stat(name).id
    (store.root / "holds" / id).mkdir()
    (store.root / "holds" / id / "count").write_text(f"{boot_id()} 2")
    is_repaired(store, "hold.stale")
    assert store.state(name).holds == 0


def test_case_foreign_mount_below_the_root(store: Store) -> None:
    point = store.root / "lost"
    point.mkdir()
    run("mount", "-t", "tmpfs", "foreign", point)
    try:
        is_kept(store, "mount.foreign")
    finally:
        run("umount", point)


def test_case_stale_volatile_marker(store: Store) -> None:
    marker = store.root / "work" / store.stat("plain").id / "work/incompat/volatile"
    marker.mkdir(parents=True)
    after = found(store, repair=True)
    assert list(after) == ["layer.volatile"]
    assert not after["layer.volatile"].repaired
    is_repaired(store, "layer.volatile", force=True)
    with store.mounted("plain"):
        pass


# -- what an interruption leaves --------------------------------------------------------------------------


def test_case_leftovers_of_a_removal(store: Store) -> None:
    (store.root / "diff" / "0123-removing/below").mkdir(parents=True)
    is_repaired(store, "leftover")


def test_case_leftovers_of_a_creation(store: Store) -> None:
    (store.root / "meta/half").write_bytes(msgspec.json.encode({"record": None}))
    (store.root / "diff/half").mkdir()
    is_repaired(store, "leftover")
    assert not (store.root / "diff/half").exists()


def test_case_files_of_no_layer(store: Store) -> None:
    (store.root / "diff" / "stray").mkdir()
    is_repaired(store, "stray")
    (kept,) = (store.root / "lost").iterdir()
    assert kept.name.startswith("diff.stray")


def test_case_account_is_not_the_sum_of_the_images(store: Store) -> None:
    with store.database.writing() as db:
        db.execute("UPDATE total SET promised = promised + 1")
    is_repaired(store, "total.mismatch")
    with store.database.writing() as db:
        db.execute("UPDATE entry SET promised = 0 WHERE name = 'web'")
    is_repaired(store, "promised.mismatch")
    assert store.capacity().promised == 16 * MIB


def test_case_parent_is_not_the_one_of_the_chain(store: Store) -> None:
    with store.database.writing() as db:
        db.execute("UPDATE entry SET parent = NULL WHERE name = 'web'")
    is_repaired(store, "parent.mismatch")
    assert store.stat("web").parent == "base"


def test_a_check_is_read_only(store: Store) -> None:
    """Nothing of the root changes, whatever is found, but what opening it writes."""
    Driver(store.root).close()
    break_journal(image(store))
    (store.root / "diff" / "stray").mkdir()
    before = image(store).read_bytes(), sorted(os.listdir(store.root / "diff"))
    assert sorted(found(store)) == ["image.unclean", "stray"]
    assert (image(store).read_bytes(), sorted(os.listdir(store.root / "diff"))) == before
