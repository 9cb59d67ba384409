"""What the global options say, and what every sub-command does with them: open the store, print."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from layerlimit.cli.output import encode, printable, write, write_error
from layerlimit.errors import InvalidArgument, NotFound, PermissionDenied

if TYPE_CHECKING:
    from layerlimit.store import Store

DEFAULT_ROOT: Final = "/var/lib/layerlimit"
DEFAULT_NAMESPACE: Final = "default"
FORMATS: Final = ("table", "json", "jsonl")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(slots=True)
class Settings:
    """The global options; filled while the command line is parsed, as they may follow the sub-command."""

    root: Path = Path(DEFAULT_ROOT)
    namespace: str = DEFAULT_NAMESPACE
    format: str = "table"
    quiet: bool = False
    log_level: str = "warning"

    # -- the store ---------------------------------------------------------------------------------

    def has_layers(self) -> bool:
        """Whether anybody ever made a layer below the root. PermissionDenied for who may not look."""
        require_root()
        if self.root.exists() and not self.root.is_dir():
            hint = "give another --root"
            raise InvalidArgument(f"{self.root} is no directory", hint=hint, code="root.invalid")
        return any(os.path.lexists(self.root / name) for name in ("format", "layers"))

    def open_store(self, *, make: bool = False) -> Store:
        """The store of the root, to be closed; one that does not exist is made if ``make``, else NotFound."""
        if not self.has_layers() and not make:
            raise NotFound(
                f"there are no layers in {self.root}",
                hint="create one with 'layerlimit create' or 'layerlimit import', or give another --root",
                code="root.not_found",
            )
        from layerlimit.store import Store

        store = Store(self.root, namespace=self.namespace)
        for note in store.opened:
            self.say(note)
        return store

    # -- output ------------------------------------------------------------------------------------

    def say(self, message: str) -> None:
        """A message for people, on stderr; nothing when they asked for quiet."""
        if not self.quiet:
            self.tell(message)

    def tell(self, message: str) -> None:
        """A message that is told in any case."""
        write_error(f"layerlimit: {printable(message)}")

    def show_all(self, entries: Sequence[Mapping[str, Any]], table: Callable[[], Iterable[str]]) -> None:
        """A list: an array, one object per line, or the lines of ``table``."""
        if self.format == "json":
            write(encode(entries, indent=2), b"\n")
        elif self.format == "jsonl":
            write(*(encode(entry) + b"\n" for entry in entries))
        else:
            write(*(line.encode(errors="surrogateescape") + b"\n" for line in table()))

    def show(self, entry: Mapping[str, Any], *lines: str) -> None:
        """One thing: an object, or ``lines`` for people."""
        if self.format == "table":
            write(*(line.encode(errors="surrogateescape") + b"\n" for line in lines))
        else:
            write(encode(entry, indent=2 if self.format == "json" else 0), b"\n")


def require_root() -> None:
    """PermissionDenied unless this process is root: mounting, loop devices and owners all need it."""
    if os.geteuid() != 0:
        raise PermissionDenied(
            "layerlimit mounts file systems, which only root may do", hint="run it with sudo"
        )
