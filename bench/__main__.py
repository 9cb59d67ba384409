"""``python -m bench [NAME] [ARGUMENTS]``: run one benchmark, or all of them with their defaults."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

_NAMES = sorted(
    module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.name[0] != "_"
)


def main(arguments: list[str]) -> int:
    """Run the benchmark named first, or all; returns the exit code."""
    names = arguments[:1] or _NAMES
    if not set(names) <= set(_NAMES):
        print(f"usage: python -m bench [{'|'.join(_NAMES)}] [ARGUMENTS]", file=sys.stderr)
        return 2
    for name in names:
        importlib.import_module(f"bench.{name}").main(arguments[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
