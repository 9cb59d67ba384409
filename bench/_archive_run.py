"""One apply, export or listing in a process of its own, for :mod:`bench.archive`.

Prints a line of JSON: the seconds of the call alone, the processor seconds of all its threads, and the peak
memory of the process in KiB before the call (interpreter and modules) and after it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from layerlimit.archive import Form, changes, compare, write
from layerlimit.archive.apply import apply


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def main(action: str, *arguments: str) -> None:
    """``apply DIRECTORY DURABLE`` reads standard input; ``write DIRECTORY FILE COMPRESSION``;
    ``changes UPPER LOWER``; ``compare NEW OLD``."""
    before = _peak()
    started, used = time.perf_counter(), time.process_time()
    if action == "apply":
        target, durable = arguments
        with os.fdopen(os.dup(0), "rb", buffering=0) as stream:
            apply(stream, Path(target), form=Form.OVERLAY, durable=durable == "durable")
    elif action == "write":
        source, target, compression = arguments
        with open(target, "wb", buffering=0) as out:
            write(
                Path(source),
                out,
                form=Form.OVERLAY,
                compression=None if compression == "plain" else compression,  # type: ignore[arg-type]
            )
    elif action == "changes":
        changes(Path(arguments[0]), [Path(arguments[1])], form=Form.OVERLAY)
    else:
        compare(Path(arguments[0]), Path(arguments[1]))
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    after = _peak()
    print(json.dumps({"seconds": seconds, "cpu": cpu, "before": before, "after": after}))


if __name__ == "__main__":
    main(*sys.argv[1:])
