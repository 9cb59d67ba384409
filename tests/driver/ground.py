"""A host disk of one's own for a test, and pictures of what is on it, mounted from it and attached to it.

The disk is an ext4 in memory: a loop device on a tmpfs. fsync is cheap there, its free space is nobody
else's, and to the driver it is a disk like any other.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import subprocess
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from layerlimit import Driver
from tests import scratch


def run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program of the machine; its output is in the error when it fails."""
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done


@contextlib.contextmanager
def host_disk(directory: Path, *, mib: int = 2048) -> Iterator[Path]:
    """An empty ext4 of ``mib`` MiB, mounted below ``directory`` while the block lasts."""
    memory, disk = directory / "memory", directory / "disk"
    memory.mkdir()
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={mib + 64}m", "ground", memory)
    try:
        image = memory / "image"
        with image.open("wb") as file:
            file.truncate(mib << 20)
        run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard", image)
        run("mount", "-o", "loop,discard", image, disk)
        yield disk
    finally:
        scratch.release(disk)
        scratch.release(memory)


def picture(root: Path) -> frozenset[str]:
    """Every file of the root by name, holds with what they say, its mounts and its loop devices.

    What lies under a mount or behind one is not seen. Left out are the cache of templates, and what a layer
    that exists gets with its first mount and keeps.
    """
    device = os.lstat(root).st_dev
    layers = set(os.listdir(root / "layers")) if (root / "layers").is_dir() else set()
    lines = set()
    for where, directories, names in os.walk(root):
        here = Path(where).relative_to(root)
        for name in names:
            lines.add(_describe(root, here / name))
        for name in list(directories):
            path = here / name
            status = os.lstat(root / path)
            if status.st_dev != device or os.path.ismount(root / path):
                directories.remove(name)
            elif _is_kept(path, layers):
                continue
            lines.add(_describe(root, path))
    lines = {line for line in lines if not re.fullmatch(r"- templates/[^/]*\.ext4|d templates", line)}
    lines |= {f"mounted {point.relative_to(root)}" for point in scratch.mounts_below(root)}
    for loop in scratch.loops_below(root):
        with contextlib.suppress(OSError, ValueError):  # gone meanwhile, or on somebody else's image
            backing = Path(f"/sys/block/{Path(loop).name}/loop/backing_file").read_text().strip()
            lines.add(f"attached {Path(backing).relative_to(root)}")
    return frozenset(lines)


def settled_picture(root: Path, wanted: Collection[frozenset[str]], patience: float = 5.0) -> frozenset[str]:
    """The picture, once it is one of ``wanted`` or ``patience`` seconds are over.

    The kernel ends a loop device a little after the last unmount; a process of anybody's that has a copy of
    our mounts, having just made a mount namespace, delays it further.
    """
    deadline = time.monotonic() + patience
    while (found := picture(root)) not in wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def picture_at_rest(root: Path, patience: float = 5.0) -> frozenset[str]:
    """The picture, once every attached image is a mounted one."""
    deadline = time.monotonic() + patience
    while True:
        found = picture(root)
        attached = {Path(line.split()[1]).name for line in found if line.startswith("attached ")}
        mounted = {Path(line.split()[1]).name for line in found if line.startswith("mounted img/")}
        if attached == {f"{id}.ext4" for id in mounted} or time.monotonic() > deadline:
            return found
        time.sleep(0.01)


def _is_kept(path: Path, layers: set[str]) -> bool:
    match path.parts:
        case ("work", id) | ("work", id, "work"):
            return id in layers
        case ("mnt", key) if key.endswith("@ro"):
            return key.removesuffix("@ro") in layers
    return False


def _describe(root: Path, path: Path) -> str:
    mode = os.lstat(root / path).st_mode
    line = f"{stat.filemode(mode)[0]} {path}"
    if path.parts[0] == "holds" and stat.S_ISREG(mode):
        line += ": " + " ".join((root / path).read_text().split()[1:])
    return line


def difference(found: frozenset[str], wanted: frozenset[str]) -> str:
    """In words: what is there and should not be, and what is missing."""
    left = [f"  left: {line}" for line in sorted(found - wanted)]
    return "\n".join(left + [f"  lacks: {line}" for line in sorted(wanted - found)])


def remove_everything(driver: Driver) -> None:
    """Unmount all layers and remove them, children before parents."""
    driver.cleanup()
    while ids := driver.ids():
        parents = {driver.parent(id) for id in ids}
        for id in set(ids) - parents:
            driver.remove(id)


def stray_files(root: Path) -> list[str]:
    """Regular files on the host disk where only content of unlimited layers, images and records belong.

    A limited layer's bare directories, those its mounts cover, must stay empty whatever happens: every file
    below ``mnt/``, ``img/`` and, for a limited layer, ``diff/`` and ``work/`` that is on the root's own file
    system escaped a limit.
    """
    device = os.lstat(root).st_dev
    limited = {name.removesuffix(".ext4") for name in os.listdir(root / "containers_quota")}
    limited |= {id for id in os.listdir(root / "layers") if (root / "img" / id).exists()}
    tops = [root / "mnt", root / "img"]
    tops += [root / kind / id for kind in ("diff", "work") for id in limited]
    found = []
    for top in tops:
        for where, directories, names in os.walk(top):
            if os.lstat(where).st_dev != device:
                directories.clear()
                continue
            found += [str(Path(where, name).relative_to(root)) for name in names]
    return found
