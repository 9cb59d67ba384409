"""Islands with engines, one for all tests of a module, and their logs in the report of a failure."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.engines import image, island

_ISLANDS = pytest.StashKey[list[island.Island]]()


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The test image and the pause image."""
    directory = tmp_path_factory.mktemp("images")
    return {"test": image.test_image(directory), "pause": image.pause_image(directory)}


@pytest.fixture(scope="module")
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An island for the tests of one module."""
    with island.island(tmp_path_factory.mktemp("engines")) as made:
        request.config.stash.setdefault(_ISLANDS, []).append(made)
        yield made
        request.config.stash[_ISLANDS].remove(made)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, pytest.TestReport]:
    report: pytest.TestReport = yield
    if report.failed:
        for made in item.config.stash.get(_ISLANDS, []):
            for log in sorted(made.directory.glob("*.log")):
                lines = log.read_text(errors="replace").splitlines()
                report.sections.append((log.name, "\n".join(lines[-80:])))
    return report
