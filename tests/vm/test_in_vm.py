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

pytestmark = [pytest.mark.lane("vm"), pytest.mark.timeout(3600)]

# Left to `make test-vm`, since they take minutes on an emulated processor.
SLOW = ("42_layers", "image-500", "image-all")

SELECTIONS = {
    "short": ["--for-guest", "-k", f"not ({' or '.join(SLOW)})", "tests", "--ignore=tests/vm"],
    "all": ["tests", "--ignore=tests/vm", "--ignore=tests/test_linters.py", "--ignore=tests/test_lanes.py"],
}


@functools.cache
def chosen(selection: str) -> list[str]:
    """The node ids of the guest's tests, as the same command collects them on the host."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *SELECTIONS[selection]], cwd=CHECKOUT, check=False, capture_output=True, text=True
    )
    if done.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise pytest.UsageError(f"collecting the tests of the guest failed:\n{done.stdout}{done.stderr}")
    return [line for line in done.stdout.splitlines() if line.startswith("tests/") and "::" in line]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "guest_test" in metafunc.fixturenames:
        names = chosen(metafunc.config.option.guest)
        metafunc.parametrize("guest_test", names, ids=[name.removeprefix("tests/") for name in names])


@dataclass(frozen=True, slots=True)
class GuestRun:
    """``reports`` by node id; ``end`` says how the run as a whole ended."""

    reports: dict[str, list[dict[str, Any]]]
    header: list[str]
    end: str


@pytest.fixture(scope="module")
def guest_run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> GuestRun:
    directory = tmp_path_factory.mktemp("guest")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.vm.recorder"]
    # Emulated processors are some ten times slower than the ones the tests' own timeouts are made for.
    command += ["-o", "timeout=1800", *SELECTIONS[request.config.option.guest]]
    environment = {recorder.REPORTS: "/run/share/reports"}
    with guest.guest(directory) as machine:
        try:
            done = guest.run(machine, *command, env=environment, timeout=3500.0)
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
    assert sorted(guest_run.reports) == sorted(chosen(request.config.option.guest)), guest_run.end


def test_guest_has_what_it_is_for(guest_run: GuestRun) -> None:
    available = [name for line in guest_run.header if line.startswith("lanes: ") for name in line.split()]
    assert {"root", "resource", "overlay", "mount2", "loop"} <= set(available), guest_run.end
