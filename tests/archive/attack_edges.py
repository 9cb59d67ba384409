"""Cases of odd names, numbers and limits."""

from __future__ import annotations

import os
from pathlib import Path

from layerlimit.archive import Form, Limits
from tests.archive.archives import archive, device, entry, file, folder, hardlink, symlink
from tests.archive.attack_case import Case, gone, has_content

# ---- names, numbers, limits ------------------------------------------------------------------------

ODD = [
    b"new\nline",
    b"co:lon",
    b"com,ma",
    b"back\\slash",
    b"\xff\xfe\x80",
    b"-rf",
    b" ",
    b"tab\t",
    b"\x1b[31m",
]


def _odd_names(layer: Path, form: Form) -> None:
    assert sorted(os.listdir(os.fsencode(layer))) == sorted(ODD)


def _loop(length: int) -> bytes:
    links = [symlink(b"l%d" % number, b"l%d" % ((number + 1) % length)) for number in range(length)]
    return archive(*links, file(b"l0/x", b"x"))


EDGES = [
    Case(
        "42 parent is a file",
        archive(file(b"a", b"x"), file(b"a/b", b"y")),
        after=has_content("a", b"x"),
        error="archive.invalid",
        names="a/b",
    ),
    Case(
        "42b parent is a device",
        archive(device(b"a", 1, 3), file(b"a/b", b"y")),
        error="archive.invalid",
        names="a/b",
    ),
    Case("42c loop of links", _loop(300), error="archive.invalid", names="l0/x"),
    Case("42d link to itself", _loop(1), error="archive.invalid", names="l0/x"),
    Case("42e name of 5000 bytes", archive(file(b"ab/" * 1700)), error="archive.limit", names="ab/ab/ab"),
    Case("42f part of 300 bytes", archive(file(b"d/" + b"n" * 300)), error="archive.limit", names="d/nnn"),
    Case(
        "42g 10,000 levels",
        archive(folder(b"/".join([b"d"] * 10_000))),
        error="archive.limit",
        names="d/d/d",
        limits=Limits(path_bytes=1 << 20),
    ),
    Case(
        "42h 1000 levels and their whiteout",
        archive(file(b"/".join([b"d"] * 1000)), file(b".wh.d")),
        after=gone("d"),
    ),
    Case(
        "42i target of 5000 bytes",
        archive(symlink(b"a", b"t" * 5000)),
        error="archive.invalid",
        names="'a'",
    ),
    Case("42j link without a target", archive(symlink(b"a", b"")), error="archive.invalid", names="'a'"),
    Case("43 names of any bytes", archive(*map(file, ODD)), after=_odd_names),
    Case(
        "43b NUL in a name",
        archive(entry(b"a", extended={b"path": b"a\0b"})),
        error="archive.invalid",
        names="'a'",
    ),
    *(
        Case(
            f"44 hard link to {what}",
            archive(folder(b"d"), file(b".wh.w"), hardlink(b"l", target), file(b"later")),
            error="archive.link",
            names="'l'",
        )
        for what, target in (
            ("itself", b"l"),
            ("a directory", b"d"),
            ("a later entry", b"later"),
            ("a deleted name", b"w"),
            ("a whiteout", b".wh.w"),
            ("the root", b"/"),
            ("nothing", b""),
            ("a name in a file", b"missing/x"),
        )
    ),
    Case(
        "44b hard link to itself when it is there",
        archive(file(b"d/l", b"x"), hardlink(b"d/l", b"./d/l")),
        error="archive.link",
        names="d/l",
    ),
    *(
        Case(
            f"45 owner {uid}:{gid}",
            archive(entry(b"f", uid=uid, gid=gid)),
            after=lambda layer, form, uid=uid, gid=gid: _owner(layer / "f", uid, gid),  # type: ignore[misc]
        )
        for uid, gid in ((2**31, 1), (2**32 - 2, 2**31))
    ),
    *(
        Case(
            f"45b owner {uid}:{gid}",
            archive(entry(b"f", uid=uid, gid=gid)),
            error="archive.invalid",
            names="'f'",
        )
        for uid, gid in ((2**32 - 1, 0), (0, 2**32 - 1), (2**32, 0), (-1, 0))
    ),
    *(
        Case(
            f"45c time {text.decode()}",
            archive(entry(b"f", b"x", extended={b"mtime": text}), folder(b"d", mtime=-5)),
            after=lambda layer, form, time=time: _mtime(layer / "f", time),  # type: ignore[misc]
        )
        for text, time in (
            (b"-1", 0),
            (b"-0.5", 0),
            (b"%d" % 2**63, 0),
            (b"1600000000.123456789", 1600000000123456789),
            (b"1600000000.1234567891234", 1600000000123456789),
            (b"1.5", 1500000000),
            (b"99999999999999999999", 0),
        )
    ),
    *(
        Case(
            f"45d time {text.decode()}",
            archive(entry(b"f", b"x", extended={b"mtime": text})),
            error="archive.invalid",
            names="'f'",
        )
        for text in (b"NaN", b"inf", b"1e9", b"1" * 5000, b"0x10", b"1_0")
    ),
    Case(
        "50 absolute link as parent, its target in the archive",
        archive(folder(b"run"), symlink(b"var/run", b"/run"), file(b"var/run/x", b"x")),
        after=has_content("run/x", b"x"),
    ),
    Case(
        "50b absolute link as parent, its target nowhere",
        archive(symlink(b"var/run", b"/run/deep"), file(b"var/run/sub/x", b"x")),
        after=has_content("run/deep/sub/x", b"x"),
    ),
    Case(
        "50c relative link as parent, its target nowhere",
        archive(symlink(b"var/run", b"../dir"), file(b"var/run/evil", b"x")),
        after=has_content("dir/evil", b"x"),
    ),
    Case(
        "50d link out of the root as parent",
        archive(symlink(b"out", b"../dir"), file(b"out/evil", b"x")),
        after=has_content("dir/evil", b"x"),
        escapes=True,
    ),
    Case(
        "51 link by way of /proc",
        archive(symlink(b"out", b"/proc/self/root"), file(b"out/dir/evil", b"x")),
        after=has_content("proc/self/root/dir/evil", b"x"),
    ),
]


def _owner(path: Path, uid: int, gid: int) -> None:
    assert (path.stat().st_uid, path.stat().st_gid) == (uid, gid)


def _mtime(path: Path, time: int) -> None:
    assert path.stat().st_mtime_ns == time
