"""Run a command in a mounted root filesystem, confined to it: :func:`run`.

Four processes take part, and each is a module here:

* the caller (``_launch``): starts the monitor, passes signals on, waits;
* the monitor (``_monitor``): a fresh interpreter without threads; makes the PID namespace, dies with the
  caller;
* the init (``_init``): PID 1 inside; assembles the file systems (``_rootfs``), gives up its privileges,
  starts the command, reaps what is orphaned, and ends everything inside by ending;
* the command (``_command``): becomes the user (``_users``) and executes.

The last three know nothing of layerlimit but ``linux/``, so that they start in milliseconds.
"""

from layerlimit.sandbox._launch import run

__all__ = ["run"]
