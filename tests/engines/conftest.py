"""Engines for the tests of a module, and their logs in the report of a failure."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.engines import daemons, image, island

Land = Callable[[], AbstractContextManager[island.Island]]

_ISLANDS = pytest.StashKey[list[island.Island]]()
_VERSIONS = "engines: containerd {}, Debian's containerd {}, runc {}, Docker client {}, registry {}"


def pytest_report_header() -> str:
    programs = [(daemons.BUILT, "containerd"), (daemons.DEBIAN, "containerd")]
    programs += [(daemons.BUILT, name) for name in ("runc", "docker", "registry")]
    if not daemons.BUILT.exists():
        return "engines: none; scripts/engines builds them"
    return _VERSIONS.format(*(daemons.version(directory / name) for directory, name in programs))


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The test image and the pause image."""
    directory = tmp_path_factory.mktemp("images")
    return {"test": image.test_image(directory), "pause": image.pause_image(directory)}


@pytest.fixture(scope="session")
def land(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Land:
    """Makes an island in a directory of its own; its logs are shown when a test fails meanwhile."""

    @contextmanager
    def landed() -> Iterator[island.Island]:
        standing = pytestconfig.stash.setdefault(_ISLANDS, [])
        with island.island(tmp_path_factory.mktemp("engines")) as made:
            standing.append(made)
            try:
                yield made
            finally:
                standing.remove(made)

    return landed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, pytest.TestReport]:
    report: pytest.TestReport = yield
    if report.failed:
        for made in item.config.stash.get(_ISLANDS, []):
            for log in sorted(made.directory.glob("*.log")):
                lines = log.read_text(errors="replace").splitlines()
                report.sections.append((log.name, "\n".join(lines[-80:])))
    return report
