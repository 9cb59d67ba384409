"""A virtual machine with Debian's stock kernel and the host's user space, whose power can be cut.

    with Machine(directory, disks=[disk]) as machine:
        machine.boot()
        machine.run("mount", "/dev/vda", "/mnt")
        machine.kill()      # a power cut: what the guest had not written to its disks is lost
        machine.boot()      # the same disks again

The kernel lies unpacked in .cache/vm/kernel (scripts/setup puts it there). The guest's root is the host's,
read-only under a memory file system (tests/vm/initrd.py); ``directory``/share is the one place of the host it
can write to, as /run/share.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.vm import agent, initrd
from tests.vm.volatile_disk import VolatileDisk

CHECKOUT = Path(__file__).parents[2]
KERNEL = CHECKOUT / ".cache/vm/kernel"
QEMU = "qemu-system-x86_64"
SYSTEMD = Path("/usr/lib/systemd/systemd")
BOOT_SECONDS = 180.0


class MachineError(Exception):
    """The machine could not be started, stopped answering or died; the text ends with its console."""


class Machine:
    """One machine; its memory is gone with each :meth:`kill` and :meth:`shutdown`, its disks stay.

    ``disks`` are files or block devices, or disks that lose what was not flushed; /dev/vda onwards in the
    guest. ``directory`` is the machine's own. With ``systemd``, that is process 1, with no unit but ours.
    """

    def __init__(
        self,
        directory: Path,
        *,
        disks: Sequence[Path | VolatileDisk] = (),
        memory_mib: int = 2048,
        cpus: int = 2,
        systemd: bool = False,
    ) -> None:
        self.share = directory / "share"
        self.console = directory / "console.log"
        self._directory = directory
        self._disks = list(disks)
        self._memory_mib = memory_mib
        self._cpus = cpus
        self._systemd = systemd
        self._qemu: subprocess.Popen[bytes] | None = None
        self._port: socket.socket | None = None
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def boot(self) -> None:
        """Switches on, and returns when the guest takes commands."""
        if self._qemu is not None:
            raise MachineError("the machine is running already")
        require()
        self.share.mkdir(parents=True, exist_ok=True)
        image = self._directory / "initrd"
        config = {
            "GUEST_INIT": str(CHECKOUT / "tests/vm/guest-init"),
            "GUEST_AGENT": agent.__file__,
            "GUEST_PYTHON": sys.executable,
            "GUEST_KERNEL": str(KERNEL),
            "GUEST_SYSTEMD": "yes" if self._systemd else "",
        }
        image.write_bytes(initrd.build(KERNEL, config))
        ours, qemus = socket.socketpair()
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(qemus)
                console = stack.enter_context(self.console.open("ab"))
                plugs = [
                    stack.enter_context(disk.plug()) for disk in self._disks if isinstance(disk, VolatileDisk)
                ]
                command = self._command(image, qemus.fileno(), [plug.fileno() for plug in plugs])
                # Bound to this process's life: a test run that is killed leaves no machine behind.
                self._qemu = subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", *command],
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=console,
                    pass_fds=[qemus.fileno(), *(plug.fileno() for plug in plugs)],
                )
            self._port = ours
            self._buffer = b""
            self._receive(time.monotonic() + BOOT_SECONDS)
        except BaseException:
            ours.close()
            self.kill()
            raise

    def run(
        self,
        *argv: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path = CHECKOUT,
        check: bool = True,
        timeout: float = 600.0,
        on_output: Callable[[bytes], None] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs a command in the guest, as :func:`subprocess.run` with captured output would.

        ``on_output`` sees each piece of standard output as it comes; it may :meth:`kill` the machine, and
        then this raises :class:`MachineError` as it does when the guest dies by itself or takes longer than
        ``timeout``.
        """
        arguments = [str(argument) for argument in argv]
        self._send({"argv": arguments, "env": dict(env or {}), "cwd": str(cwd)})
        output = {"stdout": b"", "stderr": b""}
        deadline = time.monotonic() + timeout
        while "exit" not in (message := self._receive(deadline)):
            data = base64.b64decode(message["data"])
            output[message["stream"]] += data
            if on_output is not None and message["stream"] == "stdout":
                on_output(data)
        done = subprocess.CompletedProcess(arguments, message["exit"], output["stdout"], output["stderr"])
        if check and done.returncode != 0:
            raise MachineError(
                f"in the guest, {arguments} ended with {done.returncode}:\n"
                f"{(done.stdout + done.stderr).decode(errors='replace')}"
            )
        return done

    def shutdown(self) -> None:
        """Unmounts the disks and switches off."""
        self._send({})
        assert self._qemu is not None
        try:
            self._qemu.wait(timeout=60.0)
        except subprocess.TimeoutExpired as expired:
            raise self._error("the guest does not switch off") from expired
        finally:
            self.kill()

    def kill(self) -> None:
        """Cuts the power; nothing happens when it is off."""
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
            self._qemu = None
        if self._port is not None:
            self._port.close()
            self._port = None

    def _command(self, image: Path, port: int, plugs: list[int]) -> list[str]:
        vmlinuz = next((KERNEL / "boot").glob("vmlinuz-*"))
        host = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"
        share = f"local,path={_quoted(self.share)},mount_tag=share,security_model=none"
        command = [QEMU, "-accel", accelerator(), "-cpu", "max", "-smp", str(self._cpus)]
        command += ["-m", str(self._memory_mib), "-nodefaults", "-display", "none", "-no-reboot"]
        command += ["-serial", "stdio", "-kernel", str(vmlinuz), "-initrd", str(image)]
        # A timer that does not tick in time is a panic at boot, which a busy host brings about.
        command += ["-append", "console=ttyS0 panic=-1 quiet no_timer_check"]
        command += ["-virtfs", host, "-virtfs", share]
        command += ["-chardev", f"socket,id=agent,fd={port}", "-device", "virtio-serial-pci"]
        command += ["-device", f"virtserialport,chardev=agent,name={agent.PORT}"]
        free_plugs = iter(plugs)
        for disk in self._disks:
            if isinstance(disk, VolatileDisk):
                server = f"file.driver=nbd,file.server.type=fd,file.server.str={next(free_plugs)}"
                command += ["-drive", f"{server},format=raw,if=virtio,cache=writeback"]
                continue
            # The host's page cache outlives qemu, so nothing is won by passing the guest's flushes down to
            # its disk.
            command += ["-drive", f"file={_quoted(disk)},format=raw,if=virtio,cache=unsafe,discard=unmap"]
        return command

    def _send(self, message: dict[str, Any]) -> None:
        if self._port is None:
            raise MachineError("the machine is not running")
        self._port.sendall(json.dumps(message).encode() + b"\n")

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            if self._port is None:
                raise self._error("the machine was switched off")
            self._port.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self._port.recv(1 << 16)
            except TimeoutError as expired:
                raise self._error("the guest does not answer in time") from expired
            if not data:
                raise self._error("the machine died")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _error(self, what: str) -> MachineError:
        tail = self.console.read_bytes()[-4000:].decode(errors="replace")
        return MachineError(f"{what}; the end of its console:\n{tail}")


def make_disk(path: Path, *, size: int) -> Path:
    """A sparse file of ``size`` bytes with an empty ext4 file system on it."""
    with path.open("xb") as file:
        file.truncate(size)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-F", str(path)], check=True)
    return path


def require() -> None:
    """Raises :class:`MachineError` for what a machine needs and is not there; the lane is never skipped."""
    missing = [program for program in (QEMU, "modprobe", "setpriv") if shutil.which(program) is None]
    missing += [str(path) for path in (initrd.BUSYBOX, KERNEL, SYSTEMD) if not path.exists()]
    if missing:
        raise MachineError(f"the virtual machine needs {', '.join(missing)}: run scripts/setup test")


@functools.cache
def accelerator() -> str:
    """``kvm`` where it runs a kernel, else ``tcg``. A /dev/kvm that opens may still never run anything."""
    vmlinuz = next((KERNEL / "boot").glob("vmlinuz-*"))
    command = [QEMU, "-accel", "kvm", "-cpu", "max", "-m", "512", "-nodefaults", "-display", "none"]
    # Without a root file system the kernel panics, which ends qemu.
    command += ["-no-reboot", "-kernel", str(vmlinuz), "-append", "panic=-1"]
    try:
        subprocess.run(command, check=True, timeout=5.0, capture_output=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return "tcg"
    return "kvm"


def _quoted(path: Path) -> str:
    return str(path).replace(",", ",,")
