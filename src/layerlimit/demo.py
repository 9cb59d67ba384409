"""``python -m layerlimit.demo``: a real root filesystem meets its limit.

Uses the command as a user would, and prints each command line with what it really printed. Everything lies
in a private directory, ``/var/tmp/layerlimit-demo.<random>``, so that several demos do not see each other; it
is flocked while its demo lives, and whatever a killed one left is cleaned up by the next.

ROOTFS=file.tar   the root filesystem to import; without it, scripts/rootfs of the checkout makes a Debian
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

from layerlimit.driver import Driver
from layerlimit.errors import Error, PermissionDenied
from layerlimit.limit import MIB, format_size
from layerlimit.linux import mountinfo
from layerlimit.linux.files import try_flock

_BASE: Final = Path("/var/tmp")
_PREFIX: Final = "layerlimit-demo."
_ROOTFS_SCRIPT: Final = Path(__file__).parents[2] / "scripts" / "rootfs"
_PATIENCE: Final = 30  # seconds that an interrupted command has to undo what it did


class Failed(Exception):
    """A step did not do what the demo is there to show."""


class _Ended(BaseException):
    """SIGTERM or SIGHUP, as an exception: everything on the way is undone."""


def main() -> int:
    """Play the demo; 0 when every step did what it should."""

    def end(number: int, _: FrameType | None) -> None:
        raise _Ended(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    try:
        if os.geteuid() != 0:
            raise PermissionDenied("the demo mounts file systems, which only root may do", hint="use sudo")
        rootfs = _rootfs()
        _sweep()
        with _private_directory() as directory:
            _play(directory, rootfs)
    except (Error, Failed) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except _Ended as ended:
        return 128 + int(ended.args[0])
    return 0


# -- the play --------------------------------------------------------------------------------------


def _play(directory: Path, rootfs: Path) -> None:
    started = time.monotonic()
    root = directory / "root"
    stage = _Stage(root)
    try:
        stage.title("A root filesystem becomes a base, and gets a writable layer of 256 MiB")
        stage.tell(f"$ export LAYERLIMIT_ROOT={root}")
        stage.layerlimit("import", "debian", str(rootfs))
        stage.layerlimit("create", "web", "--parent", "debian", "--limit", "256MiB")
        stage.layerlimit("run", "web", "--", "df", "-h", "/")

        stage.title("Something inside runs wild, until the kernel says no")
        free = _free(directory)
        stage.layerlimit(
            "run", "web", "--", "dd", "if=/dev/zero", "of=/var/log/runaway.log", "bs=1M", expect=1
        )
        stage.layerlimit("run", "web", "--", "df", "-h", "/")
        stage.layerlimit("df", "web")
        _check_host(stage, directory, free)

        stage.title("It gets more room and goes on")
        stage.layerlimit("resize", "web", "512MiB")
        stage.layerlimit(
            "run", "web", "--", "dd", "if=/dev/zero", "of=/var/log/more.log", "bs=1M", "count=100"
        )
        stage.layerlimit(
            "run", "web", "--", "sh", "-c", "rm /var/log/runaway.log /etc/issue; date >>/etc/motd"
        )
        stage.layerlimit("df", "web")

        stage.title("What it changed, and the same as a layer tar")
        stage.layerlimit("changes", "web")
        stage.layerlimit("diff", "web", "--output", str(directory / "web.tar"))
        stage.run("tar", "--list", "--verbose", "--file", str(directory / "web.tar"))

        stage.title("Frozen under a new name, it is the base of others")
        stage.layerlimit("commit", "web", "web:2")
        stage.layerlimit("create", "test", "--parent", "web:2", "--limit", "64MiB")
        stage.layerlimit("ls")
        stage.layerlimit("check")

        stage.title("Nothing stays behind")
        stage.layerlimit("rm", "test", "web:2", "debian")
        stage.layerlimit("ls")
        left = [entry.mount_point for entry in mountinfo.below(directory, mountinfo.read())]
        if left:
            raise Failed(f"still mounted: {left}")
        stage.tell(f"\nDone in {time.monotonic() - started:.1f} seconds.")
    finally:
        stage.stop()


def _check_host(stage: _Stage, directory: Path, free_before: int) -> None:
    entry = stage.layerlimit_json("inspect", "web")[0]
    on_disk, most = entry["limiter"]["host_bytes"], entry["limiter"]["file_bytes"]
    if not 256 * MIB <= on_disk <= most:
        raise Failed(f"the image takes {on_disk} bytes of the host's disk, of {most} it may have")
    stage.tell(
        f"\nThe host had {format_size(free_before)} free and has {format_size(_free(directory))}: "
        f"the layer takes {format_size(on_disk)} and can never take more than {format_size(most)}."
    )


def _free(directory: Path) -> int:
    space = os.statvfs(directory)
    return space.f_bavail * space.f_frsize


class _Stage:
    """Runs commands where people see it."""

    def __init__(self, root: Path) -> None:
        self._environment = {**os.environ, "LAYERLIMIT_ROOT": str(root)}
        self._running: subprocess.Popen[bytes] | None = None

    def tell(self, text: str) -> None:
        print(text, flush=True)

    def title(self, text: str) -> None:
        self.tell(f"\n=== {text}")

    def layerlimit(self, *words: str, expect: int = 0) -> None:
        """Run ``layerlimit`` as from a shell, and show it."""
        self._shown(("layerlimit", *words), (sys.executable, "-m", "layerlimit", *words), expect)

    def layerlimit_json(self, *words: str) -> Any:
        """What ``layerlimit`` says, for a program."""
        command = (sys.executable, "-m", "layerlimit", "--format", "json", *words)
        done = subprocess.run(command, env=self._environment, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            raise Failed(f"exit code {done.returncode} from: {shlex.join(words)}")
        return json.loads(done.stdout)

    def run(self, *command: str) -> None:
        """Run a program of the host, and show it."""
        self._shown(command, command, 0)

    def _shown(self, words: tuple[str, ...], command: tuple[str, ...], expect: int) -> None:
        self.tell(f"\n$ {shlex.join(words)}")
        with subprocess.Popen(command, env=self._environment, stderr=subprocess.STDOUT) as process:
            self._running = process
            code = process.wait()
        self._running = None
        if code:
            self.tell(f"(exit code {code})")
        if code != expect:
            raise Failed(f"exit code {code} instead of {expect} from: {shlex.join(words)}")

    def stop(self) -> None:
        """Let a command that was interrupted undo what it did."""
        if self._running is None:
            return
        self._running.terminate()
        try:
            self._running.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._running.kill()
            self._running.wait()


# -- what it needs ---------------------------------------------------------------------------------


def _rootfs() -> Path:
    given = os.environ.get("ROOTFS")
    if given:
        if not Path(given).is_file():
            raise Failed(f"ROOTFS={given} is not a file")
        return Path(given).absolute()
    if not _ROOTFS_SCRIPT.is_file():
        raise Failed("without a checkout, give a root filesystem with ROOTFS=file.tar")
    done = subprocess.run([_ROOTFS_SCRIPT], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise Failed("there is no root filesystem; give one with ROOTFS=file.tar")
    return Path(os.fsdecode(done.stdout.rstrip(b"\n")))


@contextlib.contextmanager
def _private_directory() -> Iterator[Path]:
    with _sweeping():
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_BASE))
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try_flock(fd)
    try:
        yield directory
    finally:
        _clear(directory)
        os.close(fd)


def _sweep() -> None:
    """Clear away what killed demos left."""
    with _sweeping():
        for directory in _BASE.glob(f"{_PREFIX}*"):
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    if os.fstat(fd).st_uid == os.geteuid() and try_flock(fd):
                        _clear(directory)
                finally:
                    os.close(fd)


@contextlib.contextmanager
def _sweeping() -> Iterator[None]:
    """Nobody sweeps a directory between its making and its locking."""
    path = Path("/run/layerlimit-demo.lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while not try_flock(fd):
            time.sleep(0.02)
        yield
    finally:
        os.close(fd)


def _clear(directory: Path) -> None:
    root = directory / "root"
    if (root / "layers").exists():
        driver = Driver(root)
        driver.cleanup()
        for id in sorted(driver.ids(), key=lambda id: -len(driver.chain(id))):  # children first
            driver.remove(id)
    if not list(mountinfo.below(directory, mountinfo.read())):
        shutil.rmtree(directory)


if __name__ == "__main__":
    sys.exit(main())
