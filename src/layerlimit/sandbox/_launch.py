"""The caller's side: what :func:`run` does in the process that calls it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final, cast

from layerlimit.errors import Error, InvalidArgument, NotSupported, from_os_error
from layerlimit.linux.mount import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_PRIVATE,
    DetachedMount,
    clone_tree,
    set_attributes,
)
from layerlimit.linux.namespaces import HOST_NAME_MAX
from layerlimit.sandbox._spec import READY, SIGNALLED, Spec

_FORWARDED: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)

# The packages' __init__ would import all of layerlimit; the monitor needs a few modules of it.
_MONITOR: Final = """
import sys, types
for name, path in (("layerlimit", sys.argv[1]), ("layerlimit.sandbox", sys.argv[1] + "/sandbox")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from layerlimit.sandbox._monitor import main
main(int(sys.argv[2]), int(sys.argv[3]))
"""


def run(
    root: Path,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | Sequence[str] = (),
    user: str = "",
    workdir: str = "/",
    hostname: str = "",
    read_only: bool = False,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> int:
    """Run ``argv`` in the root filesystem that is mounted at ``root``, confined to it, and wait for it.

    The command gets mount, PID, IPC, UTS and cgroup namespaces of its own and the host's network. It sees
    ``root`` as ``/`` without device files (``nodev``; read-only with ``read_only``), its own /proc and a
    read-only /sys with what Docker masks masked, a minimal /dev, 64 MiB of /dev/shm, and the host's
    /etc/resolv.conf and /etc/hosts over the root's where the root has such files. It holds Docker's default
    capabilities without CAP_MKNOD, as far as the caller holds them, with no_new_privs, no key of the caller
    and a system call filter after Docker's default. Nothing it does changes the host's mounts, and it has
    no way to mount, to reach a device or to raise a limit on its layer. Resource limits are the caller's;
    umask is 022.

    :param argv: the command; a name without ``/`` is looked up in the ``PATH`` it will have, inside the root.
    :param env: a mapping, or ``KEY=VALUE`` and ``KEY`` (the caller's value; left out if there is none).
        Added to ``PATH``, ``HOSTNAME``, ``HOME`` (of the root's /etc/passwd) and, on a terminal, ``TERM``.
    :param user: ``name``, ``uid``, ``name:group`` or ``uid:gid``, looked up in the root's /etc/passwd and
        /etc/group as ``docker run --user`` does; empty: root. Supplementary groups are those that list the
        user, unless a group is given.
    :param workdir: an absolute path inside the root; made (mode 0755, owner root) if it is missing.
    :param hostname: at most 64 bytes; empty: the host's.
    :param stdin: a descriptor (so ``stdout``, ``stderr``); None: the caller's. No other descriptor is
        passed. A directory or a block device is refused. A regular file that is open for reading cannot be
        written to inside; to one that is open for writing the command has every access.
    :returns: the command's exit code; 128 + N when signal N killed it; 126 when it cannot be executed and 127
        when it is not found, said on its stderr.
    :raises Error: when the sandbox cannot be made (the command line's exit code for it is 125): the class
        goes by the cause, ``PermissionDenied`` without root's rights, ``InvalidArgument`` for an unknown
        user.

    A small init is PID 1 and reaps; the command is its child, as with ``docker run --init``. When the command
    ends, all processes it left inside are killed, and by the return every mount and process of the sandbox is
    gone: the file system can be unmounted. The same happens when the calling thread or process is killed.

    Called in the main thread, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1 and SIGUSR2 go to the command for
    the time of the call (unless they are ignored), instead of raising KeyboardInterrupt. When stdin and
    stdout are the caller's controlling terminal, the command is the terminal's foreground job; else it has
    a session of its own. Several calls may run at once, in threads too, also on one root.

    A missing /proc, /sys or /dev is made in the root, as engines do, and stays there, empty.
    """
    spec = Spec(
        root=os.fsencode(os.path.realpath(root)),
        argv=_argv(argv),
        env=_env(env),
        user=_plain("user", user),
        workdir=_workdir(workdir),
        hostname=_hostname(hostname),
        read_only=read_only,
        terminal=_terminal(0 if stdin is None else stdin, 1 if stdout is None else stdout),
        term=os.fsencode(os.environ.get("TERM", "xterm")),
        caller=os.getpid(),
    )
    for stream, given in enumerate((stdin, stdout, stderr)):
        _refuse_a_way_out(stream if given is None else given)
    try:
        return _run(spec, (stdin, stdout, stderr))
    except OSError as error:
        hint = "run it as root" if error.errno == errno.EPERM else ""
        raise from_os_error(error, "start a sandbox", hint=hint) from error


def _run(spec: Spec, given: tuple[int | None, int | None, int | None]) -> int:
    with contextlib.ExitStack() as stack:
        request = stack.enter_context(_opened(os.memfd_create("layerlimit-run"), "r+b"))
        request.write(spec.dump())
        request.seek(0)
        ends = os.pipe()
        receive = stack.enter_context(_opened(ends[0], "rb"))
        send = stack.enter_context(_opened(ends[1], "wb"))
        interpreter = stack.enter_context(_read_only_interpreter())
        started = stack.enter_context(_signals_forwarded())
        if spec.terminal:
            stack.enter_context(_terminal_returned(given[0] or 0))
        monitor = subprocess.Popen(
            [
                sys.executable,
                *("-I", "-S", "-X", "utf8", "-c", _MONITOR),
                os.fspath(Path(__file__).parent.parent),
                str(request.fileno()),
                str(send.fileno()),
            ],
            executable=f"/proc/self/fd/{interpreter.fd}",
            pass_fds=(request.fileno(), send.fileno(), interpreter.fd),
            stdin=given[0],
            stdout=given[1],
            stderr=given[2],
            cwd="/",
            env={},
            start_new_session=not spec.terminal,
        )
        try:
            started(monitor)
            send.close()
            answer = receive.read()
            code = monitor.wait()
        finally:
            if monitor.returncode is None:
                monitor.kill()
                monitor.wait()
    if answer not in (b"", READY):
        raise _error(json.loads(answer.splitlines()[0]))
    if code < 0:
        return SIGNALLED - code
    if not answer:
        raise Error(f"the sandbox ended with exit code {code} before the command was started")
    return code


def _error(answer: dict[str, Any]) -> Error:
    if answer["code"]:
        cause = OSError(answer["code"], answer["text"], answer["path"] or None)
        return from_os_error(cause, answer["doing"], hint=answer["hint"])
    kinds: dict[str, type[Error]] = {"invalid": InvalidArgument, "unsupported": NotSupported}
    return kinds.get(answer["kind"], Error)(answer["doing"], hint=answer["hint"])


def _opened(fd: int, mode: str) -> IO[bytes]:
    """A file on ``fd``, moved away from 0, 1 and 2: those are the command's, even if they were closed."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return cast("IO[bytes]", os.fdopen(moved, mode, buffering=0))


def _read_only_interpreter() -> DetachedMount:
    # The sandbox's first processes execute this program, and what they execute can be reached from inside
    # (CVE-2019-5736). Through this mount, attached nowhere, it cannot be written to.
    if not sys.executable:
        raise NotSupported(
            "cannot start a sandbox: Python does not know its interpreter", hint="set sys.executable"
        )
    attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
    with clone_tree(os.path.realpath(sys.executable)) as mount:
        set_attributes(mount.fd, set_=attributes, propagation=MS_PRIVATE)
        return DetachedMount(fcntl.fcntl(mount.fd, fcntl.F_DUPFD_CLOEXEC, 3))


@contextlib.contextmanager
def _signals_forwarded() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Passes the signals of :data:`_FORWARDED` to the process that the yielded function is told."""
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    def started(monitor: subprocess.Popen[bytes]) -> None:
        nonlocal process
        process = monitor
        for number in early:
            monitor.send_signal(number)

    previous = {}
    if threading.current_thread() is threading.main_thread():  # Python lets no other install handlers
        for number in _FORWARDED:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                previous[number] = signal.signal(number, forward)
    try:
        yield started
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if process is None:
            for missed in early:
                signal.raise_signal(missed)


@contextlib.contextmanager
def _terminal_returned(stdin: int) -> Iterator[None]:
    """Makes the caller's process group the terminal's foreground job again, as a shell does."""
    try:
        yield
    finally:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            os.tcsetpgrp(stdin, os.getpgrp())
        except OSError:
            pass  # it was hung up
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _terminal(stdin: int, stdout: int) -> bytes:
    """The path of the terminal that becomes the command's; empty unless it is the caller's foreground."""
    try:
        if os.isatty(stdout) and os.tcgetpgrp(stdin) == os.getpgrp():
            return os.fsencode(os.ttyname(stdin))
    except OSError:
        pass  # no terminal, or not this session's
    return b""


def _refuse_a_way_out(stream: int) -> None:
    """No directory, from which openat(2) leads on, no block device: it can be opened again for writing."""
    try:
        mode = os.fstat(stream).st_mode
    except OSError:
        return  # closed
    if stat.S_ISDIR(mode) or stat.S_ISBLK(mode):
        kind = "directory" if stat.S_ISDIR(mode) else "block device"
        raise InvalidArgument(f"cannot pass a {kind} to the command as descriptor {stream}")


def _plain(what: str, value: str) -> bytes:
    if "\0" in value:
        raise InvalidArgument(f"the {what} contains a NUL character: {value!r}")
    return os.fsencode(value)


def _argv(argv: Sequence[str]) -> tuple[bytes, ...]:
    if not argv or not argv[0]:
        raise InvalidArgument("there is no command to run", hint="give it after --")
    return tuple(_plain("command", word) for word in argv)


def _env(env: Mapping[str, str] | Sequence[str]) -> tuple[bytes, ...]:
    if isinstance(env, Mapping):
        entries = [(key, value) for key, value in env.items()]
    else:
        entries = []
        for entry in env:
            key, equals, value = entry.partition("=")
            if equals:
                entries.append((key, value))
            elif key in os.environ:
                entries.append((key, os.environ[key]))
            elif not key:
                raise InvalidArgument("an environment variable without a name", hint="use KEY=VALUE or KEY")
    for key, _ in entries:
        if not key or "=" in key:
            raise InvalidArgument(
                f"not the name of an environment variable: {key!r}", hint="use KEY=VALUE or KEY"
            )
    return tuple(_plain("environment", f"{key}={value}") for key, value in entries)


def _workdir(workdir: str) -> bytes:
    if not workdir.startswith("/"):
        raise InvalidArgument(f"the working directory {workdir!r} is not absolute")
    return _plain("working directory", workdir)


def _hostname(hostname: str) -> bytes:
    raw = _plain("host name", hostname)
    if len(raw) > HOST_NAME_MAX:
        raise InvalidArgument(f"the host name {hostname!r} is longer than {HOST_NAME_MAX} bytes")
    return raw
