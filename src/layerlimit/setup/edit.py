"""A change of somebody else's configuration file: shown as a diff, written at once or not at all."""

from __future__ import annotations

import difflib
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from layerlimit.errors import Busy, InvalidArgument, from_os_error
from layerlimit.linux.files import sync_directory


@dataclass(frozen=True, slots=True)
class Edit:
    """What a file says (None: there is none) and what it is to say; ``notes`` are sentences for people."""

    path: Path
    before: str | None
    after: str
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether there is anything to write."""
        return (self.before or "") != self.after

    def diff(self) -> str:
        """A unified diff; empty when nothing changes."""
        lines = difflib.unified_diff(
            (self.before or "").splitlines(keepends=True),
            self.after.splitlines(keepends=True),
            "/dev/null" if self.before is None else str(self.path),
            str(self.path),
        )
        return "".join(
            line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
        )


def read_text(path: Path) -> str | None:
    """The file's text, its line ends as they are; None when there is none."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"{path} is not UTF-8 text", hint="correct it, or give another file", code="setup.invalid"
        ) from error
    except OSError as error:
        raise from_os_error(error, f"read {path}") from error


def apply_edit(edit: Edit) -> Path | None:
    """Write the file and return where its backup is, None when there was nothing to keep.

    The new text is staged beside the file with its mode and owner, synced and renamed over it; a crash leaves
    the old file or the new. A symbolic link stays one: what it leads to is replaced. Busy when the file was
    changed since it was read.
    """
    path = Path(os.path.realpath(edit.path))
    backup = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if read_text(path) != edit.before:
            raise Busy(f"{edit.path} was changed meanwhile", hint="run this once more", code="setup.changed")
        if edit.before is not None:
            backup = _keep(path, edit.before)
        _replace(path, edit.after)
    except OSError as error:
        raise from_os_error(error, f"write {edit.path}") from error
    return backup


def _keep(path: Path, text: str) -> Path:
    """A copy beside the file that no later run overwrites."""
    moment = time.strftime("%Y%m%dT%H%M%S")
    for number in range(1, 1000):
        backup = path.with_name(f"{path.name}.{moment}{f'-{number}' if number > 1 else ''}.bak")
        try:
            _create(backup, text, os.stat(path))
        except FileExistsError:
            continue
        return backup
    raise FileExistsError(f"no free name for a backup of {path}")


def _replace(path: Path, text: str) -> None:
    staged = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        like = os.stat(path)
    except FileNotFoundError:
        like = None
    try:
        _create(staged, text, like)
        os.rename(staged, path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _create(path: Path, text: str, like: os.stat_result | None) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        if like is not None:
            os.fchown(fd, like.st_uid, like.st_gid)
        os.fchmod(fd, stat.S_IMODE(like.st_mode) if like is not None else 0o644)
        file.write(text.encode())
        file.flush()
        os.fsync(fd)
