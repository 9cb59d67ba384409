"""Docker's --user, resolved in the root's own files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerlimit.sandbox._spec import Failure
from layerlimit.sandbox._users import MAX_FILE, Account, resolve

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin

# a comment
broken:x:notanumber:5::/broken:
negative:x:-1:-1::/:
wide:x:4294967295:5::/:
short:x
nohome:x:50:51
web:x:1000:1001:Web,,,:/srv/web:/bin/sh
2000:x:1002:1002::/named2000:/bin/sh
other:x:2000:2001::/other:/bin/sh
twin:x:1000:9:::
"""
GROUP = """\
root:x:0:
web:x:1001:
disk:x:6:web,daemon
audio:x:29:daemon,web,web
broken:x:x:web
short
"""

Resolve = Callable[[str], Account]


@pytest.fixture
def who(tmp_path: Path) -> Iterator[Resolve]:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    root = os.open(tmp_path, os.O_PATH)
    yield lambda user: resolve(root, user.encode())
    os.close(root)


@pytest.mark.parametrize(
    ("user", "uid", "gid", "groups", "home"),
    [
        ("", 0, 0, (0,), b"/root"),
        ("root", 0, 0, (0,), b"/root"),
        ("0", 0, 0, (0,), b"/root"),
        ("web", 1000, 1001, (1001, 6, 29), b"/srv/web"),
        ("1000", 1000, 1001, (1001, 6, 29), b"/srv/web"),
        ("web:audio", 1000, 29, (29,), b"/srv/web"),
        ("web:77", 1000, 77, (77,), b"/srv/web"),
        ("77:77", 77, 77, (77,), b"/"),
        ("77", 77, 0, (0,), b"/"),
        ("77:disk", 77, 6, (6,), b"/"),
        ("nohome", 50, 51, (51,), b"/"),
        ("2000", 1002, 1002, (1002,), b"/named2000"),
        ("twin", 1000, 9, (9,), b"/"),
        ("2147483647", 2147483647, 0, (0,), b"/"),
    ],
)
def test_who_is_meant(
    who: Resolve, user: str, uid: int, gid: int, groups: tuple[int, ...], home: bytes
) -> None:
    assert who(user) == Account(uid, gid, groups, home)


@pytest.mark.parametrize(
    "user",
    [
        *(":", "web:", ":web", "nobody-here", "web:nobody-here", "broken", "negative", "wide", "short"),
        *("-1", "+1", "4294967295", "2147483648", "99999999999", "1000 ", "1000\n", "\u0661"),
    ],
)
def test_who_is_not_there(who: Resolve, user: str) -> None:
    with pytest.raises(Failure):
        who(user)


def test_a_root_without_the_files_knows_numbers_and_root(tmp_path: Path) -> None:
    root = os.open(tmp_path, os.O_PATH)
    try:
        assert resolve(root, b"") == Account(0, 0, (0,), b"/")
        assert resolve(root, b"5:6") == Account(5, 6, (6,), b"/")
        with pytest.raises(Failure, match="no user 'root'"):
            resolve(root, b"root")
    finally:
        os.close(root)


def test_hostile_files_are_errors_and_are_not_followed_out(tmp_path: Path, who: Resolve) -> None:
    passwd = tmp_path / "etc/passwd"
    passwd.write_bytes(b"\n" * (MAX_FILE + 1))
    with pytest.raises(Failure) as too_large:
        who("web")
    assert too_large.value.fields["text"] == "File too large"
    passwd.unlink()
    passwd.mkdir()
    with pytest.raises(Failure) as directory:
        who("web")
    assert directory.value.fields["text"] == "not a regular file"
    passwd.rmdir()
    passwd.symlink_to("/etc/passwd")  # a loop, in this root
    with pytest.raises(Failure) as loop:
        who("root")
    assert "Too many levels" in str(loop.value.fields["text"])
    passwd.unlink()
    (tmp_path / "etc/real").write_text("web:x:7:7::/:\n")
    passwd.symlink_to("../../../../etc/real")
    assert who("web").uid == 7


def test_names_are_bytes(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_bytes(b"\xff\xfe:x:8:9::/h\xff:\n")
    root = os.open(tmp_path, os.O_PATH)
    try:
        assert resolve(root, b"\xff\xfe") == Account(8, 9, (9,), b"/h\xff")
    finally:
        os.close(root)
