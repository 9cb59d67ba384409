from layerlimit.archive.contain import Directory

def extract(
    chunk: memoryview,
    start: int,
    end: int,
    kept: dict[bytes, Directory],
    most: int,
    longest: int,
    uid: int,
    gid: int,
    fix: int,
    whiteouts: bool,
    /,
) -> tuple[int, int, int, bytes | None, tuple[bytes, int, int, int] | None]: ...
