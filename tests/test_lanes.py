"""The rules of tests/conftest.py, each shown by a run of pytest that breaks it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest

from tests import scratch

ROOT = Path(__file__).parent.parent


def run_pytest(*arguments: str, plugins: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs pytest in this checkout; modules in the directory ``plugins`` can be loaded with ``-p``."""
    paths = [str(path) for path in (plugins, os.environ.get("PYTHONPATH")) if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    line = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.run(line, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)


def inner(directory: Path, source: str) -> list[str]:
    """The arguments that run a test module ``source`` under this project's rules."""
    module = directory / "test_inner.py"
    module.write_text(source, encoding="utf-8")
    return ["-p", "tests.conftest", "-p", "no:cacheprovider", str(module)]


def run(directory: Path, source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_pytest(*arguments, *inner(directory, source))


def test_header_names_what_is_there(tmp_path: Path) -> None:
    done = run(tmp_path, "def test_nothing():\n    pass\n")
    assert done.returncode == 0, done.stdout
    assert f"kernel: {os.uname().release} " in done.stdout
    assert f"user {os.geteuid()}, capabilities " in done.stdout
    assert "\nlanes: " in done.stdout
    assert "gnu_tar" in done.stdout


def test_missing_lane_skips(tmp_path: Path) -> None:
    plugin = tmp_path / "without_strace.py"
    plugin.write_text(
        "from tests import lanes\nlanes._PROBES['strace'] = lambda _: 'taken away'\n", encoding="utf-8"
    )
    source = "import pytest\n@pytest.mark.lane('strace')\ndef test_it():\n    raise AssertionError\n"
    done = run_pytest("-p", "without_strace", *inner(tmp_path, source), plugins=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "lane missing: strace (taken away)" in done.stdout
    assert "1 skipped" in done.stdout


@pytest.mark.parametrize("mark", ["", "@pytest.mark.lane('gnu_tar')\n"], ids=["no lane", "available lane"])
def test_skip_without_a_missing_lane_fails(tmp_path: Path, mark: str) -> None:
    done = run(tmp_path, f"import pytest\n{mark}def test_it():\n    pytest.skip('not today')\n")
    assert done.returncode == 1, done.stdout
    assert "1 failed" in done.stdout
    assert "skipped although its lanes" in done.stdout


def test_module_that_skips_itself_fails(tmp_path: Path) -> None:
    done = run(tmp_path, "import pytest\npytest.importorskip('no_such_module')\ndef test_it():\n    pass\n")
    assert done.returncode != 0, done.stdout
    assert "skips itself" in done.stdout


def test_unknown_lane_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, "import pytest\n@pytest.mark.lane('warp')\ndef test_it():\n    pass\n")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "no such lane: ['warp']" in done.stderr


def test_lane_option_selects(tmp_path: Path) -> None:
    source = (
        "import pytest\n@pytest.mark.lane('gnu_tar')\ndef test_it():\n    pass\ndef test_other():\n    pass\n"
    )
    done = run(tmp_path, source, "--lane", "gnu_tar")
    assert "1 passed, 1 deselected" in done.stdout


def test_long_tests_wait_for_their_option(tmp_path: Path) -> None:
    source = "import pytest\n@pytest.mark.long\ndef test_it():\n    pass\ndef test_other():\n    pass\n"
    assert "1 passed, 1 deselected" in run(tmp_path, source).stdout
    assert "2 passed" in run(tmp_path, source, "--long").stdout


LEAKS = {
    "mount": ("root", "subprocess.run(['mount', '-t', 'tmpfs', 'none', directory], check=True)"),
    "loop device": ("loop", "subprocess.run(['losetup', '--find', image], check=True)"),
}


@pytest.mark.parametrize("leak", [pytest.param(key, marks=pytest.mark.lane(LEAKS[key][0])) for key in LEAKS])
@pytest.mark.parametrize("scope", ["test", "run"])
def test_leak_fails_and_is_cleared_away(tmp_path: Path, leak: str, scope: str) -> None:
    base = "tmp_path" if scope == "test" else "wide"
    source = (
        "import subprocess, pytest\n"
        "@pytest.fixture(scope='module')\n"
        "def wide(tmp_path_factory):\n    return tmp_path_factory.mktemp('wide')\n"
        f"def test_it({base}):\n"
        f"    directory = {base} / 'a b'\n    directory.mkdir()\n"
        f"    image = {base} / 'image'\n    image.write_bytes(bytes(4096))\n"
        f"    {LEAKS[leak][1]}\n"
        "def test_next(tmp_path):\n    pass\n"
    )
    done = run(tmp_path, source)
    assert done.returncode == 1, done.stdout
    assert f"left behind: {leak} " in done.stdout
    assert scratch.leftovers(tmp_path) == []
    directory = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("scratch: "))
    assert scratch.leftovers(Path(directory)) == []
    assert not Path(directory).exists()


HANGING = """
import subprocess, sys, time
def test_it(tmp_path):
    directory = tmp_path / "mnt"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True)
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    subprocess.run(["losetup", "--find", image], check=True)
    print(f"ready {tmp_path}", file=sys.__stderr__, flush=True)
    time.sleep(300)
"""


@pytest.mark.lane("root", "loop")
def test_sweep_takes_the_dead_and_spares_the_living(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "pytest", "-s", *inner(tmp_path, HANGING)]
    with subprocess.Popen(line, cwd=ROOT, stdout=DEVNULL, stderr=PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said, _, name = process.stderr.readline().strip().partition(" ")
            assert said == "ready"
            directory = Path(name)
            run_directory = next(path for path in directory.parents if path.parent == scratch.BASE)
            assert run_directory not in scratch.sweep()
            assert len(scratch.loops_below(directory)) == 1
        finally:
            process.kill()
            process.wait()
    # The mounts that the dead run saw alone are gone with it; one in a namespace that lives on is not.
    subprocess.run(["mount", "-t", "tmpfs", "none", run_directory / "tmp"], check=True)
    assert len(scratch.leftovers(run_directory)) == 2
    assert run_directory in scratch.sweep()
    assert scratch.leftovers(run_directory) == []
    assert not run_directory.exists()


@pytest.mark.parametrize(
    ("row", "accepted"), [("all = 1", True), ("all = 99999", False), ("strace = 99999", False)]
)
def test_full_run_counts_its_lanes(tmp_path: Path, row: str, accepted: bool) -> None:
    table = tmp_path / "counts.toml"
    table.write_text(row, encoding="utf-8")
    plugin = tmp_path / "other_counts.py"
    plugin.write_text(
        f"import pathlib\nfrom tests import conftest\nconftest.COUNTS = pathlib.Path({str(table)!r})\n",
        encoding="utf-8",
    )
    done = run_pytest("--collect-only", "-q", "-q", "-p", "other_counts", plugins=tmp_path)
    assert (done.returncode == 0) == accepted, done.stdout + done.stderr
    assert ("fewer tests collected than counts.toml says" in done.stderr) != accepted
