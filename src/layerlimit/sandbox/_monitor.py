"""The monitor: the process between the caller and the sandbox's init.

It is a fresh interpreter, since forking a process that may have threads and then running Python in the
child is not safe, and since nothing of the caller's memory is to be seen inside. It stays in the host's
namespaces, passes the caller's signals on, and ends when the init has: by then every process inside is gone
and so are their mounts. It is killed when the caller's thread ends, and the init when the monitor does.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
from typing import NoReturn

from layerlimit.linux.mount import MOUNT_ATTR_RDONLY, MS_PRIVATE, clone_tree, set_attributes
from layerlimit.linux.namespaces import CLONE_NEWPID, unshare
from layerlimit.linux.process import die_with_parent
from layerlimit.sandbox import _init
from layerlimit.sandbox._spec import FAILED, SIGNALLED, Failure, Spec, doing, guarded


def main(request: int, status: int) -> NoReturn:
    """Entered by the caller's command line; ``request`` and ``status`` are descriptors it left open."""
    guarded(status, lambda: _monitor(request, status))


def _monitor(request: int, status: int) -> NoReturn:
    # Blocked, not ignored: a signal that comes before the command is there is passed on once it is.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    with os.fdopen(request, "rb") as file:
        spec = Spec.load(file.read())
    os.set_inheritable(status, False)
    os.closerange(3, status)
    os.closerange(status + 1, os.sysconf("SC_OPEN_MAX"))
    die_with_parent(signal.SIGKILL)
    if os.getppid() != spec.caller:
        os._exit(FAILED)  # it ended before it could be watched
    _require_read_only_interpreter()
    _prepare_streams()
    null = os.open(os.devnull, os.O_RDWR)
    alive, keep = os.pipe()  # closed by the end of this process only: how the init knows that it still runs
    with doing("make a PID namespace"):
        unshare(CLONE_NEWPID)
    init = os.fork()
    if init == 0:
        os.close(keep)
        guarded(status, lambda: _init.serve(spec, status, alive, null))
    os.close(status)
    os.close(alive)
    for stream in range(3):  # held by nobody but those inside, so that a reader sees their end
        os.dup2(null, stream)
    while True:
        received = signal.sigwaitinfo(signal.valid_signals())
        if received.si_signo == signal.SIGCHLD:
            ended, result = os.waitpid(init, os.WNOHANG)
            if ended:
                os._exit(exit_code(result))
        elif received.si_pid == spec.caller:
            os.kill(init, received.si_signo)


def exit_code(result: int) -> int:
    """What waitpid(2) says as the one byte that engines and shells make of it."""
    if os.WIFSIGNALED(result):
        return SIGNALLED + os.WTERMSIG(result)
    return os.WEXITSTATUS(result)


def _require_read_only_interpreter() -> None:
    # A command that is a link to /proc/self/exe, or a script with #!/proc/self/exe, executes what the init
    # executes, and could then write to that file (CVE-2019-5736). The caller started us through a read-only
    # mount of it; a wrapper in between would have undone that.
    if not os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY:
        raise Failure(
            "cannot start a sandbox: the Python interpreter is a wrapper around another program",
            kind="unsupported",
            hint="set sys.executable to the interpreter itself",
        )


def _prepare_streams() -> None:
    for stream in range(3):
        try:
            mode = os.fstat(stream).st_mode
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it was closed; the lowest free number is this one
            os.set_inheritable(stream, True)
            continue
        if stat.S_ISREG(mode):
            _hold_to_reading(stream)


def _hold_to_reading(stream: int) -> None:
    """Re-open a regular file that was given for reading, so that it cannot be opened for writing inside.

    /proc/self/fd/N opens the file anew with the rights of its mount, so the new descriptor comes from a
    read-only mount of the file alone. A file without a name here (deleted, memfd) is nobody's but the
    giver's.
    """
    if fcntl.fcntl(stream, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
        return
    with doing(f"pass descriptor {stream} to the command"):
        path = os.readlink(f"/proc/self/fd/{stream}")
        try:
            mount = clone_tree(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        with mount:
            if not os.path.samestat(os.stat(mount.fd), os.fstat(stream)):
                return  # the name is another file's by now
            set_attributes(mount.fd, set_=MOUNT_ATTR_RDONLY, propagation=MS_PRIVATE)
            held = os.open(f"/proc/self/fd/{mount.fd}", os.O_RDONLY)
            try:
                os.lseek(held, os.lseek(stream, 0, os.SEEK_CUR), os.SEEK_SET)
                os.dup2(held, stream)
            finally:
                os.close(held)
