"""Which union a root is opened with, and whose roots are refused."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from layerlimit.driver.layout import ADOPTING, is_go_root, read_format
from layerlimit.errors import InvalidArgument, NotSupported
from layerlimit.union import MECHANISMS, Union, make, probe


def check_owner(owner: tuple[int, int]) -> tuple[int, int]:
    """``owner`` if it is a uid and a gid."""
    if not all(0 <= number < 1 << 32 for number in owner):
        raise InvalidArgument(f"owner {owner!r} is not a uid and a gid", code="owner.invalid")
    return owner


def choose_union(root: Path, wanted: str | Union) -> Union:
    """The union to open ``root`` with; NotSupported, naming the cure, when there is none."""
    if not isinstance(wanted, str):
        return wanted
    if wanted != "auto":
        return _require(make(wanted), root)
    found = read_format(root)
    if found is not None:
        return _require(make(found.union), root)
    if is_go_root(root):
        try:
            return _require(make("aufs"), root)
        except NotSupported as error:
            raise _needs_adoption(root) from error
    for name in MECHANISMS:
        with contextlib.suppress(NotSupported):
            return _require(make(name), root)
    raise NotSupported("no union works on this kernel", hint="see 'layerlimit doctor'", code="union.none")


def _require(union: Union, root: Path) -> Union:
    """``union`` if the kernel has it; what is not listed yet may still be a module that a mount loads."""
    listed = Path("/proc/filesystems").read_text().split()
    if union.name not in listed:
        # A root of the Go driver that is not to be opened here is not touched either.
        places = [Path(tempfile.gettempdir())] if is_go_root(root) else [root, *root.parents]
        probe(union.name, next(path for path in places if path.is_dir()))
    return union


def check_form(root: Path, union: str) -> None:
    """Refuse what another union made, before anything is touched."""
    if is_go_root(root):
        if union != "aufs" or (root / ADOPTING).exists():
            raise _needs_adoption(root)
        return
    found = read_format(root)
    if found is not None and found.union != union:
        raise InvalidArgument(
            f"{root} has layers in the form of {found.union}, not of {union}",
            hint=f"open it with union {found.union}",
            code="root.union",
        )


def _needs_adoption(root: Path) -> NotSupported:
    return NotSupported(
        f"{root} was made by the Go driver and has layers in AUFS form",
        hint=f"convert it once with 'layerlimit migrate {root}' or layerlimit.adopt()",
        code="root.go",
    )
