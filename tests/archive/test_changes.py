"""Lists of changes: by hand, as the engines' tests have them, and against a comparison of whole trees."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings

from layerlimit.archive import Change, Form, Kind, changes, compare
from layerlimit.errors import NotFound
from tests.archive import layers, trees

ANCIENT = (1_000_000_000, 1_000_000_000)

_SETTINGS = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


def lines(found: list[Change]) -> list[str]:
    return [str(change) for change in found]


def fill(root: Path, *files: str) -> Path:
    """Create ``files`` below ``root``; a name that ends in a slash is a directory."""
    root.mkdir(exist_ok=True)
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_text(name)
    return root


def whiteout(path: Path, form: Form) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if form is Form.OVERLAY:
        os.mknod(path, 0o20000, 0)
    else:
        path.with_name(f".wh.{path.name}").touch()


def opaque(path: Path, form: Form) -> None:
    path.mkdir(parents=True, exist_ok=True)
    if form is Form.OVERLAY:
        os.setxattr(path, "trusted.overlay.opaque", b"y")
    else:
        (path / ".wh..wh..opq").touch()


both_forms = pytest.mark.parametrize("form", [Form.OVERLAY, Form.AUFS])


def test_kinds_have_the_numbers_of_docker_and_the_letters_of_its_diff() -> None:
    assert [int(kind) for kind in (Kind.MODIFY, Kind.ADD, Kind.DELETE)] == [0, 1, 2]
    assert lines([Change("/a", kind) for kind in Kind]) == ["C /a", "A /a", "D /a"]


def test_without_lowers_everything_is_added(tmp_path: Path) -> None:
    upper = fill(tmp_path / "upper", "a", "d/b")
    assert lines(changes(upper, [], form=Form.OVERLAY)) == ["A /a", "A /d", "A /d/b"]


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        changes(tmp_path / "none", [], form=Form.OVERLAY)
    with pytest.raises(NotFound):
        changes(tmp_path, [tmp_path / "none"], form=Form.OVERLAY)


@pytest.mark.lane("root")
@both_forms
def test_whiteouts_delete_what_is_below_and_change_its_directory(tmp_path: Path, form: Form) -> None:
    lower = fill(tmp_path / "lower", "d/a", "d/tree/x", "d/kept")
    upper = fill(tmp_path / "upper", "d/new")
    whiteout(upper / "d/a", form)
    whiteout(upper / "d/tree", form)
    whiteout(upper / "d/never was", form)
    found = lines(changes(upper, [lower], form=form))
    assert found == ["C /d", "D /d/a", "A /d/new", "D /d/tree"]


@pytest.mark.lane("root")
@both_forms
def test_a_directory_that_only_leads_to_a_modified_file_is_no_change(tmp_path: Path, form: Form) -> None:
    lower = fill(tmp_path / "lower", "d/e/a")
    upper = fill(tmp_path / "upper", "d/e/a")
    assert lines(changes(upper, [lower], form=form)) == ["C /d/e/a"]
    (upper / "d").chmod(0o700)
    assert lines(changes(upper, [lower], form=form)) == ["C /d", "C /d/e/a"]


@pytest.mark.lane("root")
@both_forms
def test_opaque_directories_delete_at_any_depth_what_they_do_not_bring_again(
    tmp_path: Path, form: Form
) -> None:
    lower = fill(tmp_path / "lower", "d/gone", "d/again", "d/sub/deep/x", "d/sub/deep/y", "d/tree/z")
    upper = fill(tmp_path / "upper", "d/again", "d/sub/deep/y", "d/sub/new")
    opaque(upper / "d", form)
    expected = [
        "C /d",
        "C /d/again",
        "D /d/gone",
        "C /d/sub",
        "C /d/sub/deep",
        "D /d/sub/deep/x",
        "C /d/sub/deep/y",
        "A /d/sub/new",
        "D /d/tree",
    ]
    assert lines(changes(upper, [lower], form=form)) == expected


@pytest.mark.lane("root")
@both_forms
def test_an_opaque_directory_below_an_ordinary_one(tmp_path: Path, form: Form) -> None:
    lower = fill(tmp_path / "lower", "d/kept", "d/sub/x")
    upper = fill(tmp_path / "upper", "d/sub/y")
    opaque(upper / "d/sub", form)
    assert lines(changes(upper, [lower], form=form)) == ["C /d/sub", "D /d/sub/x", "A /d/sub/y"]


@pytest.mark.lane("root")
@both_forms
def test_marks_of_lower_layers_decide_what_is_below(tmp_path: Path, form: Form) -> None:
    bottom = fill(tmp_path / "bottom", "a", "b", "d/x", "d/y", "t/x")
    middle = fill(tmp_path / "middle", "d/z")
    whiteout(middle / "a", form)
    whiteout(middle / "t", form)
    opaque(middle / "d", form)
    upper = fill(tmp_path / "upper", "a", "b", "d/x", "d/z", "t/x")
    whiteout(upper / "d/y", form)
    found = lines(changes(upper, [middle, bottom], form=form))
    assert found == ["A /a", "C /b", "C /d", "A /d/x", "C /d/z", "A /t", "A /t/x"]


@pytest.mark.lane("root")
@both_forms
def test_type_changes_are_one_modification_and_imply_what_was_below(tmp_path: Path, form: Form) -> None:
    lower = fill(tmp_path / "lower", "was dir/x", "was file", "nearest/x")
    upper = fill(tmp_path / "upper", "was dir", "was file/new")
    assert lines(changes(upper, [lower], form=form)) == ["C /was dir", "C /was file", "A /was file/new"]
    between = fill(tmp_path / "between", "nearest")
    upper = fill(tmp_path / "upper2", "nearest/x")
    assert lines(changes(upper, [between, lower], form=form)) == ["C /nearest", "A /nearest/x"]


@pytest.mark.lane("root")
def test_symlinks_of_lower_layers_are_not_followed(tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", "passwd", "only here")
    lower = fill(tmp_path / "lower", "real/passwd")
    (lower / "etc").symlink_to(outside)
    upper = fill(tmp_path / "upper", "etc/passwd")
    whiteout(upper / "etc/only here", Form.OVERLAY)
    assert lines(changes(upper, [lower], form=Form.OVERLAY)) == ["C /etc", "A /etc/passwd"]


@pytest.mark.lane("root")
def test_whiteouts_that_need_no_device_node(tmp_path: Path) -> None:
    """overlayfs.rst: an empty file with overlay.whiteout in a directory with overlay.opaque "x"."""
    lower = fill(tmp_path / "lower", "d/a", "d/b", "e/a")
    upper = fill(tmp_path / "upper", "d/", "e/")
    for path in (upper / "d/a", upper / "e/a"):
        path.touch()
        os.setxattr(path, "trusted.overlay.whiteout", b"y")
    os.setxattr(upper / "d", "trusted.overlay.opaque", b"x")
    assert lines(changes(upper, [lower], form=Form.OVERLAY)) == ["C /d", "D /d/a", "C /e/a"]
    above = fill(tmp_path / "above", "d/a", "d/b")
    assert lines(changes(above, [upper, lower], form=Form.OVERLAY)) == ["C /d", "A /d/a", "C /d/b"]


@pytest.mark.lane("root")
def test_files_of_the_union_and_of_the_file_system_are_not_listed(tmp_path: Path) -> None:
    upper = fill(tmp_path / "upper", "a", "lost+found/", "d/lost+found/")
    fill(upper, ".wh..wh.aufs", ".wh..wh.orph/x", ".wh..wh.plnk/17.9")
    found = lines(changes(upper, [], form=Form.AUFS))
    assert found == ["A /a", "A /d", "A /d/lost+found"]


def test_names_that_are_not_text_come_as_surrogates(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff", "wb"):
        [change] = changes(tmp_path, [], form=Form.OVERLAY)
    assert os.fsencode(change.path) == b"/\xff"


@pytest.mark.lane("root")
def test_three_hundred_levels(tmp_path: Path) -> None:
    root = tmp_path / "upper"
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    found = changes(root, [], form=Form.OVERLAY)
    assert (len(found), found[-1].path) == (300, "/d" * 300)


@pytest.mark.lane("root", "overlay")
def test_what_the_graph_driver_suite_demands(tmp_path: Path) -> None:
    """graphtest's Changes: equal sizes, within the second; the directory itself is the only other entry."""
    lower = fill(tmp_path / "lower", *(f"a/file-{number}" for number in range(20)))
    with layers.overlay(tmp_path, [lower]) as (merged, upper):
        expected = {"C /a"}
        for number in range(20):
            name = f"a/file-{number}"
            if number % 3 == 0:
                (merged / name).write_text(name)
                expected.add(f"C /{name}")
            elif number % 3 == 1:
                (merged / f"{name}-new").write_text(name)
                expected.add(f"A /{name}-new")
            else:
                (merged / name).unlink()
                expected.add(f"D /{name}")
        found = lines(changes(upper, [lower], form=Form.OVERLAY))
    assert sorted(found) == sorted(expected)
    assert found == sorted(found, key=lambda line: line[2:])


# ---- two trees ---------------------------------------------------------------------------------------


def sample_tree(root: Path) -> None:
    """The tree of Docker's own tests of its archive package."""
    root.mkdir()
    for name, mode in [
        ("file1", 0o600),
        ("file2", 0o666),
        ("file3", 0o404),
        ("file4", 0o600),
        ("file5", 0o600),
        ("file6", 0o600),
        ("file7", 0o600),
        ("dir1/file1-1", 0o1444),
        ("dir1/file1-2", 0o666),
        ("dir2/file2-1", 0o666),
        ("dir2/file2-2", 0o666),
        ("dir3/file3-1", 0o666),
        ("dir3/file3-2", 0o666),
        ("dir4/file3-1", 0o666),
        ("dir4/file3-2", 0o666),
    ]:
        fill(root, name)
        (root / name).write_text(f"{name}\n")
        (root / name).chmod(mode)
    for name, mode in [("dir1", 0o740), ("dir2", 0o700), ("dir3", 0o700), ("dir4", 0o700)]:
        (root / name).chmod(mode)
    (root / "symlink1").symlink_to("target1")
    (root / "symlink2").symlink_to("target2")
    for path in sorted(root.rglob("*"), reverse=True):
        if not path.is_symlink():
            os.utime(path, ANCIENT)


def mutate(root: Path) -> None:
    """What Docker's tests do to a copy of the sample tree."""
    (root / "file1").unlink()
    shutil.rmtree(root / "dir1")
    (root / "symlink1").unlink()
    (root / "file2").write_text("fileN\n")
    (root / "file3").unlink()
    (root / "file3").write_text("fileM\n")
    (root / "file3").chmod(0o404)
    os.utime(root / "file4", (1_500_000_000, 1_500_000_000))
    (root / "file5").unlink()
    (root / "file5").mkdir(0o666)
    (root / "filenew").write_text("filenew\n")
    (root / "dirnew").mkdir()
    (root / "symlinknew").symlink_to("targetnew")
    (root / "symlink2").unlink()
    (root / "symlink2").symlink_to("target2change")
    shutil.rmtree(root / "dir2")
    (root / "dir2").write_text("dir2\n")
    os.utime(root / "dir3", (1_500_000_000, 1_500_000_000))


MUTATIONS = [
    "D /dir1",
    "C /dir2",
    "A /dirnew",
    "D /file1",
    "C /file2",
    "C /file3",
    "C /file4",
    "C /file5",
    "A /filenew",
    "D /symlink1",
    "C /symlink2",
    "A /symlinknew",
]


def copy(source: Path, target: Path) -> None:
    trees_of_source = shutil.copytree(source, target, symlinks=True)
    for path in sorted(trees_of_source.rglob("*"), reverse=True):
        status = (source / path.relative_to(target)).lstat()
        os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns), follow_symlinks=False)


def test_a_copy_is_no_change(tmp_path: Path) -> None:
    sample_tree(tmp_path / "old")
    copy(tmp_path / "old", tmp_path / "new")
    assert compare(tmp_path / "new", tmp_path / "old") == []
    assert compare(tmp_path / "old", tmp_path / "old") == []


def test_a_mutated_copy(tmp_path: Path) -> None:
    sample_tree(tmp_path / "old")
    copy(tmp_path / "old", tmp_path / "new")
    mutate(tmp_path / "new")
    assert lines(compare(tmp_path / "new", tmp_path / "old")) == MUTATIONS


def test_everything_is_added_to_nothing(tmp_path: Path) -> None:
    root = fill(tmp_path / "new", "a", "d/b")
    assert lines(compare(root, None)) == ["A /a", "A /d", "A /d/b"]


def test_times_are_equal_when_one_of_them_has_no_fraction(tmp_path: Path) -> None:
    second = 1_000_000_000
    new, old = fill(tmp_path / "new", "a") / "a", fill(tmp_path / "old", "a") / "a"

    def differ(first: int, other: int) -> bool:
        os.utime(new, ns=(first, first))
        os.utime(old, ns=(other, other))
        return bool(compare(tmp_path / "new", tmp_path / "old"))

    assert not differ(5 * second + 7, 5 * second + 7)
    assert not differ(5 * second + 7, 5 * second)
    assert not differ(5 * second, 5 * second + 7)
    assert differ(5 * second + 7, 5 * second + 8)
    assert differ(5 * second, 6 * second)


def _chmod(path: Path) -> None:
    path.chmod(0o751)


def _chown(path: Path) -> None:
    os.chown(path, 1, 2, follow_symlinks=False)


def _capability(path: Path) -> None:
    os.setxattr(path, "security.capability", b"\x01\0\0\x02\0\x20\0\0" + bytes(12))


@pytest.mark.lane("root")
@pytest.mark.parametrize(
    ("name", "change"),
    [("file4", _chmod), ("file4", _chown), ("file4", _capability), ("dir3", _chmod), ("dir3", _chown)],
)
def test_one_difference_of_an_inode(tmp_path: Path, name: str, change: Callable[[Path], None]) -> None:
    sample_tree(tmp_path / "old")
    copy(tmp_path / "old", tmp_path / "new")
    change(tmp_path / "new" / name)
    assert lines(compare(tmp_path / "new", tmp_path / "old")) == [f"C /{name}"]


# ---- held against whole trees ------------------------------------------------------------------------


@pytest.mark.lane("root", "overlay")
def test_an_upper_directory_says_what_a_comparison_of_the_trees_says() -> None:
    seen: Counter[str] = Counter()

    @_SETTINGS
    @given(trees.trees(full=True), layers.deeds, layers.deeds)
    def check(tree: trees.Tree, first: list[layers.Deed], second: list[layers.Deed]) -> None:
        with tempfile.TemporaryDirectory() as name:
            base = Path(name)
            (base / "bottom").mkdir()
            (base / "one").mkdir()
            (base / "two").mkdir()
            trees.make(base / "bottom", tree)
            with layers.overlay(base / "one", [base / "bottom"]) as (merged, middle):
                layers.perform(merged, first)
                copy_exactly(merged, base / "before")
            with layers.overlay(base / "two", [middle, base / "bottom"]) as (merged, upper):
                done = layers.perform(merged, second)
                for deed in done:
                    event(deed)
                seen.update(done)
                found = changes(upper, [middle, base / "bottom"], form=Form.OVERLAY)
                expected = compare(merged, base / "before")
                after = trees.scan(merged)
            # A file that was only copied up, or written with what it had, is in the layer: a change to
            # the one and none to the other.
            kept = {os.fsencode(change.path)[1:] for change in found if change not in expected}
            before = trees.scan(base / "before")
            assert {change for change in expected if change not in found} == set()
            assert {path for path in kept if _unlinked(before[path]) != _unlinked(after[path])} == set()
            assert len({change.path for change in found}) == len(found)

    check()
    assert seen.keys() >= {
        "opaque over a directory with content",
        "whiteout and the same name again",
        "a directory in place of a file",
        "removed a file",
        "removed a tree",
        "linked a file",
        "renamed a file",
        "changed a directory's mode",
    }


def _unlinked(seen: trees.Seen) -> trees.Seen:
    return replace(seen, links=())


def copy_exactly(source: Path, target: Path) -> None:
    """``cp -a``, every time and attribute included."""
    subprocess.run(["cp", "-a", f"{source}", f"{target}"], check=True)
