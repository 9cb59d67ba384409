"""The last steps before the command: its session, directory, user and environment; then execve(2)."""

from __future__ import annotations

import errno
import os
import signal
from typing import Final, NoReturn

from layerlimit.sandbox._spec import NOT_EXECUTABLE, NOT_FOUND, READY, Spec, doing
from layerlimit.sandbox._users import Account

DEFAULT_PATH: Final = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def execute(spec: Spec, account: Account, status: int) -> NoReturn:
    """Runs in the child of the init, inside the root and without privileges but the default capabilities."""
    if spec.terminal:
        os.setpgid(0, 0)
        os.tcsetpgrp(0, os.getpid())  # from the background, which SIGTTOU being blocked allows
    else:
        os.setsid()
    environment = _environment(spec, account)
    with doing(f"use {os.fsdecode(spec.workdir)} as the working directory"):
        os.makedirs(spec.workdir, 0o755, exist_ok=True)
        os.chdir(spec.workdir)
        os.getcwd()  # ENOENT when it is not below the root
    with doing(f"become the user {account.uid}:{account.gid}"):
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.write(status, READY)
    os.close(status)
    _execute(spec.argv, environment)


def _environment(spec: Spec, account: Account) -> dict[bytes, bytes]:
    environment = {b"PATH": DEFAULT_PATH, b"HOSTNAME": os.fsencode(os.uname().nodename)}
    if spec.terminal:
        environment[b"TERM"] = spec.term
    environment[b"HOME"] = account.home
    for entry in spec.env:
        key, _, value = entry.partition(b"=")
        environment[key] = value
    return environment


def _execute(argv: tuple[bytes, ...], environment: dict[bytes, bytes]) -> NoReturn:
    program = argv[0]
    if b"/" in program:
        candidates = [program]
    else:
        candidates = [
            os.path.join(directory or b".", program)
            for directory in environment.get(b"PATH", DEFAULT_PATH).split(b":")
        ]
    found = errno.ENOENT
    for candidate in candidates:
        try:
            os.execve(candidate, argv, environment)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                continue
            found = error.errno or errno.ENOEXEC
            if found != errno.EACCES:  # as execvp(3): a directory that may not be searched is passed over
                break
    # As a shell does: said where the command would have spoken, and by these exit codes.
    os.write(2, b"layerlimit: cannot execute " + program + b": " + os.strerror(found).encode() + b"\n")
    os._exit(NOT_FOUND if found == errno.ENOENT else NOT_EXECUTABLE)
