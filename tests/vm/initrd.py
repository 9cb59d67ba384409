"""The first user space of the guest: a few modules and a script that turns the host's root into the guest's.

The host's root is mounted read-only over 9p under an overlay on tmpfs, so the guest sees every program and
file of the host and can write anywhere without the host noticing. It is entered by switch_root and not by
chroot: in a chroot the kernel refuses unshare(CLONE_NEWUSER).
"""

from __future__ import annotations

import lzma
import shlex
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
MODULES = ("9p", "9pnet_virtio", "virtio_pci", "virtio_console", "virtio_blk", "overlay")

INIT = """\
#!/busybox sh
set -e
/busybox mkdir -p /proc /sys /dev /host /rw /root
/busybox mount -t proc proc /proc
/busybox mount -t sysfs sysfs /sys
/busybox mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do /busybox insmod "$module"; done
/busybox mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose host /host
/busybox mount -t tmpfs -o size=75% tmpfs /rw
/busybox mkdir /rw/upper /rw/work
/busybox mount -t overlay -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work overlay /root
# Fresh ones: through 9p, the directories of the host show the host's processes and devices.
/busybox umount /proc
/busybox mount -t proc proc /root/proc
/busybox mount -o move /sys /root/sys
/busybox mount -o move /dev /root/dev
/busybox mount -t tmpfs tmpfs /root/run
/busybox mkdir /root/run/share
/busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none share /root/run/share
/busybox ifconfig lo 127.0.0.1 up
. /config
exec /busybox switch_root /root /bin/sh "$GUEST_INIT"
"""


def build(kernel: Path, config: Mapping[str, str]) -> bytes:
    """The initrd for the modules below ``kernel``/lib/modules; its init has ``config`` as environment."""
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in config.items())
    files = [
        ("init", 0o755, INIT.encode()),
        ("config", 0o644, exports.encode()),
        ("busybox", 0o755, BUSYBOX.read_bytes()),
    ]
    for number, module in enumerate(_load_order(kernel)):
        content = module.read_bytes()
        if module.suffix == ".xz":  # in newer releases; busybox does not unpack it
            content = lzma.decompress(content)
        files.append((f"modules/{number:02}-{module.name.removesuffix('.xz')}", 0o644, content))
    archive = _entry("modules", stat.S_IFDIR | 0o755, b"")
    archive += b"".join(_entry(name, stat.S_IFREG | mode, content) for name, mode, content in files)
    return archive + _entry("TRAILER!!!", 0, b"")


def _load_order(kernel: Path) -> list[Path]:
    version = next((kernel / "lib/modules").iterdir()).name
    command = ["modprobe", "--dirname", str(kernel), "--set-version", version, "--show-depends"]
    order: dict[Path, None] = {}
    for name in MODULES:
        shown = subprocess.run([*command, name], check=True, capture_output=True, text=True).stdout
        for line in shown.splitlines():
            word, _, path = line.partition(" ")
            if word == "insmod":
                order[Path(path.strip())] = None
    return list(order)


def _entry(name: str, mode: int, content: bytes) -> bytes:
    """One file in cpio's "newc" form (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return _padded(header) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
