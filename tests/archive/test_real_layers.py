"""Real layers through us, umoci and containerd: the same trees come out."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from layerlimit.archive import Form, Kind, changes, compare, write
from layerlimit.archive.apply import apply
from tests.archive import layers, peers, real, trees

pytestmark = [pytest.mark.lane("root", "overlay", "umoci", "go", "debootstrap"), pytest.mark.timeout(900)]

#: Applies plain layer tars, base first, into a fresh directory below the given one, and returns it.
Engine = Callable[[Path, Sequence[Path]], Path]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("real")
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def debian(scratch: Path) -> Path:
    """A Debian root file system, unpacked by GNU tar."""
    root = scratch / "debian"
    root.mkdir()
    real.unpack(real.debian(), root)
    return root


@pytest.fixture(scope="module")
def npm(scratch: Path) -> Path:
    """The npm tree, unpacked by GNU tar."""
    if not shutil.which("npm"):
        pytest.skip("no program npm")
    root = scratch / "npm"
    root.mkdir()
    real.unpack(real.npm().base, root)
    return root


@pytest.fixture(scope="module")
def upgrade(scratch: Path, npm: Path) -> Path:
    """The upper directory of the upgrade of the npm tree, unpacked by GNU tar."""
    root = scratch / "upgrade"
    root.mkdir()
    real.unpack(real.npm().upgrade, root)
    return root


def export(upper: Path, archive: Path, form: Form, *lowers: Path) -> Path:
    with archive.open("wb") as out:
        write(upper, out, form=form, lowers=lowers)
    return archive


def by_umoci(directory: Path, archives: Sequence[Path]) -> Path:
    layout = peers.oci_layout(directory / "layout", [archive.read_bytes() for archive in archives])
    return peers.umoci_unpack(layout, directory / "bundle")


def by_containerd(directory: Path, archives: Sequence[Path]) -> Path:
    """containerd's engine as its differ runs it on one directory."""
    root = directory / "containerd"
    root.mkdir()
    for archive in archives:
        with archive.open("rb") as stream:
            subprocess.run([peers.containerd(), "apply", root], stdin=stream, check=True, capture_output=True)
    return root


def by_us(directory: Path, archives: Sequence[Path]) -> Path:
    root = directory / "flat"
    root.mkdir()
    for archive in archives:
        with archive.open("rb") as stream:
            apply(stream, root, form=Form.FLAT, durable=False)
    return root


engines = pytest.mark.parametrize("engine", [by_us, by_umoci, by_containerd])


@pytest.fixture(scope="module")
def debian_seen(debian: Path) -> dict[bytes, trees.Seen]:
    return trees.scan(debian, seconds=True)


@pytest.fixture(scope="module")
def upgraded(scratch: Path, npm: Path, upgrade: Path) -> dict[bytes, trees.Seen]:
    """What a mounted overlay shows of the npm tree with its upgrade."""
    (scratch / "mounted").mkdir()
    with layers.overlay(scratch / "mounted", [upgrade, npm]) as (merged, _):
        return trees.scan(merged, seconds=True)


@engines
def test_a_root_file_system(
    tmp_path: Path, debian: Path, debian_seen: dict[bytes, trees.Seen], engine: Engine
) -> None:
    assert len(debian_seen) > 5000
    archive = export(debian, tmp_path / "layer.tar", Form.FLAT)
    assert trees.scan(engine(tmp_path, [archive])) == debian_seen


@engines
def test_debootstraps_own_tar(tmp_path: Path, debian_seen: dict[bytes, trees.Seen], engine: Engine) -> None:
    assert trees.scan(engine(tmp_path, [real.debian()]), seconds=True) == debian_seen


@pytest.mark.long
@engines
def test_a_tree_of_many_small_files(tmp_path: Path, npm: Path, engine: Engine) -> None:
    expected = trees.scan(npm, seconds=True)
    assert len(expected) > 25_000
    archive = export(npm, tmp_path / "layer.tar", Form.FLAT)
    assert trees.scan(engine(tmp_path, [archive])) == expected


@pytest.mark.long
@engines
def test_an_upgrade_with_deletions(
    tmp_path: Path, npm: Path, upgrade: Path, upgraded: dict[bytes, trees.Seen], engine: Engine
) -> None:
    base = export(npm, tmp_path / "base.tar", Form.FLAT)
    layer = export(upgrade, tmp_path / "upgrade.tar", Form.OVERLAY, npm)
    assert trees.scan(engine(tmp_path, [base, layer])) == upgraded


@pytest.mark.long
def test_an_upgrade_through_every_form(
    tmp_path: Path, npm: Path, upgrade: Path, upgraded: dict[bytes, trees.Seen]
) -> None:
    original = export(upgrade, tmp_path / "upgrade.tar", Form.OVERLAY)
    for form in (Form.OVERLAY, Form.AUFS):
        branch = tmp_path / form.value
        branch.mkdir()
        with original.open("rb") as stream:
            apply(stream, branch, form=form, durable=False)
        again = export(branch, tmp_path / "again.tar", form)
        assert again.read_bytes() == original.read_bytes()
    with layers.overlay(tmp_path, [tmp_path / "overlay", npm]) as (merged, _):
        assert trees.scan(merged, seconds=True) == upgraded


@pytest.mark.long
def test_containerds_own_diff_of_the_upgrade(
    tmp_path: Path, npm: Path, upgrade: Path, upgraded: dict[bytes, trees.Seen]
) -> None:
    """The tar that containerd makes of two trees gives, applied by us, what ours gives."""
    with layers.overlay(tmp_path, [upgrade, npm]) as (merged, _), (tmp_path / "diff.tar").open("wb") as out:
        subprocess.run([peers.containerd(), "diff", merged, npm], stdout=out, check=True)
    base = export(npm, tmp_path / "base.tar", Form.FLAT)
    assert trees.scan(by_us(tmp_path, [base, tmp_path / "diff.tar"])) == upgraded


@pytest.mark.long
def test_the_changes_of_the_upgrade(tmp_path: Path, npm: Path, upgrade: Path) -> None:
    """The list read off the upper directory is that of comparing all of both trees."""
    listed = changes(upgrade, [npm], form=Form.OVERLAY)
    with layers.overlay(tmp_path, [upgrade, npm]) as (merged, _):
        compared = compare(merged, npm)
    # npm rewrites some files with what they had.
    same = {change for change in listed if change not in compared}
    assert set(compared) <= set(listed)
    assert {change.kind for change in same} <= {Kind.MODIFY}
    assert sum(change.kind is Kind.DELETE for change in listed) > 1000
    for change in same:
        old, new = (root / os.fspath(change.path)[1:] for root in (npm, upgrade))
        assert old.lstat().st_mode == new.lstat().st_mode
        if old.is_file():
            assert old.read_bytes() == new.read_bytes()


@pytest.mark.long
def test_debians_containerd_daemon(
    tmp_path: Path, npm: Path, upgrade: Path, upgraded: dict[bytes, trees.Seen]
) -> None:
    """Import and mount by the daemon that Debian ships, its overlayfs snapshotter included."""
    programs = real.debian_containerd()
    if programs is None:
        pytest.skip("no apt to fetch Debian's containerd with")
    base = export(npm, tmp_path / "base.tar", Form.FLAT)
    layer = export(upgrade, tmp_path / "upgrade.tar", Form.OVERLAY, npm)
    layout = peers.oci_layout(tmp_path / "layout", [base.read_bytes(), layer.read_bytes()])
    with peers.daemon_unpack(programs, tmp_path / "containerd", layout) as merged:
        assert trees.scan(merged) == upgraded
