"""Cases of whiteouts and opaque marks."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from layerlimit.archive import Form
from tests.archive.archives import archive, file, folder, hardlink, symlink
from tests.archive.attack_case import (
    Case,
    before,
    deleted,
    every,
    gone,
    has_content,
    is_folder,
    is_link,
    is_opaque,
    missing,
    opaque,
    with_file,
    with_link,
)

# ---- marks -----------------------------------------------------------------------------------------

LOWER = before(
    with_file("d/lower", b"l"), with_file("d/sub/lower", b"l"), with_file("d/both", b"l"), with_file("kept")
)
OPQ = file(b"d/.wh..wh..opq")
OWN = (folder(b"d"), file(b"d/own", b"o"), file(b"d/both", b"o"), file(b"d/new/deep/own", b"o"))


def _hidden(layer: Path, form: Form) -> None:
    """``d`` is opaque, holds what the layer wrote and nothing else."""
    opaque(layer, form, "d")
    marks = {".wh..wh..opq"} if form is Form.AUFS else set()
    assert set(os.listdir(layer / "d")) == {"own", "both", "new"} | marks
    assert (layer / "d/both").read_bytes() == b"o"
    assert (layer / "d/new/deep/own").read_bytes() == b"o"
    assert (layer / "kept").exists()


MARKS = [
    Case("39 opaque mark first", archive(OPQ, *OWN), before=LOWER, after=_hidden),
    Case("39b opaque mark last", archive(*OWN, OPQ), before=LOWER, after=_hidden),
    Case("39c opaque mark in the middle", archive(*OWN[:2], OPQ, *OWN[2:]), before=LOWER, after=_hidden),
    Case("39d opaque mark twice", archive(*OWN[:3], OPQ, OWN[3], OPQ), before=LOWER, after=_hidden),
    Case(
        "39e opaque mark in a directory that is not listed",
        archive(*OWN[1:], OPQ),
        before=LOWER,
        after=_hidden,
    ),
    Case(
        "39f nested opaque marks",
        archive(folder(b"d"), folder(b"d/sub"), file(b"d/sub/own", b"o"), file(b"d/sub/.wh..wh..opq"), OPQ),
        before=LOWER,
        after=every(
            is_opaque("d"),
            is_opaque("d/sub"),
            has_content("d/sub/own", b"o"),
            missing("d/sub/lower"),
            missing("d/lower"),
        ),
    ),
    Case(
        "39g opaque mark alone",
        archive(OPQ),
        before=LOWER,
        after=every(is_opaque("d"), missing("d/sub")),
    ),
    Case(
        "39h opaque mark behind a link",
        archive(file(b"localdir/own", b"o"), file(b"localdir/.wh..wh..opq")),
        before=before(with_file("dir/lower"), with_link("localdir", "/dir")),
        after=every(has_content("dir/own", b"o"), missing("dir/lower")),
    ),
    Case(
        "40 whiteout, then a file",
        archive(file(b"d/.wh.both"), file(b"d/both", b"new")),
        before=LOWER,
        after=every(has_content("d/both", b"new"), missing("d/.wh.both")),
    ),
    Case(
        "40b whiteout, then a directory",
        archive(file(b".wh.d"), folder(b"d"), file(b"d/own", b"o")),
        before=LOWER,
        after=every(is_opaque("d"), missing("d/lower"), has_content("d/own", b"o")),
    ),
    Case(
        "40c whiteout, then something in the directory",
        archive(file(b".wh.d"), file(b"d/sub/own", b"o")),
        before=LOWER,
        after=every(
            is_opaque("d"),
            missing("d/lower"),
            missing(".wh.d"),
            has_content("d/sub/own", b"o"),
        ),
    ),
    Case(
        "40d file, then its whiteout",
        archive(folder(b"d"), file(b"d/own", b"o"), file(b"d/.wh.own")),
        after=gone("d/own"),
    ),
    Case("40e whiteout of what is missing", archive(file(b"a/.wh.b")), after=gone("a/b")),
    Case("40f whiteout of a full directory", archive(file(b".wh.d", b"data")), before=LOWER, after=gone("d")),
    Case(
        "40g whiteout twice, and as a directory and a link",
        archive(file(b".wh.a"), folder(b".wh.a"), symlink(b".wh.b", b"/etc"), hardlink(b".wh.c", b"/etc/x")),
        after=every(gone("a"), gone("b"), gone("c")),
    ),
    Case(
        "40h whiteout beside a directory that has its mark's name",
        archive(file(b".wh.a/b", b"x"), file(b".wh.a")),
        after=lambda layer, form: deleted(layer, form, "a") if form is Form.AUFS else None,
    ),
    Case(
        "40i file, then a directory, over lower content",
        archive(file(b"a"), folder(b"a"), file(b"a/own", b"o")),
        after=every(is_opaque("a"), has_content("a/own", b"o")),
    ),
    Case(
        "41 directory to file and back",
        archive(folder(b"a"), file(b"a/b"), file(b"a", b"f"), folder(b"c"), file(b"c", b"x"), folder(b"c")),
        after=every(has_content("a", b"f"), is_folder("c")),
    ),
    Case(
        "41b directory to link to directory",
        archive(folder(b"a"), symlink(b"a", b"/etc"), folder(b"a"), file(b"a/somefile", b"x")),
        after=has_content("a/somefile", b"x"),
    ),
    Case(
        "41c directory to link",
        archive(folder(b"a"), file(b"a/own"), symlink(b"a", b"/etc"), file(b"a/somefile", b"x")),
        after=every(is_link("a", "/etc"), has_content("etc/somefile", b"x")),
    ),
    Case(
        "41d names twice",
        archive(file(b"a", b"1"), file(b"./a", b"2"), file(b"x/../a", b"3"), file(b"//a", b"4")),
        after=has_content("a", b"4"),
    ),
    Case("41e a file whose name ends in a slash", archive(file(b"a/", b"1")), after=has_content("a", b"1")),
    Case(
        "41f directory that is there keeps its content",
        archive(folder(b"d", mode=0o2750, uid=5, gid=6)),
        before=LOWER,
        after=lambda layer, form: _kept_directory(layer),
    ),
]


def _kept_directory(layer: Path) -> None:
    status = (layer / "d").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o2750, 5, 6)
    assert (layer / "d/sub/lower").exists()
