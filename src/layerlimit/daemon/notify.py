"""Telling systemd how the daemon is: sd_notify(3) over the socket in ``NOTIFY_SOCKET``."""

from __future__ import annotations

import os
import socket


def take_notify_socket() -> str:
    """The socket's address, taken out of the environment so that no child speaks for us; empty: none."""
    return os.environ.pop("NOTIFY_SOCKET", "")


def notify(address: str, *assignments: str) -> bool:
    """Send ``READY=1``, ``STOPPING=1``, ``STATUS=…``; False without an address or when nobody listens.

    Never raises: a daemon that serves does not end because nobody was told.
    """
    if not address or address[0] not in "/@":
        return False
    # A leading @ stands for the NUL byte of an abstract name.
    name = "\0" + address[1:] if address[0] == "@" else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto("\n".join(assignments).encode(), name)
        except OSError:
            return False
    return True
