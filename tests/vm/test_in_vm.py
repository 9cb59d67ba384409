"""The tests that run in the guest, each as a test of its own here.

Which ones: those of the lane ``resource``, and those of the lane ``mount2`` that are marked ``guest``; with
``--guest=all`` (``make test-vm``) the whole suite but for what looks at the checkout and not at the kernel.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pytest

from tests import conftest
from tests.vm import guest, recorder
from tests.vm.machine import CHECKOUT, MachineError

GUEST_SECONDS = 3 * 3600.0

pytestmark = [pytest.mark.lane("vm"), pytest.mark.timeout(GUEST_SECONDS + 600)]

# Left to `make test-vm`, since they take minutes on an emulated processor.
SLOW = ("42_layers", "concurrent_access", "deep_layer", "image-500", "image-all")

SELECTIONS = {
    "short": ["--for-guest", "-k", f"not ({' or '.join(SLOW)})"],
    "all": ["--ignore=tests/test_linters.py", "--ignore=tests/test_lanes.py"],
}


@functools.cache
def selected(selection: str, *options: str) -> list[str]:
    """The node ids of a selection."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *options]
    command += [*SELECTIONS[selection], "--ignore=tests/vm", "tests"]
    done = subprocess.run(command, cwd=CHECKOUT, check=False, capture_output=True, text=True)
    if done.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise pytest.UsageError(f"collecting the tests of the guest failed:\n{done.stdout}{done.stderr}")
    return [line for line in done.stdout.splitlines() if line.startswith("tests/") and "::" in line]


def long_option(config: pytest.Config) -> list[str]:
    return ["--long"] if config.option.long else []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "guest_test" in metafunc.fixturenames:
        names = selected(metafunc.config.option.guest, *long_option(metafunc.config))
        # Without "::", by which pytest-xdist would take them for tests of several classes and boot a guest in
        # each worker.
        ids = [name.removeprefix("tests/").replace("::", ":") for name in names]
        metafunc.parametrize("guest_test", names, ids=ids)


@dataclass(frozen=True, slots=True)
class GuestRun:
    """``reports`` by node id; ``end`` says how the run as a whole ended."""

    reports: dict[str, list[dict[str, Any]]]
    header: list[str]
    end: str


def chosen_in(session: pytest.Session) -> list[str]:
    """The guest's tests that this run is to report: all of the selection, or what ``-k`` left of it."""
    parameters = [item.callspec.params for item in session.items if hasattr(item, "callspec")]
    return [str(each["guest_test"]) for each in parameters if "guest_test" in each]


@pytest.fixture(scope="module")
def guest_run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> GuestRun:
    directory = tmp_path_factory.mktemp("guest")
    chosen = chosen_in(request.session)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.vm.recorder"]
    # Emulated processors are some ten times slower than the ones the tests' own timeouts are made for.
    command += ["-o", "timeout=1800", *long_option(request.config)]
    command += sorted({name.partition("::")[0] for name in chosen})
    environment = {recorder.REPORTS: "/run/share/reports", recorder.CHOSEN: "/run/share/chosen"}
    with guest.guest(directory) as machine:
        (machine.share / "chosen").write_text("\n".join(chosen), encoding="utf-8")
        try:
            done = guest.run(machine, *command, env=environment, timeout=GUEST_SECONDS)
        except MachineError as error:
            output, end = "", str(error)
        else:
            output = (done.stdout + done.stderr).decode(errors="replace")
            end = f"pytest in the guest ended with {done.returncode}:\n{output[-4000:]}"
            machine.shutdown()
    reports = defaultdict(list)
    recorded = machine.share / "reports"
    if recorded.exists():
        for line in recorded.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            reports[row["test"]].append(row)
    header = [line for line in output.partition("\nrootdir:")[0].splitlines() if ": " in line]
    request.config.stash[conftest.GUEST_HEADER] = header
    return GuestRun(reports=dict(reports), header=header, end=end)


def test_in_vm(guest_test: str, guest_run: GuestRun, request: pytest.FixtureRequest) -> None:
    reports = guest_run.reports.get(guest_test, [])
    assert reports, f"{guest_test} did not run in the guest; {guest_run.end}"
    for report in reports:
        if report["outcome"] == "failed":
            pytest.fail(f"in the guest:\n{report['text']}\n{report['output']}", pytrace=False)
        if report["expected"] is not None:
            pytest.xfail(report["expected"])
        if report["outcome"] == "skipped":
            # The guest's own run fails every skip that no missing lane explains.
            request.node.stash[conftest.SKIP_EXPLAINED] = True
            pytest.skip(f"in the guest: {report['reason']}")
    assert [report["when"] for report in reports] == ["setup", "call", "teardown"], guest_run.end


def test_guest_ran_nothing_else(guest_run: GuestRun, request: pytest.FixtureRequest) -> None:
    assert sorted(guest_run.reports) == sorted(chosen_in(request.session)), guest_run.end


def test_guest_has_what_it_is_for(guest_run: GuestRun) -> None:
    available = [name for line in guest_run.header if line.startswith("lanes: ") for name in line.split()]
    assert {"root", "resource", "overlay", "mount2", "loop"} <= set(available), guest_run.end
