"""An extractor that trusts the archive: what the attacks are good for, seen by their success.

It joins names as strings, follows every link and goes on after errors, as the extractors did that the
advisories are about. Never run it outside of a :class:`tests.archive.world.World`.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tarfile


def extract(archive: bytes, root: str) -> None:
    """Extract ``archive`` into ``root``, and wherever else it says."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            with contextlib.suppress(OSError):
                _entry(tar, member, root)


def _entry(tar: tarfile.TarFile, member: tarfile.TarInfo, root: str) -> None:
    path = f"{root}/{member.name}"
    parent, base = os.path.split(path)
    os.makedirs(parent, exist_ok=True)
    if base.startswith(".wh."):
        deleted = os.path.join(parent, base[len(".wh.") :])
        if os.path.isdir(deleted) and not os.path.islink(deleted):
            shutil.rmtree(deleted)
        else:
            os.unlink(deleted)
        return
    if member.isdir():
        os.makedirs(path, exist_ok=True)
    elif member.issym():
        if os.path.lexists(path):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        os.symlink(member.linkname, path)
        return
    elif member.islnk():
        if os.path.lexists(path):
            os.unlink(path)
        os.link(os.path.join(root, member.linkname), path)
    elif member.ischr() or member.isblk():
        os.mknod(path, 0o20600 if member.ischr() else 0o60600, os.makedev(member.devmajor, member.devminor))
    elif member.isfifo():
        os.mkfifo(path)
    else:
        content = tar.extractfile(member)
        with open(path, "wb") as out:
            out.write(content.read() if content else b"")
    for key, value in member.pax_headers.items():
        if key.startswith("SCHILY.xattr."):
            name = key[len("SCHILY.xattr.") :]
            os.setxattr(path, name, value.encode("utf-8", "surrogateescape"))
    os.chmod(path, member.mode)
    os.utime(path, (member.mtime, member.mtime))
