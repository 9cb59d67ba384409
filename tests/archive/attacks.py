"""Archives that attack, or that are hard to get right, and what has to come of each."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tests.archive.archives import archive, device, entry, file, folder, hardlink, symlink
from tests.archive.attack_case import (
    Case,
    before,
    differ,
    every,
    gone,
    has_content,
    is_folder,
    is_link,
    missing,
    same,
    with_file,
    with_folder,
    with_link,
    with_socket,
)
from tests.archive.attack_edges import EDGES
from tests.archive.attack_marks import MARKS

ETC = folder(b"etc")
PASSWD = file(b"etc/passwd", b"inside\n")

BREAKOUTS = [
    Case(
        "01 absolute link as parent",
        archive(ETC, symlink(b"localetc", b"/etc"), file(b"/localetc/unbroken", b"x")),
        after=has_content("etc/unbroken", b"x"),
        escapes=True,
    ),
    Case(
        "02 link through what does not exist",
        archive(ETC, symlink(b"localetc", b"/dummy/../etc"), file(b"/localetc/unbroken", b"x")),
        after=every(has_content("etc/unbroken", b"x"), missing("dummy")),
    ),
    Case(
        "02b link up and down again",
        archive(ETC, symlink(b"localetc", b"/tmp/../etc"), file(b"/localetc/unbroken", b"x")),
        after=has_content("etc/unbroken", b"x"),
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
        after=has_content("etc/unbroken", b"x"),
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
        after=has_content("etc/unbroken", b"x"),
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
        after=has_content("etc/emptied", b""),
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
        after=every(same("breakouts/mypasswd", "etc/passwd"), same("breakouts/again", "etc/passwd")),
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
        after=same("breakouts/mypasswd", "etc/passwd"),
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
            after=same("localpasswd", "etc/passwd"),
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
        after=same("localpasswd", "etc/passwd"),
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
        after=has_content("good", b"x"),
    ),
    Case(
        "15 link named sub/..",
        archive(
            ETC,
            PASSWD,
            symlink(b"localetc/sub/..", b"/etc/"),
            hardlink(b"/localetc/localpasswd", b"/etc/passwd"),
        ),
        after=every(same("etc/localpasswd", "etc/passwd"), is_link("localetc", "/etc/")),
    ),
    Case(
        "16 directory, then a link in it",
        archive(ETC, PASSWD, folder(b"localetc"), hardlink(b"localetc/localpasswd", b"etc/passwd")),
        after=same("localetc/localpasswd", "etc/passwd"),
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
            before=with_folder("localetc"),
            after=every(same("etc/newpasswd", "etc/passwd"), is_link("localetc", target.decode())),
            escapes=True,
        )
        for number, target in (("17", b"/etc"), ("18", b"../../etc"))
    ),
    Case(
        "19 link replaced by a directory",
        archive(ETC, PASSWD, folder(b"localetc", mode=0o700), hardlink(b"localetc/newpasswd", b"etc/passwd")),
        before=with_link("localetc", "/etc"),
        after=every(
            same("localetc/newpasswd", "etc/passwd"), is_folder("localetc"), missing("etc/newpasswd")
        ),
        escapes=True,
    ),
    Case(
        "20 linked file behind a link that becomes a directory",
        archive(folder(b"localetc"), file(b"localetc/localpasswd", b"new")),
        before=before(
            with_file("etc/passwd", b"inside\n"),
            with_link("localetc", "etc"),
            lambda layer: (layer / "etc/localpasswd").hardlink_to(layer / "etc/passwd"),
        ),
        after=every(
            differ("localetc/localpasswd", "etc/passwd"),
            has_content("etc/passwd", b"inside\n"),
            has_content("localetc/localpasswd", b"new"),
        ),
    ),
    *(
        Case(
            f"{number} whiteout of {meaning}",
            archive(ETC, PASSWD, file(name)),
            before=with_file("etc/kept"),
            after=has_content("etc/kept", b""),
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
        before=before(with_file("etc/passwd"), with_link("localetc", "/etc")),
        after=every(gone("localetc"), has_content("etc/passwd", b"")),
    ),
    Case(
        "26 whiteout behind a link",
        archive(file(b"localetc/.wh.somefile")),
        before=before(with_file("etc/somefile"), with_link("localetc", "/etc")),
        after=gone("etc/somefile"),
        escapes=True,
    ),
    Case(
        "27 file in a directory named like a whiteout",
        archive(file(b".wh.etc/somefile", b"non-empty")),
        before=with_file("etc/passwd"),
        after=every(has_content(".wh.etc/somefile", b"non-empty"), has_content("etc/passwd", b"")),
    ),
    Case(
        "28 whiteout behind a dangling link",
        archive(file(b"localetc/.wh.etc")),
        before=before(with_file("etc/passwd"), with_link("localetc", "/none")),
        after=has_content("etc/passwd", b""),
    ),
    Case(
        "29 whiteout up a level",
        archive(file(b"none/../.wh.etc")),
        before=with_file("etc/passwd"),
        after=gone("etc"),
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
        after=every(has_content("foo/tmp/f", b"3"), has_content("tmp/f", b"2"), is_folder("foo")),
    ),
    Case(
        "30b file behind a link to the root",
        archive(symlink(b"foo", b"/"), file(b"foo/tmp/f", b"2")),
        after=has_content("tmp/f", b"2"),
        escapes=True,
    ),
    Case(
        "31 hard link to a link",
        archive(
            symlink(b"localpasswd", b"/etc/passwd"), hardlink(b"dup", b"localpasswd", mode=0o666), PASSWD
        ),
        after=every(is_link("dup", "/etc/passwd"), has_content("etc/passwd", b"inside\n")),
        escapes=True,
    ),
    Case(
        "32 hard link to a relative link",
        archive(symlink(b"a", b"../etc/passwd"), hardlink(b"b", b"a", mode=0o4777)),
        after=is_link("b", "../etc/passwd"),
        escapes=True,
    ),
    Case(
        "33 hard link to an absolute link",
        archive(symlink(b"a", b"/etc/passwd"), hardlink(b"b", b"/a", mode=0o4777)),
        after=is_link("b", "/etc/passwd"),
    ),
    Case(
        "34 absolute names all over",
        archive(symlink(b"/etc/evil", b"/etc/passwd"), hardlink(b"/evil", b"etc/evil", mode=0o777)),
        after=every(is_link("evil", "/etc/passwd"), is_link("etc/evil", "/etc/passwd")),
        escapes=True,
    ),
    Case(
        "35 file over a link",
        archive(file(b"victim", b"evil")),
        before=with_link("victim", "/etc/somefile"),
        after=has_content("victim", b"evil"),
        escapes=True,
    ),
    Case(
        "35b file over a fifo",
        archive(file(b"victim", b"x")),
        before=lambda layer: os.mkfifo(layer / "victim"),
        after=has_content("victim", b"x"),
    ),
    Case(
        "35c file over a device",
        archive(file(b"victim", b"x")),
        before=lambda layer: os.mknod(layer / "victim", 0o20666, os.makedev(1, 5)),
        after=has_content("victim", b"x"),
    ),
    Case(
        "35d file over a socket",
        archive(file(b"victim", b"x")),
        before=with_socket,
        after=has_content("victim", b"x"),
    ),
    Case(
        "35e file over a read-only file with another name",
        archive(file(b"victim", b"x")),
        before=before(
            with_file("other", b"kept"),
            lambda layer: (layer / "other").chmod(0o444),
            lambda layer: (layer / "victim").hardlink_to(layer / "other"),
        ),
        after=every(has_content("victim", b"x"), has_content("other", b"kept")),
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


CASES = [*BREAKOUTS, *MARKS, *EDGES]
