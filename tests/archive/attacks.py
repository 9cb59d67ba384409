"""Archives that attack, or that are hard to get right, and what has to come of each.

Paths are those of a :class:`~tests.archive.world.World`; the archive is extracted into ``/layer``. The
numbers are of no meaning but to find a case.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from layerlimit.archive import Form, Limits
from tests.archive.archives import archive, device, entry, file, folder, hardlink, symlink

Check = Callable[[Path, Form], None]


@dataclass(frozen=True)
class Case:
    """One archive and what has to come of it."""

    name: str
    archive: bytes
    #: Makes what the layer holds before.
    before: Callable[[Path], object] = lambda layer: None
    after: Check = lambda layer, form: None
    #: The code of the error that has to come, and what its message has to name.
    error: str = ""
    names: str = ""
    #: Whether a trusting extractor damages the world by it.
    escapes: bool = False
    #: Whether something is left out with a warning.
    warns: bool = False
    limits: Limits | None = None


def deleted(layer: Path, form: Form, name: str) -> None:
    """Assert that ``name`` is gone and that the layer says so in its form."""
    path = layer / name
    mark = path.with_name(f".wh.{path.name}")
    match form:
        case Form.OVERLAY:
            status = path.lstat()
            assert stat.S_ISCHR(status.st_mode)
            assert status.st_rdev == 0
        case Form.AUFS:
            assert not os.path.lexists(path)
            assert mark.stat().st_size == 0
        case Form.FLAT:
            assert not os.path.lexists(path)
            assert not os.path.lexists(mark)


def opaque(layer: Path, form: Form, name: str) -> None:
    """Assert that the directory ``name`` hides what is below it."""
    path = layer / name
    has_mark = os.path.lexists(path / ".wh..wh..opq")
    attributes = {each: os.getxattr(path, each) for each in os.listxattr(path)}
    assert has_mark == (form is Form.AUFS)
    assert attributes == ({"trusted.overlay.opaque": b"y"} if form is Form.OVERLAY else {})


def _content(name: str, data: bytes) -> Check:
    def check(layer: Path, form: Form) -> None:
        assert (layer / name).read_bytes() == data
        assert stat.S_ISREG((layer / name).lstat().st_mode)

    return check


def _same(one: str, other: str) -> Check:
    def check(layer: Path, form: Form) -> None:
        first, second = (layer / one).lstat(), (layer / other).lstat()
        assert stat.S_ISREG(first.st_mode)
        assert (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)

    return check


def _differ(one: str, other: str) -> Check:
    def check(layer: Path, form: Form) -> None:
        assert (layer / one).lstat().st_ino != (layer / other).lstat().st_ino

    return check


def _link(name: str, target: str) -> Check:
    def check(layer: Path, form: Form) -> None:
        assert os.readlink(layer / name) == target

    return check


def _gone(name: str) -> Check:
    return lambda layer, form: deleted(layer, form, name)


def _missing(name: str) -> Check:
    def check(layer: Path, form: Form) -> None:
        assert not os.path.lexists(layer / name)

    return check


def _folder(name: str) -> Check:
    def check(layer: Path, form: Form) -> None:
        assert stat.S_ISDIR((layer / name).lstat().st_mode)

    return check


def _opaque(name: str) -> Check:
    return lambda layer, form: opaque(layer, form, name)


def _all(*checks: Check) -> Check:
    def check(layer: Path, form: Form) -> None:
        for each in checks:
            each(layer, form)

    return check


def _with(path: str, data: bytes = b"") -> Callable[[Path], object]:
    def before(layer: Path) -> None:
        place = layer / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)

    return before


def _before(*steps: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda layer: [step(layer) for step in steps]


def _linked(name: str, target: str) -> Callable[[Path], object]:
    return lambda layer: (layer / name).symlink_to(target)


def _made(name: str) -> Callable[[Path], object]:
    return lambda layer: (layer / name).mkdir(parents=True, exist_ok=True)


def _socket(layer: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        here = os.getcwd()
        os.chdir(layer)  # names of sockets are short
        try:
            end.bind("victim")
        finally:
            os.chdir(here)


ETC = folder(b"etc")
PASSWD = file(b"etc/passwd", b"inside\n")

BREAKOUTS = [
    Case(
        "01 absolute link as parent",
        archive(ETC, symlink(b"localetc", b"/etc"), file(b"/localetc/unbroken", b"x")),
        after=_content("etc/unbroken", b"x"),
        escapes=True,
    ),
    Case(
        "02 link through what does not exist",
        archive(ETC, symlink(b"localetc", b"/dummy/../etc"), file(b"/localetc/unbroken", b"x")),
        after=_all(_content("etc/unbroken", b"x"), _missing("dummy")),
    ),
    Case(
        "02b link up and down again",
        archive(ETC, symlink(b"localetc", b"/tmp/../etc"), file(b"/localetc/unbroken", b"x")),
        after=_content("etc/unbroken", b"x"),
        escapes=True,
    ),
    Case(
        "03 link over an absolute link",
        archive(
            ETC,
            symlink(b"dummy/etc", b"/etc"),
            symlink(b"localetc", b"/dummy/etc"),
            file(b"/dummy/etc/unbroken", b"x"),
        ),
        after=_content("etc/unbroken", b"x"),
        escapes=True,
    ),
    Case(
        "04 relative link over an absolute link",
        archive(
            ETC,
            symlink(b"dummy/etc", b"/etc"),
            symlink(b"localetc", b"./dummy/etc"),
            file(b"/localetc/unbroken", b"x"),
        ),
        after=_content("etc/unbroken", b"x"),
        escapes=True,
    ),
    Case(
        "05 truncation through a link",
        archive(
            ETC,
            file(b"etc/emptied", b"notempty"),
            symlink(b"localetc", b"/etc"),
            file(b"/localetc/emptied"),
        ),
        after=_content("etc/emptied", b""),
        escapes=True,
    ),
    Case(
        "06 hard link through a relative link",
        archive(
            ETC,
            PASSWD,
            symlink(b"breakouts/d1", b"../../etc"),
            hardlink(b"breakouts/mypasswd", b"/breakouts/d1/passwd"),
            hardlink(b"breakouts/again", b"breakouts/d1/passwd"),
        ),
        after=_all(_same("breakouts/mypasswd", "etc/passwd"), _same("breakouts/again", "etc/passwd")),
        escapes=True,
    ),
    Case(
        "07 hard link down and out",
        archive(
            ETC,
            PASSWD,
            folder(b"downandout"),
            symlink(b"breakouts/d1", b"../downandout/../../etc"),
            hardlink(b"breakouts/mypasswd", b"breakouts/d1/passwd"),
        ),
        after=_same("breakouts/mypasswd", "etc/passwd"),
        escapes=True,
    ),
    *(
        Case(
            f"{number} hard link through {target.decode()}",
            archive(
                ETC,
                PASSWD,
                folder(b"upandout"),
                symlink(b"localetc", target),
                hardlink(b"localpasswd", b"localetc/passwd"),
            ),
            after=_same("localpasswd", "etc/passwd"),
            escapes=True,
        )
        for number, target in (
            ("08", b"/etc"),
            ("09", b"../../../../../../../etc"),
            ("10", b"upandout/../../../etc"),
        )
    ),
    Case(
        "11 hard link up and out",
        archive(ETC, PASSWD, hardlink(b"localpasswd", b"../../../../../etc/passwd")),
        error="archive.breakout",
        names="../../../../../etc/passwd",
        escapes=True,
    ),
    Case(
        "12 hard link to an absolute name",
        archive(ETC, PASSWD, hardlink(b"localpasswd", b"/etc/passwd")),
        after=_same("localpasswd", "etc/passwd"),
        escapes=True,
    ),
    Case(
        "13 link named ..",
        archive(ETC, file(b"good", b"x"), symlink(b"..", b"/etc/")),
        error="archive.breakout",
        names="'..'",
    ),
    Case(
        "13b file above the root",
        archive(file(b"../etc/somefile", b"evil")),
        error="archive.breakout",
        names="../etc/somefile",
        escapes=True,
    ),
    Case(
        "13c directory above the root, in the middle of a name",
        archive(folder(b"a"), folder(b"a/../../dir", mode=0o777)),
        error="archive.breakout",
        names="a/../../dir",
        escapes=True,
    ),
    Case(
        "14 link without a name",
        archive(ETC, symlink(b"", b"/etc/"), file(b"good", b"x")),
        after=_content("good", b"x"),
    ),
    Case(
        "15 link named sub/..",
        archive(
            ETC,
            PASSWD,
            symlink(b"localetc/sub/..", b"/etc/"),
            hardlink(b"/localetc/localpasswd", b"/etc/passwd"),
        ),
        after=_all(_same("etc/localpasswd", "etc/passwd"), _link("localetc", "/etc/")),
    ),
    Case(
        "16 directory, then a link in it",
        archive(ETC, PASSWD, folder(b"localetc"), hardlink(b"localetc/localpasswd", b"etc/passwd")),
        after=_same("localetc/localpasswd", "etc/passwd"),
    ),
    *(
        Case(
            f"{number} directory replaced by a link to {target.decode()}",
            archive(
                ETC,
                PASSWD,
                symlink(b"localetc", target),
                hardlink(b"localetc/newpasswd", b"etc/passwd"),
            ),
            before=_made("localetc"),
            after=_all(_same("etc/newpasswd", "etc/passwd"), _link("localetc", target.decode())),
            escapes=True,
        )
        for number, target in (("17", b"/etc"), ("18", b"../../etc"))
    ),
    Case(
        "19 link replaced by a directory",
        archive(ETC, PASSWD, folder(b"localetc", mode=0o700), hardlink(b"localetc/newpasswd", b"etc/passwd")),
        before=_linked("localetc", "/etc"),
        after=_all(_same("localetc/newpasswd", "etc/passwd"), _folder("localetc"), _missing("etc/newpasswd")),
        escapes=True,
    ),
    Case(
        "20 linked file behind a link that becomes a directory",
        archive(folder(b"localetc"), file(b"localetc/localpasswd", b"new")),
        before=_before(
            _with("etc/passwd", b"inside\n"),
            _linked("localetc", "etc"),
            lambda layer: (layer / "etc/localpasswd").hardlink_to(layer / "etc/passwd"),
        ),
        after=_all(
            _differ("localetc/localpasswd", "etc/passwd"),
            _content("etc/passwd", b"inside\n"),
            _content("localetc/localpasswd", b"new"),
        ),
    ),
    *(
        Case(
            f"{number} whiteout of {meaning}",
            archive(ETC, PASSWD, file(name)),
            before=_with("etc/kept"),
            after=_content("etc/kept", b""),
            error="archive.invalid",
            names=name.decode(),
            escapes=escapes,
        )
        for number, meaning, name, escapes in (
            ("21", "the parent of the root", b".wh...", True),
            ("22", "a parent", b"etc/.wh...", False),
            ("23", "the root", b".wh..", False),
            ("24", "a directory by itself", b"etc/.wh..", False),
            ("24b", "nothing", b"etc/.wh.", False),
        )
    ),
    Case(
        "25 whiteout of a link",
        archive(file(b".wh.localetc")),
        before=_before(_with("etc/passwd"), _linked("localetc", "/etc")),
        after=_all(_gone("localetc"), _content("etc/passwd", b"")),
    ),
    Case(
        "26 whiteout behind a link",
        archive(file(b"localetc/.wh.somefile")),
        before=_before(_with("etc/somefile"), _linked("localetc", "/etc")),
        after=_gone("etc/somefile"),
        escapes=True,
    ),
    Case(
        "27 file in a directory named like a whiteout",
        archive(file(b".wh.etc/somefile", b"non-empty")),
        before=_with("etc/passwd"),
        after=_all(_content(".wh.etc/somefile", b"non-empty"), _content("etc/passwd", b"")),
    ),
    Case(
        "28 whiteout behind a dangling link",
        archive(file(b"localetc/.wh.etc")),
        before=_before(_with("etc/passwd"), _linked("localetc", "/none")),
        after=_content("etc/passwd", b""),
    ),
    Case(
        "29 whiteout up a level",
        archive(file(b"none/../.wh.etc")),
        before=_with("etc/passwd"),
        after=_gone("etc"),
    ),
    Case(
        "30 directory becomes a link to the root and a directory again",
        archive(
            folder(b"foo"),
            folder(b"foo/tmp"),
            file(b"foo/tmp/f", b"1"),
            symlink(b"foo", b"/"),
            file(b"foo/tmp/f", b"2"),
            folder(b"foo"),
            folder(b"foo/tmp"),
            file(b"foo/tmp/f", b"3"),
        ),
        after=_all(_content("foo/tmp/f", b"3"), _content("tmp/f", b"2"), _folder("foo")),
    ),
    Case(
        "30b file behind a link to the root",
        archive(symlink(b"foo", b"/"), file(b"foo/tmp/f", b"2")),
        after=_content("tmp/f", b"2"),
        escapes=True,
    ),
    Case(
        "31 hard link to a link",
        archive(
            symlink(b"localpasswd", b"/etc/passwd"), hardlink(b"dup", b"localpasswd", mode=0o666), PASSWD
        ),
        after=_all(_link("dup", "/etc/passwd"), _content("etc/passwd", b"inside\n")),
        escapes=True,
    ),
    Case(
        "32 hard link to a relative link",
        archive(symlink(b"a", b"../etc/passwd"), hardlink(b"b", b"a", mode=0o4777)),
        after=_link("b", "../etc/passwd"),
        escapes=True,
    ),
    Case(
        "33 hard link to an absolute link",
        archive(symlink(b"a", b"/etc/passwd"), hardlink(b"b", b"/a", mode=0o4777)),
        after=_link("b", "/etc/passwd"),
    ),
    Case(
        "34 absolute names all over",
        archive(symlink(b"/etc/evil", b"/etc/passwd"), hardlink(b"/evil", b"etc/evil", mode=0o777)),
        after=_all(_link("evil", "/etc/passwd"), _link("etc/evil", "/etc/passwd")),
        escapes=True,
    ),
    Case(
        "35 file over a link",
        archive(file(b"victim", b"evil")),
        before=_linked("victim", "/etc/somefile"),
        after=_content("victim", b"evil"),
        escapes=True,
    ),
    Case(
        "35b file over a fifo",
        archive(file(b"victim", b"x")),
        before=lambda layer: os.mkfifo(layer / "victim"),
        after=_content("victim", b"x"),
    ),
    Case(
        "35c file over a device",
        archive(file(b"victim", b"x")),
        before=lambda layer: os.mknod(layer / "victim", 0o20666, os.makedev(1, 5)),
        after=_content("victim", b"x"),
    ),
    Case(
        "35d file over a socket",
        archive(file(b"victim", b"x")),
        before=_socket,
        after=_content("victim", b"x"),
    ),
    Case(
        "35e file over a read-only file with another name",
        archive(file(b"victim", b"x")),
        before=_before(
            _with("other", b"kept"),
            lambda layer: (layer / "other").chmod(0o444),
            lambda layer: (layer / "victim").hardlink_to(layer / "other"),
        ),
        after=_all(_content("victim", b"x"), _content("other", b"kept")),
    ),
    Case(
        "36 overlayfs's whiteout as a device",
        archive(device(b"dev/victim", 0, 0)),
        error="archive.invalid",
        names="dev/victim",
    ),
    *(
        Case(
            f"36 device number {major}:{minor}",
            archive(device(b"dev/odd", major, minor)),
            error="archive.invalid",
            names="dev/odd",
        )
        for major, minor in ((-1, 0), (0, -1), (2**32, 0), (0, 2**32), (2**31, 5), (4096, 0), (0, 2**20))
    ),
    Case(
        "36 devices",
        archive(device(b"null", 1, 3, mode=0o666), device(b"sda", 8, 0, kind=b"4", mode=0o4660)),
        after=lambda layer, form: _devices(layer),
    ),
    Case(
        "37 marks of overlayfs as attributes",
        archive(
            *(
                entry(name, kind=kind, extended={b"SCHILY.xattr." + attribute: b"y"})
                for attribute in (
                    b"trusted.overlay.opaque",
                    b"trusted.overlay.redirect",
                    b"trusted.overlay.metacopy",
                    b"trusted.overlay.whiteout",
                    b"trusted.overlay.overlay.opaque",
                    b"user.overlay.opaque",
                    b"user.overlay.whiteout",
                    b"trusted.other",
                )
                for name, kind in ((b"d-" + attribute + b"/", b"5"), (b"f-" + attribute, b"0"))
            )
        ),
        after=lambda layer, form: _no_attributes(layer),
        warns=True,
    ),
    Case(
        "38 AUFS's stored hard links",
        archive(
            folder(b".wh..wh.plnk"),
            file(b".wh..wh.plnk/123", b"stored", mode=0o4640, uid=7, gid=8, mtime=1234567890),
            hardlink(b"one", b".wh..wh.plnk/123"),
            hardlink(b"sub/two", b"/.wh..wh.plnk/123"),
            file(b".wh..wh.aufs"),
            folder(b".wh..wh.orph"),
            file(b".wh..wh.orph/x", b"x"),
        ),
        after=lambda layer, form: _stored_links(layer),
    ),
    Case(
        "38b unknown stored hard link",
        archive(file(b".wh..wh.plnk/123", b"x"), hardlink(b"one", b".wh..wh.plnk/124")),
        error="archive.link",
        names="'one'",
    ),
]


def _devices(layer: Path) -> None:
    null, disk = (layer / "null").lstat(), (layer / "sda").lstat()
    assert null.st_mode == stat.S_IFCHR | 0o666
    assert null.st_rdev == os.makedev(1, 3)
    assert disk.st_mode == stat.S_IFBLK | 0o4660
    assert disk.st_rdev == os.makedev(8, 0)


def _no_attributes(layer: Path) -> None:
    names = os.listdir(layer)
    assert len(names) == 16
    assert not any(os.listxattr(layer / name) for name in names)


def _stored_links(layer: Path) -> None:
    for name in ("one", "sub/two"):
        status = (layer / name).lstat()
        assert (layer / name).read_bytes() == b"stored"
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o4640, 7, 8)
        assert status.st_mtime == 1234567890
    assert sorted(os.listdir(layer)) == ["one", "sub"]


# ---- marks -----------------------------------------------------------------------------------------

LOWER = _before(_with("d/lower", b"l"), _with("d/sub/lower", b"l"), _with("d/both", b"l"), _with("kept"))
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
        after=_all(
            _opaque("d"),
            _opaque("d/sub"),
            _content("d/sub/own", b"o"),
            _missing("d/sub/lower"),
            _missing("d/lower"),
        ),
    ),
    Case(
        "39g opaque mark alone",
        archive(OPQ),
        before=LOWER,
        after=_all(_opaque("d"), _missing("d/sub")),
    ),
    Case(
        "39h opaque mark behind a link",
        archive(file(b"localdir/own", b"o"), file(b"localdir/.wh..wh..opq")),
        before=_before(_with("dir/lower"), _linked("localdir", "/dir")),
        after=_all(_content("dir/own", b"o"), _missing("dir/lower")),
    ),
    Case(
        "40 whiteout, then a file",
        archive(file(b"d/.wh.both"), file(b"d/both", b"new")),
        before=LOWER,
        after=_all(_content("d/both", b"new"), _missing("d/.wh.both")),
    ),
    Case(
        "40b whiteout, then a directory",
        archive(file(b".wh.d"), folder(b"d"), file(b"d/own", b"o")),
        before=LOWER,
        after=_all(_opaque("d"), _missing("d/lower"), _content("d/own", b"o")),
    ),
    Case(
        "40c whiteout, then something in the directory",
        archive(file(b".wh.d"), file(b"d/sub/own", b"o")),
        before=LOWER,
        after=_all(
            _opaque("d"),
            _missing("d/lower"),
            _missing(".wh.d"),
            _content("d/sub/own", b"o"),
        ),
    ),
    Case(
        "40d file, then its whiteout",
        archive(folder(b"d"), file(b"d/own", b"o"), file(b"d/.wh.own")),
        after=_gone("d/own"),
    ),
    Case("40e whiteout of what is missing", archive(file(b"a/.wh.b")), after=_gone("a/b")),
    Case(
        "40f whiteout of a full directory", archive(file(b".wh.d", b"data")), before=LOWER, after=_gone("d")
    ),
    Case(
        "40g whiteout twice, and as a directory and a link",
        archive(file(b".wh.a"), folder(b".wh.a"), symlink(b".wh.b", b"/etc"), hardlink(b".wh.c", b"/etc/x")),
        after=_all(_gone("a"), _gone("b"), _gone("c")),
    ),
    Case(
        "40h whiteout beside a directory that has its mark's name",
        archive(file(b".wh.a/b", b"x"), file(b".wh.a")),
        after=lambda layer, form: deleted(layer, form, "a") if form is Form.AUFS else None,
    ),
    Case(
        "40i file, then a directory, over lower content",
        archive(file(b"a"), folder(b"a"), file(b"a/own", b"o")),
        after=_all(_opaque("a"), _content("a/own", b"o")),
    ),
    Case(
        "41 directory to file and back",
        archive(folder(b"a"), file(b"a/b"), file(b"a", b"f"), folder(b"c"), file(b"c", b"x"), folder(b"c")),
        after=_all(_content("a", b"f"), _folder("c")),
    ),
    Case(
        "41b directory to link to directory",
        archive(folder(b"a"), symlink(b"a", b"/etc"), folder(b"a"), file(b"a/somefile", b"x")),
        after=_content("a/somefile", b"x"),
    ),
    Case(
        "41c directory to link",
        archive(folder(b"a"), file(b"a/own"), symlink(b"a", b"/etc"), file(b"a/somefile", b"x")),
        after=_all(_link("a", "/etc"), _content("etc/somefile", b"x")),
    ),
    Case(
        "41d names twice",
        archive(file(b"a", b"1"), file(b"./a", b"2"), file(b"x/../a", b"3"), file(b"//a", b"4")),
        after=_content("a", b"4"),
    ),
    Case("41e a file whose name ends in a slash", archive(file(b"a/", b"1")), after=_content("a", b"1")),
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
        after=_content("a", b"x"),
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
        after=_gone("d"),
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
        after=_content("run/x", b"x"),
    ),
    Case(
        "50b absolute link as parent, its target nowhere",
        archive(symlink(b"var/run", b"/run/deep"), file(b"var/run/sub/x", b"x")),
        after=_content("run/deep/sub/x", b"x"),
    ),
    Case(
        "50c relative link as parent, its target nowhere",
        archive(symlink(b"var/run", b"../dir"), file(b"var/run/evil", b"x")),
        after=_content("dir/evil", b"x"),
    ),
    Case(
        "50d link out of the root as parent",
        archive(symlink(b"out", b"../dir"), file(b"out/evil", b"x")),
        after=_content("dir/evil", b"x"),
        escapes=True,
    ),
    Case(
        "51 link by way of /proc",
        archive(symlink(b"out", b"/proc/self/root"), file(b"out/dir/evil", b"x")),
        after=_content("proc/self/root/dir/evil", b"x"),
    ),
]


def _owner(path: Path, uid: int, gid: int) -> None:
    assert (path.stat().st_uid, path.stat().st_gid) == (uid, gid)


def _mtime(path: Path, time: int) -> None:
    assert path.stat().st_mtime_ns == time


CASES = [*BREAKOUTS, *MARKS, *EDGES]
