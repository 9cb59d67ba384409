"""How the suites get a driver and make layers in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from layerlimit.driver import Driver
from layerlimit.limit import Limit


class Factory(Protocol):
    """What a suite needs to know about the driver under test."""

    @property
    def name(self) -> str:
        """What ``str()`` of the driver says."""

    @property
    def limits(self) -> bool:
        """Whether a layer can have a limit; if not, asking for one must be refused."""

    def open(self, root: Path) -> Driver:
        """The driver over ``root``, which may exist; called again on the same root, too."""

    def create(self, driver: Driver, id: str, parent: str = "") -> None:
        """Make a layer the way this run is about: with a limit or without."""


@dataclass(frozen=True, slots=True)
class Drivers:
    """A factory: ``limit`` is for every layer with a parent, ``base_limit`` for those without one."""

    opener: Callable[[Path], Driver]
    name: str
    limits: bool = True
    limit: Limit | None = None
    base_limit: Limit | None = None

    def open(self, root: Path) -> Driver:
        return self.opener(root)

    def create(self, driver: Driver, id: str, parent: str = "") -> None:
        driver.create(id, parent, limit=self.limit if parent else self.base_limit)


class Behaviour:
    """A suite. Every test gets a driver of its own, which is cleaned up after it."""

    @pytest.fixture
    def driver(self, factory: Factory, root: Path) -> Iterator[Driver]:
        driver = factory.open(root)
        yield driver
        driver.cleanup()

    @pytest.fixture
    def create(self, factory: Factory, driver: Driver) -> Callable[..., None]:
        """``create(id, parent="")``: makes a layer as the factory wants it."""

        def create(id: str, parent: str = "") -> None:
            factory.create(driver, id, parent)

        return create
