"""Finishing or undoing, in a whole root, what dead processes left half-done. Never waits for a lock."""

from __future__ import annotations

import contextlib

from layerlimit.driver.holds import Holds
from layerlimit.driver.layout import Layout
from layerlimit.driver.locks import Attempts, Held, Locks
from layerlimit.driver.mounting import Mounter, layer_of
from layerlimit.driver.openers import Openers
from layerlimit.driver.records import Records
from layerlimit.driver.removal import Removal
from layerlimit.errors import Error, from_os_error
from layerlimit.limit import ImageLimiter


class Sweep:
    """The sweep of one root. What somebody works on is skipped, and then the next opening sweeps again."""

    def __init__(
        self,
        layout: Layout,
        locks: Locks,
        records: Records,
        removal: Removal,
        holds: Holds,
        mounter: Mounter,
        limiter: ImageLimiter,
    ) -> None:
        self._layout = layout
        self._locks = locks
        self._records = records
        self._removal = removal
        self._holds = holds
        self._mounter = mounter
        self._limiter = limiter
        try:
            self._openers = Openers(layout.openers, locks)
        except OSError as error:
            raise from_os_error(error, f"open {layout.root}") from error

    def at_opening(self) -> bool:
        """Sweep if this boot has not seen it, or an opener died; whether it did. Else only the trash."""
        due = self._layout.go or self._openers.due
        try:
            if due:
                self.everything()
            else:
                self._trash()
        except BaseException:
            self.close(failed=True)
            raise
        return due

    def close(self, *, failed: bool) -> None:
        """Say that this opener has ended, and left nothing half-done unless it ``failed``."""
        if failed:
            self._openers.fail()
        self._openers.leave()

    def everything(self) -> None:
        """Sweep now; costs a look at every layer."""
        attempts = Attempts(self._locks)
        self._trash()
        try:
            self._removal.sweep_everywhere(attempts.attempt)
            if not self._layout.go:
                self._records.index(attempts.is_free)
            for key in self._holds.known():
                with attempts.attempt(layer_of(key)) as held:
                    if held is not None:
                        self._holds_of(key, held)
            if not attempts.failed:
                self._openers.swept()
        except OSError as error:
            raise from_os_error(error, f"clean up {self._layout.root}") from error

    def _trash(self) -> None:
        try:
            self._limiter.templates.sweep()
            self._removal.sweep(self._locks.attempt)
        except OSError as error:
            raise from_os_error(error, f"clean up {self._layout.root}") from error

    def _holds_of(self, key: str, held: Held) -> None:
        id = layer_of(key)
        if not self._records.exists(id):
            self._holds.clear(key)
            return
        self._holds.tidy(key)
        with contextlib.suppress(Error):  # damaged or busy layers speak up when somebody uses them
            self._mounter.settle(self._records.load_damaged(id), held, key)
