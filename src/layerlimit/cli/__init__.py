"""The command ``layerlimit``: it parses, calls the store and prints, and holds no logic of its own.

stdout carries data only; messages go to stderr. Exit codes: 0, 1 error, 2 usage, 3 not found, 4 exists or
conflict, 5 busy, 6 limit or space, 7 not supported here, 8 permission, 9 corrupt; 130 when interrupted,
128 + N when ended by signal N. ``run`` passes the command's own through and fails with 125 itself.
"""

from layerlimit.cli.program import main

__all__ = ["main"]
