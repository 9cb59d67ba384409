"""What holds for every test: lanes, the scratch directory of the run, nothing left mounted or attached."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import tempfile
import tomllib
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import lanes, scratch

COUNTS = Path(__file__).with_name("lane-counts.toml")
# The header of the run inside the guest, for the summary (tests/vm/test_in_vm.py).
GUEST_HEADER = pytest.StashKey[list[str]]()
# Set on an item that may be skipped though its lanes are there: the guest lacks a lane of its test.
SKIP_EXPLAINED = pytest.StashKey[bool]()

_LANES = pytest.StashKey[dict[str, lanes.Lane]]()
_RUN_DIRECTORY = pytest.StashKey[Path]()
_LEFT_BEHIND = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("layerlimit")
    group.addoption("--long", action="store_true", help="also run the tests marked long")
    group.addoption("--lane", action="append", default=[], metavar="NAME", help="only tests of this lane")
    group.addoption("--guest", choices=["short", "all"], default="short", help="what the guest runs")
    group.addoption("--for-guest", action="store_true", help="only what --guest=short runs in the guest")
    group.addoption("--record-lane-counts", action="store_true", help=f"write {COUNTS.name}")


@pytest.hookimpl(tryfirst=True)  # before pytest settles on its base directory
def pytest_configure(config: pytest.Config) -> None:
    wheel = os.environ.get("LAYERLIMIT_WHEEL")
    if wheel and not _package().is_relative_to(wheel):
        raise pytest.UsageError(f"the tests would run {_package()}, not the wheel in {wheel}")
    # A shell's background job ignores SIGINT and SIGQUIT, one under nohup SIGHUP, and so would the programs
    # that tests send these signals to.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
    scratch.sweep()
    # In the host's namespace, mounts of other runs come and go; these end with this process, however it ends.
    scratch.enter_mount_namespace()
    with ExitStack() as stack:
        directory = stack.enter_context(scratch.run_directory())
        probing = directory / "probe"
        probing.mkdir()
        config.stash[_LANES] = lanes.probe(probing)
        config.stash[_RUN_DIRECTORY] = directory
        config.stash[_LEFT_BEHIND] = []
        if not config.option.basetemp:
            config.option.basetemp = str(directory / "pytest")
        os.environ["TMPDIR"] = tempfile.tempdir = str(directory / "tmp")
        config.add_cleanup(stack.pop_all().close)


def _package() -> Path:
    """Where the code under test lies; found without running it."""
    spec = importlib.util.find_spec("layerlimit")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def pytest_report_header(config: pytest.Config) -> list[str]:
    directory = config.stash[_RUN_DIRECTORY]
    found = config.stash[_LANES].values()
    return [
        f"kernel: {platform.release()} on {platform.machine()}",
        f"privileges: user {os.geteuid()}, capabilities {lanes.capabilities():x}",
        f"scratch: {directory} on {lanes.file_system(directory)}",
        f"package: {_package()}",
        f"lanes: {' '.join(lane.name for lane in found if not lane.missing)}",
        *(f"lane missing: {lane.name} ({lane.missing})" for lane in found if lane.missing),
        "programs: "
        + " ".join(program if shutil.which(program) else f"(no {program})" for program in lanes.PROGRAMS),
    ]


def _lanes_of(item: pytest.Item) -> list[str]:
    return [str(name) for mark in item.iter_markers("lane") for name in mark.args]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    found = config.stash[_LANES]
    for item in items:
        unknown = [name for name in _lanes_of(item) if name not in found]
        if unknown:
            raise pytest.UsageError(f"{item.nodeid}: no such lane: {unknown}; tests/lanes.py lists them")
    _check_counts(config, items)

    kept: list[pytest.Item] = []
    deselected: list[pytest.Item] = []
    for item in items:
        (kept if _is_selected(item) else deselected).append(item)
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = kept

    for item in items:
        missing = [found[name] for name in dict.fromkeys(_lanes_of(item)) if found[name].missing]
        if missing:
            reason = "; ".join(f"lane {lane.name}: {lane.missing}" for lane in missing)
            item.add_marker(pytest.mark.skip(reason=reason))


def _is_selected(item: pytest.Item) -> bool:
    option = item.config.option
    names = _lanes_of(item)
    if item.get_closest_marker("long") and not option.long:
        return False
    if option.for_guest:
        # What the guest is for: the privilege and the way of mounting that newer or smaller kernels do not
        # show.
        marked = item.get_closest_marker("guest") is not None and "mount2" in names
        if not marked and "resource" not in names:
            return False
    return not option.lane or not set(option.lane).isdisjoint(names)


def _is_whole(config: pytest.Config) -> bool:
    """Whether this run collects all there is."""
    told = _of_worker(config).get("whole")
    if told is not None:
        return bool(told)
    option = config.option
    narrowed = (
        option.lane,
        option.for_guest,
        option.keyword,
        option.markexpr,
        option.deselect,
        option.ignore,
    )
    return config.args_source == pytest.Config.ArgsSource.TESTPATHS and not any(narrowed)


def _check_counts(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A full run collects at least as many tests of each lane as the committed table says."""
    option = config.option
    counts = Counter(name for item in items for name in set(_lanes_of(item)))
    counts["all"] = len(items)
    if option.record_lane_counts:
        rows = "".join(f"{name} = {count}\n" for name, count in sorted(counts.items()))
        COUNTS.write_text(
            "# The fewest tests that a full run collects, per lane. A test that disappears fails the run.\n"
            "# `make lane-counts` writes this file.\n" + rows,
            encoding="utf-8",
        )
        return
    if not _is_whole(config):
        return
    expected = tomllib.loads(COUNTS.read_text(encoding="utf-8"))
    short = [f"{name}: {counts[name]} of {count}" for name, count in expected.items() if counts[name] < count]
    if short:
        said = f"fewer tests collected than {COUNTS.name} says: {', '.join(short)}"
        raise pytest.UsageError(f"{said} (on purpose? `make lane-counts`)")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, pytest.CollectReport]:
    """A module that skips itself as a whole would take its tests out of every count: that is a failure."""
    report: pytest.CollectReport = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = (
            f"{collector.nodeid} skips itself; mark its tests with their lanes: {report.longrepr}"
        )
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, pytest.TestReport]:
    """A test skipped although everything it says it needs is there is a failure."""
    report: pytest.TestReport = yield
    found = item.config.stash[_LANES]
    if report.skipped and not hasattr(report, "wasxfail"):
        names = _lanes_of(item)
        explained = item.stash.get(SKIP_EXPLAINED, False)
        if not explained and not any(found[name].missing for name in names):
            report.outcome = "failed"
            report.longrepr = f"skipped although its lanes {names} are available: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around the teardown of every fixture
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """A test that leaves a mount or a loop device below its directory fails; the next one starts clean."""
    try:
        yield
    finally:
        directory: Path | None = getattr(item, "funcargs", {}).get("tmp_path")
        left = scratch.leftovers(directory, patience=2.0) if directory else []
        if directory and left:
            scratch.release(directory)
    if left:
        pytest.fail(f"left behind: {', '.join(left)}", pytrace=False)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """The same for what fixtures of a wider scope made."""
    config = session.config
    left = scratch.leftovers(config.stash[_RUN_DIRECTORY], patience=2.0)
    if left:
        scratch.release(config.stash[_RUN_DIRECTORY])
    config.stash[_LEFT_BEHIND] += left
    if config.stash[_LEFT_BEHIND]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if hasattr(config, "workeroutput"):
        config.workeroutput |= {"left": left, "guest": config.stash.get(GUEST_HEADER, [])}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(GUEST_HEADER, []):
        terminalreporter.write_line(f"guest {line}")
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:  # of the fixture record_property: how much a test did
            terminalreporter.write_line(f"{report.nodeid}: {name} {value}")
    for left in config.stash[_LEFT_BEHIND]:
        terminalreporter.write_line(f"FAILED: the run left behind: {left}", red=True)


# With pytest-xdist (-n), each worker is a run with a directory of its own; the controller prints the summary.


def _of_worker(config: pytest.Config) -> dict[str, Any]:
    """What the controller told this worker; empty outside a worker."""
    told: dict[str, Any] = getattr(config, "workerinput", {})
    return told


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["whole"] = _is_whole(node.config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    output = getattr(node, "workeroutput", {})
    node.config.stash[_LEFT_BEHIND] += output.get("left", [])
    if output.get("guest"):
        node.config.stash[GUEST_HEADER] = output["guest"]
