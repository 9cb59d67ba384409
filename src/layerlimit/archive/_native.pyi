from collections.abc import Callable

from layerlimit.archive.contain import Directory

def extract(
    chunk: memoryview,
    start: int,
    end: int,
    kept: dict[bytes, Directory],
    adopt: Callable[[bytes, int, bool], object],
    room: int,
    most: int,
    longest: int,
    uid: int,
    gid: int,
    fix: int,
    whiteouts: bool,
    /,
) -> tuple[int, int, int, bytes | None, bytes]: ...
def set_times(root: int, records: bytes, start: int, /) -> int: ...
