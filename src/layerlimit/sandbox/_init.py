"""PID 1 of the sandbox: sets it up, starts the command, reaps, passes signals on; ends all by ending.

What `docker run --init` puts there: the command is not PID 1, so that signals do to it what they do
elsewhere, and orphans are reaped. The init holds no privilege that the command does not hold, and
cannot be traced.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Final, NoReturn

from layerlimit.linux import capabilities
from layerlimit.linux.namespaces import set_hostname
from layerlimit.linux.process import (
    die_with_parent,
    filter_syscalls,
    forbid_new_privileges,
    hide_memory,
    leave_session_keyring,
    set_title,
)
from layerlimit.linux.seccomp import default_filter
from layerlimit.sandbox import _command, _rootfs, _users
from layerlimit.sandbox._spec import FAILED, SIGNALLED, Spec, doing, guarded

# Docker's default set (moby oci/caps/defaults.go) without CAP_MKNOD.
CAPABILITIES: Final = capabilities.mask(
    capabilities.CAP_CHOWN,
    capabilities.CAP_DAC_OVERRIDE,
    capabilities.CAP_FOWNER,
    capabilities.CAP_FSETID,
    capabilities.CAP_KILL,
    capabilities.CAP_SETGID,
    capabilities.CAP_SETUID,
    capabilities.CAP_SETPCAP,
    capabilities.CAP_NET_BIND_SERVICE,
    capabilities.CAP_NET_RAW,
    capabilities.CAP_SYS_CHROOT,
    capabilities.CAP_AUDIT_WRITE,
    capabilities.CAP_SETFCAP,
)


def serve(spec: Spec, status: int, alive: int, null: int) -> NoReturn:
    """Runs as the child of the monitor that is PID 1; all signals are blocked.

    ``status`` takes what goes wrong, ``alive`` is the monitor's pipe, ``null`` is the host's /dev/null.
    """
    die_with_parent(signal.SIGKILL)
    os.set_blocking(alive, False)
    try:
        os.read(alive, 1)
        os._exit(FAILED)  # the monitor ended before it could be watched
    except BlockingIOError:
        os.close(alive)
    set_title(b"layerlimit-init")  # the old one tells of the host's directories
    os.umask(0)
    sources = _rootfs.take(spec)
    account = _users.resolve(sources.root.fd, spec.user)
    program = default_filter()
    _forbid_imports()
    _rootfs.enter(sources)
    os.umask(0o022)
    if spec.hostname:
        with doing("set the host name"):
            set_hostname(os.fsdecode(spec.hostname))
    _give_up_privileges(program)
    for first, last in ((3, min(status, null)), (min(status, null) + 1, max(status, null))):
        os.closerange(first, last)
    os.closerange(max(status, null) + 1, os.sysconf("SC_OPEN_MAX"))
    with doing("start the command"):
        command = os.fork()
    if command == 0:
        guarded(status, lambda: _command.execute(spec, account, status))
    os.close(status)
    for stream in range(3):
        os.dup2(null, stream)
    os.close(null)
    _wait(command, terminal=bool(spec.terminal))


def _forbid_imports() -> None:
    # From here on /usr/lib/python3 is the root's: a module loaded from it would run with our privileges
    # (CVE-2019-14271). Everything that is needed is loaded; anything else is an ImportError.
    sys.path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    sys.meta_path.clear()


def _give_up_privileges(program: bytes) -> None:
    with doing("give up privileges"):
        try:
            leave_session_keyring()
        except OSError as error:  # kernels and containers without keys; the filter denies keyctl anyway
            if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EDQUOT):
                raise
        capabilities.restrict(CAPABILITIES)
        forbid_new_privileges()
        hide_memory()
        filter_syscalls(program)


def _wait(command: int, *, terminal: bool) -> NoReturn:
    while True:
        received = signal.sigwaitinfo(signal.valid_signals())
        if received.si_signo != signal.SIGCHLD:
            try:
                os.kill(command, received.si_signo)
            except ProcessLookupError:
                pass  # it has ended, which its own signal is about to say
            continue
        while True:
            try:
                ended, result = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                break
            if ended == 0:
                break
            if ended != command:
                continue
            if os.WIFSTOPPED(result):
                # Nobody outside could resume it: as under `docker run -it`, ^Z does not stop it.
                if terminal and os.WSTOPSIG(result) == signal.SIGTSTP:
                    os.kill(command, signal.SIGCONT)
            elif os.WIFSIGNALED(result):
                os._exit(SIGNALLED + os.WTERMSIG(result))
            else:
                os._exit(os.WEXITSTATUS(result))
