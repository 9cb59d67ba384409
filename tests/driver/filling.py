"""Writing until the limit says no, and where an engine writes."""

from __future__ import annotations

from pathlib import Path

from layerlimit.union import Mount

MIB = 1 << 20


def fill(path: Path, most: int) -> tuple[int, int]:
    """Append up to ``most`` bytes; returns how many went in and the errno that ended it, 0 for none."""
    written = 0
    try:
        with path.open("ab", buffering=0) as file:
            while written < most:
                written += file.write(bytes(min(MIB, most - written)))
    except OSError as error:
        return written, error.errno or -1
    return written, 0


def fill_inodes(directory: Path, most: int) -> tuple[int, int]:
    """Make up to ``most`` empty files; returns how many there are and the errno that ended it, 0 for none."""
    made = 0
    try:
        while made < most:
            (directory / str(made)).touch()
            made += 1
    except OSError as error:
        return made, error.errno or -1
    return made, 0


def upper_of(mounts: list[Mount]) -> Path:
    """The directory that an engine writes to."""
    (mount,) = mounts
    options = dict(option.partition("=")[::2] for option in mount.options)
    return Path(options.get("upperdir", mount.source))
