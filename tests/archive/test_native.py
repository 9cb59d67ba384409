"""The native core does what the Python code does, and is what its flags and its tag say."""

from __future__ import annotations

import io
import os
import random
import runpy
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import layerlimit
from layerlimit.archive import Applied, Form, Limits, apply, native
from layerlimit.errors import Error
from tests.archive import trees
from tests.archive.archives import END, entry, header, padded, seal
from tests.archive.world import World
from tests.fuzz.fuzz_reader import LIMITS, corpus, mutate

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/layerlimit/archive/_native.c"
STRICT = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wpedantic", "-Werror")

in_root = pytest.mark.lane("root", "cc")
rounds = pytest.mark.parametrize(
    "rounds",
    [3, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(3600)])],
    ids=["some", "many"],
)


def outcome(
    archive: bytes, root: Path, form: Form, limits: Limits, *, python: bool, held: bool
) -> tuple[object, ...]:
    """What :func:`apply` says, and what lies in ``root`` then; times of its own making apart.

    ``held``: something is there before.
    """
    started = time.time_ns() - trees.SECOND
    core, told = native.core, ""
    root.mkdir()
    if held:
        (root / "d").mkdir()
        (root / "d/f").write_bytes(b"from before")
        os.chmod(root / "d", 0o2750)
    applied: Applied | None = None
    try:
        if python:
            native.core = None
        applied = apply(io.BytesIO(archive), root, form=form, limits=limits, durable=False)
    except Error as error:
        told = f"{error.code}: {error}"
    finally:
        native.core = core
    ended = time.time_ns() + trees.SECOND
    seen = trees.scan(root)
    return (
        applied,
        told,
        {path: replace(at, mtime=0) if started < at.mtime < ended else at for path, at in seen.items()},
    )


def differences(archives: list[bytes], limits: Limits) -> list[object]:
    """Which of ``archives`` come out differently with the native core and without."""
    found: list[object] = []
    for number, archive in enumerate(archives):
        for form in Form:
            one, other = (
                outcome(
                    archive,
                    Path("/layer", name),
                    form,
                    limits,
                    python=name == "python",
                    held=bool(number % 3),
                )
                for name in ("native", "python")
            )
            if one != other:
                found.append((number, form, one, other))
            shutil.rmtree("/layer/native")
            shutil.rmtree("/layer/python")
    return found


@pytest.mark.lane("cc")
def test_the_package_under_test_has_it() -> None:
    assert native.core is not None


@in_root
@pytest.mark.parametrize(
    "rounds",
    [3, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(3600)])],
    ids=["some", "many"],
)
def test_mutated_archives_come_out_the_same(rounds: int, tmp_path: Path) -> None:
    some, archives = random.Random(3), corpus()
    world = World(tmp_path / "world")
    for _ in range(rounds):
        batch = [mutate(some, archives) for _ in range(40)]
        assert world.run(partial(differences, batch, LIMITS), mount="size=64m") == []
        assert world.intact


_NAMES = b"a/b a/c a/d a/e d/f d/g d/d a/d/f a/.b x ./y ./a/b ./a/f a a/ d/g/ a/b/ ./a/d/".split()
_NAMES += b"a/.wh.b d/.wh.f .wh.a".split()
_ODD_NAMES = b"a/. a/.. . .. / /a //a ././a .//a a//b a/./b a/../b a/b// ./ ../a .wh.a .wh.d a/.wh.b".split()
_ODD_NAMES += [*b"a/.wh..wh..opq .wh..wh.plnk/1 a/.wh. a/.wh..".split(), b"", b"x" * 100, b"y" * 99 + b"/"]
_FIELDS = (
    b"0004755\0,0002755\0,   755\0 ,755\0\0\0\0\0,00000755,0001750\0,7777777\0,000644 \0,0000009\0".split(
        b","
    )
)
_FIELDS += [b"", b"\x80\0\0\0\0\0\1\xed", b"7\0junk\0\0", b"\xff" * 8, b"    \0\0\0\0"]
#: Where in a header, and what may be written there.
_ODDITIES = [
    (0, [name.ljust(100, b"\0") for name in _ODD_NAMES]),
    (100, _FIELDS),
    (108, _FIELDS),
    (116, _FIELDS),
    (124, [b"00000001000 ", b"   1000\0", b"77777777777\0", b"8", b"\x80"]),
    (136, [b"77777777777\0", b"1 " + bytes(10), b"\xff" * 12, b"  1\0", b"1\0junk\0\0\0\0\0\0"]),
    (156, [b"\0", b"1", b"2", b"5", b"7", b"x", b"L"]),
    (257, [b"ustar  \0", b"ustar\0  ", bytes(8)]),
    (
        345,
        [
            b"a",
            b"./a",
            b"a/b/",
            b"p" * 155,
            b"a\0b",
            b"d",
            b"/",
            (b"a/" * 60 + b"b" * 20).ljust(163, b"\0") + b"tar\0",
        ],
    ),
]


def spelt(some: random.Random) -> bytes:
    """An archive of mostly plain entries, a few of them spelt in an odd way or two."""
    out = entry(b"a/", kind=b"5") + entry(b"d/", kind=b"5", mode=some.choice([0o755, 0o2755]))
    for name in some.choices(_NAMES, k=some.randint(2, 8)):
        data = b"" if name.endswith(b"/") else some.choice([b"", b"some", b"x" * 512, b"y" * 700])
        kind = b"5" if name.endswith(b"/") else b"0" if data else some.choice([b"0", b"2"])
        link = some.choice([b"b", b"../x", b"/a", b"", b"t" * 100]) if kind == b"2" else b""
        mode = some.choice([0o644, 0o4755])
        block = bytearray(header(name, kind=kind, size=len(data), mode=mode, link=link))
        for _ in range(some.choice([0, 0, 0, 1, 2])):
            at, fields = some.choice(_ODDITIES)
            field = some.choice(fields)
            block[at : at + len(field)] = field
        out += seal(block) + padded(data)
        if some.random() < 0.05:
            out = out[:-364] + b"1" + out[-363:]  # the checksum of an empty one, or some content
    return out[: -some.randint(1, 511)] if some.random() < 0.1 else out + END


@in_root
@rounds
def test_every_spelling_of_a_header_comes_out_the_same(rounds: int, tmp_path: Path) -> None:
    some, world = random.Random(5), World(tmp_path / "world")
    for _ in range(rounds):
        batch = [spelt(some) for _ in range(100)]
        assert world.run(partial(differences, batch, Limits(entries=8)), mount="size=64m") == []
    assert world.intact


@in_root
def test_trees_come_out_the_same(tmp_path: Path) -> None:
    """Real content too: what lies across chunks, and what a file over a file leaves."""
    some = random.Random(4)
    blocks = [entry(b"big/", kind=b"5")]
    for number in range(400):
        size = some.choice([0, 1, 511, 512, 513, 9000, 70_000])
        name = b"big/%d/%d" % (number // 40, number % 50)
        if number % 40 == 0:
            blocks.append(entry(b"big/%d/" % (number // 40), kind=b"5", mode=some.choice([0o755, 0o2755, 0])))
        if number % 7 == 0:
            blocks.append(entry(name, b"first"))
        blocks.append(
            entry(name, some.randbytes(size), mode=some.choice([0o644, 0o4755, 0o600]), uid=number % 3)
        )
    layer = b"".join(blocks) + END
    assert len(layer) > 4 << 20
    with_core, without = (
        outcome(layer, tmp_path / name, Form.OVERLAY, Limits(), python=name == "python", held=False)
        for name in ("native", "python")
    )
    assert with_core == without
    assert with_core[0] is not None


@pytest.mark.lane("cc")
def test_it_refuses_what_lies_outside_the_chunk() -> None:
    assert native.core is not None
    chunk = memoryview(entry(b"a", b"x") + END)
    for start, end, most in ((-1, 512, 1), (512, 0, 1), (0, len(chunk) + 1, 1), (0, 512, -1)):
        with pytest.raises(ValueError, match="no part of the chunk"):
            native.core.extract(chunk, start, end, {}, print, 1, most, 255, 0, 0, 0, False)
    with pytest.raises(ValueError, match="negative limit"):
        native.core.extract(chunk, 0, 512, {}, print, -1, 1, 255, 0, 0, 0, False)
    nothing = (0, 0, 0, None, b"")
    assert native.core.extract(chunk, 0, 511, {}, print, 1, 1, 255, 0, 0, 0, False) == nothing
    for start in (-1, 4):
        with pytest.raises(ValueError, match="no part of the records"):
            native.core.set_times(0, b"abc", start)


@in_root
def test_more_directories_than_are_kept_open(tmp_path: Path) -> None:
    """Most are closed and opened again; what waits for the end is read in pieces; some are gone by then."""
    names = [b"%03d/" % number + b"n" * 95 + b"/" for number in range(9000 // 30)]
    blocks = [entry(b"%03d/" % number, kind=b"5") for number in range(len(names))]
    blocks += [
        entry(name[:-6] + b"%05d/" % number, kind=b"5", mtime=number)
        for number in range(9000 // len(names))
        for name in names
    ]
    blocks += [entry(b"007", b"a file now"), entry(b"008", kind=b"2", link=b"009")]
    blocks += [entry(names[number][:-6] + b"00000/f", b"x") for number in (1, 150, 299)]
    layer = b"".join(blocks) + END
    with_core, without = (
        outcome(layer, tmp_path / name, Form.OVERLAY, Limits(), python=name == "python", held=False)
        for name in ("native", "python")
    )
    assert with_core == without
    assert with_core[0] is not None, with_core[1]


@pytest.mark.lane("cc")
def test_it_compiles_without_a_warning(tmp_path: Path) -> None:
    hook = runpy.run_path(str(ROOT / "hatch_build.py"))
    assert hook["compile_native"](SOURCE, tmp_path / "_native.so", *STRICT) == ""


@in_root
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """This module once more, over a core that stops at an access out of bounds and at undefined behaviour."""
    package = Path(next(iter(layerlimit.__path__)))
    shutil.copytree(package, tmp_path / "layerlimit")
    hook = runpy.run_path(str(ROOT / "hatch_build.py"))
    core = tmp_path / "layerlimit/archive/_native.abi3.so"
    sanitizers = "-fsanitize=address,undefined"
    assert hook["compile_native"](SOURCE, core, sanitizers, "-fno-sanitize-recover=all") == ""
    library = subprocess.run(
        ["cc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    )
    environment = {
        **{name: value for name, value in os.environ.items() if name != "LAYERLIMIT_WHEEL"},
        "PYTHONPATH": str(tmp_path),
        "LD_PRELOAD": library.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        "same or outside",
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.lane("cc")
@pytest.mark.parametrize(
    ("compiler", "tag", "holds"),
    [("cc", "cp311-abi3-linux", True), ("/no/such/cc", "py3-none-any", False)],
    ids=["with a compiler", "without"],
)
def test_the_wheel_says_what_it_holds(compiler: str, tag: str, *, holds: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "CC": compiler}, check=True, capture_output=True, text=True
    )
    [wheel] = tmp_path.iterdir()
    assert tag in wheel.name
    assert ("layerlimit/archive/_native.abi3.so" in zipfile.ZipFile(wheel).namelist()) == holds
    assert ("without the native core" in done.stdout + done.stderr) != holds
