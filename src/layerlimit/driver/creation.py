"""Making a layer, step by step; see docs/driver.md for what a crash between them leaves.

All of it is written first, under names that a sweep explains, and then synced in the order of the steps: so
a journal takes it in two goes, of which the second is the chain's name, and the disk is waited for twice.
"""

from __future__ import annotations

import os
from functools import partial

from layerlimit.driver.layout import Layout
from layerlimit.driver.records import Records
from layerlimit.errors import from_os_error
from layerlimit.limit import Limit, Limiter
from layerlimit.linux import files


class Creation:
    """Creations in one root, of layers whose top directories belong to ``owner``."""

    def __init__(self, layout: Layout, records: Records, limiter: Limiter, owner: tuple[int, int]) -> None:
        self._layout = layout
        self._records = records
        self._limiter = limiter
        self._owner = owner

    def make(self, id: str, chain: tuple[str, ...], limit: Limit | None) -> None:
        """The steps of a creation. ``meta/<id>`` first: pieces with it but without a chain are half-made."""
        try:
            self._records.stage_chain(id, chain)
            if limit is None:
                settle = self._records.announce(id, None)
            else:
                self._limiter.create(id, limit, self._owner, announce=partial(self._records.announce, id))
            for path in (f"{self._layout.root}/diff/{id}", f"{self._layout.root}/mnt/{id}"):
                self._make_directory(path, shut=limit is not None and not self._layout.go)
            if limit is None:  # an image brings what it is bound at
                settle()
                files.sync_directory(self._layout.root / "diff")
            self._records.write_chain(id, chain)
        except OSError as error:
            raise from_os_error(error, f"create layer {id}") from error

    def _make_directory(self, path: str, *, shut: bool) -> None:
        os.mkdir(path, 0o755)
        os.chmod(path, 0o755)
        if self._owner != (0, 0):
            os.chown(path, *self._owner)
        if shut:
            files.set_immutable(path, True)  # nothing is ever to be written past the image
