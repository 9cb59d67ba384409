"""Random trees, made on disk and read back in a form that can be compared.

A tree is a mapping of relative paths to nodes; two paths with the same node object are hard links. Every
tree tells which of the rarer things it holds (:func:`features`), so that a test can assert that they came.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

GIB = 1 << 30
SECOND = 1_000_000_000
CAPABILITY = b"security.capability"

Tree = dict[bytes, "Node"]


@dataclass(frozen=True, eq=False)
class Node:
    """One inode. ``kind`` is a letter of ``ls -l``: - d l p c b."""

    kind: str
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0  # nanoseconds
    size: int = 0
    data: tuple[tuple[int, bytes], ...] = ()  # (offset, content); the rest is hole
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """What is on disk at one path."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    content: str
    target: bytes
    device: int
    xattrs: tuple[tuple[bytes, bytes], ...]
    links: tuple[bytes, ...]  # all paths of the inode
    extents: tuple[tuple[int, int], ...]  # (offset, length) of what is no hole; empty unless asked for


def file(content: bytes = b"", **attributes: object) -> Node:
    """A regular file without holes."""
    data = ((0, content),) if content else ()
    return Node("-", size=len(content), data=data, **attributes)  # type: ignore[arg-type]


def directory(mode: int = 0o755, **attributes: object) -> Node:
    """A directory."""
    return Node("d", mode, **attributes)  # type: ignore[arg-type]


def symlink(target: bytes, **attributes: object) -> Node:
    """A symbolic link."""
    return Node("l", 0o777, target=target, **attributes)  # type: ignore[arg-type]


# ---- on disk ---------------------------------------------------------------------------------------


def make(root: Path, tree: Tree) -> None:
    """Create ``tree`` in the existing directory ``root``; metadata exactly, as far as root may."""
    made: dict[Node, bytes] = {}
    for path, node in sorted(tree.items()):
        place = os.fsencode(root) + b"/" + path
        if node in made:
            os.link(made[node], place, follow_symlinks=False)
            continue
        made[node] = place
        _create(place, node)
        os.chown(place, node.uid, node.gid, follow_symlinks=False)
        for name, value in node.xattrs.items():
            os.setxattr(place, name, value, follow_symlinks=False)
        if node.kind != "l":
            os.chmod(place, node.mode)
    for path, node in sorted(tree.items(), reverse=True):  # children first: they change their parents
        place = os.fsencode(root) + b"/" + path
        os.utime(place, ns=(node.mtime, node.mtime), follow_symlinks=False)


def _create(place: bytes, node: Node) -> None:
    match node.kind:
        case "d":
            os.mkdir(place)
        case "l":
            os.symlink(node.target, place)
        case "p":
            os.mkfifo(place)
        case "c" | "b":
            kind = stat.S_IFCHR if node.kind == "c" else stat.S_IFBLK
            os.mknod(place, kind | 0o600, os.makedev(*node.device))
        case _:
            with open(place, "xb") as out:
                out.truncate(node.size)
                for offset, content in node.data:
                    out.seek(offset)
                    out.write(content)


def scan(root: Path, *, seconds: bool = False, extents: bool = False) -> dict[bytes, Seen]:
    """Everything below ``root``, the root itself excepted, by relative path.

    ``seconds`` cuts times to whole seconds; ``extents`` tells where files have holes. Attributes that never
    leave with a layer (``trusted.*``, SELinux's) are left out.
    """
    found: dict[bytes, Seen] = {}
    groups: dict[tuple[int, int], list[bytes]] = {}
    statuses = dict(_walk(os.fsencode(root), b""))
    for path, status in statuses.items():
        if not stat.S_ISDIR(status.st_mode):
            groups.setdefault((status.st_dev, status.st_ino), []).append(path)
    for path, status in statuses.items():
        place = os.fsencode(root) + b"/" + path
        mtime = status.st_mtime_ns
        regular = stat.S_ISREG(status.st_mode)
        content, places = _content(place) if regular else ("", ())
        is_directory = stat.S_ISDIR(status.st_mode)
        found[path] = Seen(
            kind=stat.filemode(status.st_mode)[0],
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            mtime=mtime - mtime % SECOND if seconds else mtime,
            size=0 if is_directory else status.st_size,
            content=content,
            target=os.readlink(place) if stat.S_ISLNK(status.st_mode) else b"",
            device=status.st_rdev,
            xattrs=tuple(sorted(_xattrs(place))),
            links=() if is_directory else tuple(sorted(groups[status.st_dev, status.st_ino])),
            extents=places if extents else (),
        )
    return found


def _walk(root: bytes, below: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    for entry in sorted(os.scandir(os.path.join(root, below)), key=lambda entry: entry.name):
        path = os.path.join(below, entry.name)
        yield path, entry.stat(follow_symlinks=False)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root, path)


def _xattrs(place: bytes) -> Iterator[tuple[bytes, bytes]]:
    for name in os.listxattr(place, follow_symlinks=False):
        if not name.startswith(("trusted.", "security.selinux", "user.overlay.")):
            yield os.fsencode(name), os.getxattr(place, name, follow_symlinks=False)


def _content(place: bytes) -> tuple[str, tuple[tuple[int, int], ...]]:
    """A digest of a file's content that needs no time for holes, and its extents of data."""
    digest = hashlib.sha256()
    extents = []
    with open(place, "rb", buffering=0) as data:
        end = position = os.fstat(data.fileno()).st_size
        for start, stop in _extents(data.fileno(), end):
            extents.append((start, stop - start))
            data.seek(start)
            for position in range(start, stop, 4096):
                block = data.read(min(4096, stop - position))
                if block.strip(b"\0"):
                    digest.update(b"%d:%b" % (position, block))
    return digest.hexdigest(), tuple(extents)


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:
            return
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, position


# ---- random trees ----------------------------------------------------------------------------------

_COMPONENTS = st.one_of(
    st.sampled_from([b"a", b"b", b"file", b"usr", b"lib", b"x.txt", b"-rf", b"..a", b".hidden", b" "]),
    st.text("abcXYZ09_-.", min_size=1, max_size=12).map(str.encode),
    st.sampled_from(["ü", "日本語", "na\u0308me"]).map(str.encode),
    st.sampled_from([b"\xff\xfe", b"caf\xe9", b"\x80", b"new\nline", b"back\\slash", b"tab\t", b"qu'o\"te"]),
    # Up to what leaves room for ".wh.": AUFS cannot delete a longer name.
    st.integers(min_value=101, max_value=251).map(lambda length: b"n" * length),
).filter(lambda name: name not in (b".", b"..") and not name.startswith(b".wh."))

_TIMES = st.one_of(
    st.integers(min_value=0, max_value=2_000_000_000).map(lambda seconds: seconds * SECOND),
    st.integers(min_value=0, max_value=2_000_000_000 * SECOND),
    st.sampled_from([0, 1, 999_999_999, 2**31 * SECOND, (2**33 + 5) * SECOND + 7]),
)
_IDS = st.sampled_from([0, 0, 1, 1000, 65534, 0o7777777, 0o7777777 + 1, 2**31, 2**32 - 2])
_MODES = st.sampled_from([0o644, 0o755, 0o600, 0, 0o777, 0o4755, 0o2755, 0o1777, 0o7777, 0o444])
_USER_XATTRS = st.dictionaries(
    # GNU tar writes "%" and bsdtar most of what is no letter in names of attributes in ways of their own.
    st.sampled_from([b"user.a", b"user.mime_type", b"user.x.y", b"user." + b"n" * 200]),
    # An empty value means "no such record" to Go.
    st.binary(min_size=1, max_size=40) | st.just(b"line\nwith=equals\0"),
    max_size=2,
)
_CAPABILITIES = st.sampled_from(
    [
        {},
        {},
        {CAPABILITY: b"\x01\0\0\x02\0\x20\0\0" + bytes(12)},  # cap_net_raw=ep
        {CAPABILITY: b"\0\0\0\x02\0\x04\0\0" + bytes(12)},  # cap_net_bind_service=p
    ]
)


@st.composite
def _files(draw: st.DrawFn, *, holes: bool) -> Node:
    if holes and draw(st.booleans()):
        size = draw(st.sampled_from([9 * GIB + 17, 8 * GIB + 1, 1 << 20, 300_000, 8 * GIB - 1]))
        starts = draw(st.lists(st.integers(0, (size - 1) >> 12), max_size=3, unique=True))
        data = tuple((start << 12, b"data%d" % start) for start in sorted(starts))
        data = tuple((offset, content[: size - offset]) for offset, content in data)
        return _with_metadata(draw, "-", size=size, data=data)
    sizes = st.sampled_from([0, 1, 511, 512, 513, 4096, 10_240, 1 << 20, (1 << 20) + 1])
    content = draw(st.binary(max_size=64)) or bytes(range(1, 252)) * (draw(sizes) // 251 + 1)
    content = content[: draw(sizes)] if len(content) > 64 else content
    return _with_metadata(draw, "-", size=len(content), data=((0, content),) if content else ())


def _with_metadata(draw: st.DrawFn, kind: str, **attributes: object) -> Node:
    xattrs: dict[bytes, bytes] = {}
    if kind in "-d":
        xattrs.update(draw(_USER_XATTRS))
    if kind == "-":
        xattrs.update(draw(_CAPABILITIES))
    return Node(
        kind,
        mode=0o777 if kind == "l" else draw(_MODES),
        uid=draw(_IDS),
        gid=draw(_IDS),
        mtime=draw(_TIMES),
        xattrs=xattrs,
        **attributes,  # type: ignore[arg-type]
    )


@st.composite
def _other(draw: st.DrawFn, kind: str) -> Node:
    if kind == "l":
        target = draw(_COMPONENTS | st.sampled_from([b"/etc/passwd", b"../../..", b"t" * 101, b"d/" * 200]))
        return _with_metadata(draw, kind, target=target)
    if kind == "p":
        return _with_metadata(draw, kind)
    return _with_metadata(draw, kind, device=draw(st.sampled_from([(1, 3), (8, 0), (259, 70_000)])))


@st.composite
def trees(draw: st.DrawFn, *, holes: bool = False, full: bool = False) -> Tree:
    """A tree of up to a dozen entries; ``holes`` adds sparse files, some above 8 GiB; ``full``: not a few."""
    tree: Tree = {}
    directories = [b""]
    for _ in range(draw(st.integers(2 if full else 0, 4))):
        path = _new_path(draw, tree, directories)
        tree[path] = _with_metadata(draw, "d")
        directories.append(path)
    for _ in range(draw(st.integers(3 if full else 0, 6))):
        tree[_new_path(draw, tree, directories)] = draw(_files(holes=holes))
    for kind in sorted(draw(st.sets(st.sampled_from("lpcb")))):  # as a set, so that none is rare
        tree[_new_path(draw, tree, directories)] = draw(_other(kind))
    inodes = [path for path, node in tree.items() if node.kind != "d"]
    for _ in range(draw(st.integers(0, 3)) if inodes else 0):
        tree[_new_path(draw, tree, directories)] = tree[draw(st.sampled_from(inodes))]
    return tree


def _new_path(draw: st.DrawFn, tree: Tree, directories: Sequence[bytes]) -> bytes:
    parent = draw(st.sampled_from(directories))
    name = draw(_COMPONENTS)
    path = parent + b"/" + name if parent else name
    while path in tree:
        path = path[:-2] + b"~" if len(path) - path.rfind(b"/") > 250 else path + b"~"
    return path


def features(tree: Tree) -> set[str]:
    """Which of the rarer things the tree holds, by name."""
    found = set()
    parents: dict[Node, set[bytes]] = {}
    for path, node in tree.items():
        if node.kind != "d":
            parents.setdefault(node, set()).add(path.rpartition(b"/")[0])
        if len(path) > 100:
            found.add("name over 100 bytes")
        if len(path.rpartition(b"/")[2]) > 100:
            found.add("component over 100 bytes")
        if "\u0308" in (path + node.target).decode(errors="replace"):
            found.add("decomposed name")
        try:
            path.decode()
        except UnicodeDecodeError:
            found.add("name that is not UTF-8")
        if node.size > 8 * GIB:
            found.add("size over 8 GiB")
        if CAPABILITY in node.xattrs:
            found.add("capability")
        if max(node.uid, node.gid) > 0o7777777:
            found.add("owner over 2097151")
        if node.mtime % SECOND:
            found.add("fraction of a second")
        if node.mode & 0o6000 and node.kind == "-":
            found.add("set-id file")
        found.add({"l": "symlink", "p": "fifo", "c": "device", "b": "device"}.get(node.kind, "plain"))
    if any(len(directories) > 1 for directories in parents.values()):
        found.add("hard link across directories")
    return found
