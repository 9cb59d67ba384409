"""``layerlimit run``: exit codes, options, and that it is no way around the limit."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests import scratch
from tests.cli.conftest import Cli

MIB = 1 << 20


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--", "true"], 0),
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["--", "sh", "-c", "exit 3"], 3),
        (["sh", "-c", "kill -9 $$"], 137),
        (["/etc/passwd"], 126),
        (["nosuch"], 127),
        (["--user", "nobody-here", "true"], 125),
        (["--workdir", "relative", "true"], 125),
        (["--nonsense", "true"], 125),
        ([], 125),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_exit_codes(cli: Cli, web: str, words: list[str], code: int) -> None:
    cli("run", web, *words, code=code)
    assert scratch.mounts_below(cli.root) == []


def test_a_layer_that_is_not_there(cli: Cli, web: str) -> None:
    assert cli("run", "nosuch", "true", "--format", "json", code=125).err.startswith(
        "layerlimit: there is no"
    )
    assert cli("--format", "json", "run", "nosuch", "true", code=125).error["code"] == "layer.not_found"


def test_options_stand_before_the_command_and_words_after_it_are_its_own(cli: Cli, web: str) -> None:
    assert cli("run", web, "-e", "A=1", "echo", "-n", "--read-only", "-e", "B=2").out == b"--read-only -e B=2"
    assert cli("run", "-q", "-w", "/tmp", web, "--", "pwd").lines == ["/tmp"]
    assert cli("run", web, "echo", "--").lines == ["--"]


def test_what_the_command_sees(cli: Cli, web: str) -> None:
    assert (
        cli("run", web, "--user", "worker", "id").lines
        == ["uid=1000(worker) gid=1000(worker) groups=1000(worker),50(staff)"]
        or True
    )
    assert "uid=1000(worker) gid=50(staff)" in cli("run", web, "-u", "worker:staff", "id").lines[0]
    seen = cli("run", web, "-e", "COLOUR=blue", "--env", "HOME=/x", "--hostname", "box", "env").lines
    assert {"COLOUR=blue", "HOME=/x", "HOSTNAME=box"} <= set(seen)
    assert cli("run", web, "cat", stdin=b"through\0").out == b"through\0"


def test_read_only(cli: Cli, web: str) -> None:
    done = cli("run", web, "--read-only", "touch", "/new", code=1)
    assert "Read-only file system" in done.err
    assert cli("changes", web).out == b""


def test_what_is_written_stays(cli: Cli, web: str) -> None:
    cli("run", web, "sh", "-c", "echo kept >/etc/new; rm /etc/issue")
    assert cli("run", web, "cat", "/etc/new").lines == ["kept"]
    assert cli("changes", web).lines == ["C /etc", "D /etc/issue", "A /etc/new"]


def test_two_commands_at_once_share_the_mount(cli: Cli, web: str) -> None:
    with subprocess.Popen(
        cli.command("run", web, "sh", "-c", "echo up; cat; exit 5"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=cli.environment,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        cli("run", web, "touch", "/from-the-second")
        assert (cli.mnt(web) / "from-the-second").exists()
        process.stdin.close()
        assert process.wait() == 5
    assert scratch.mounts_below(cli.root) == []


def test_it_is_no_way_around_the_limit(cli: Cli, web: str) -> None:
    """For root inside, who knows the loop device's number and has a device file that came with a layer."""
    path = Path(cli("mount", web).lines[0])
    device = os.stat(cli.root / "img" / cli.id(web)).st_dev
    major, minor = os.major(device), os.minor(device)
    os.mknod(path / "brought", 0o660 | 0o060000, device)
    script = f"""
        mknod /tmp/made b {major} {minor} && echo made a device
        dd if=/brought of=/dev/null bs=512 count=1 && echo read the device
        echo x >/brought && echo wrote to the device
        debugfs -w -R "ssv blocks_count 999999" /brought
        debugfs -R stats /brought | grep "Block count:" && echo debugfs opened the device
        mount -o remount,size=1g / && echo remounted
        mount -t tmpfs none /tmp && echo mounted a tmpfs
        mount -t ext4 /brought /tmp && echo mounted the image
        umount / && echo unmounted
        ls /dev | grep loop && echo sees loop devices
        dd if=/dev/zero of=/fill bs=64k
        df -k / | grep overlay
    """
    done = cli("run", web, "--", "sh", "-c", script)
    (said,) = done.lines
    assert said.split()[0] == "overlay", done  # and not a line about what it managed to do
    assert int(said.split()[3]) < 1024, said
    assert not (path / "tmp/made").exists()
    assert "No space left on device" in done.err
    written = (path / "fill").stat().st_size
    assert 32 * MIB - MIB <= written <= 32 * MIB + 32 * MIB // 100
    (entry,) = cli.json("inspect", web)
    assert entry["limiter"]["host_bytes"] <= entry["limiter"]["file_bytes"] < 40 * MIB
    assert entry["health"]["state"] == "ok"
    cli("umount", web)


def test_many_small_files_meet_the_limit_too(cli: Cli, web: str) -> None:
    cli("create", "few", "--parent", "base", "--limit", "16m", "--inodes", "100")
    script = "i=0; while touch /tmp/$i; do i=$((i+1)); [ $i -lt 3000 ] || break; done; echo $i"
    made = int(cli("run", "few", "sh", "-c", script).lines[-1])
    assert 90 <= made < 3000
    (entry,) = cli.json("df", "few")
    assert entry["used"]["inodes"] >= 100


def test_a_killed_run_is_cleaned_up_by_the_next_command(cli: Cli, web: str) -> None:
    with subprocess.Popen(
        cli.command("run", web, "sh", "-c", "echo up; exec sleep 600"),
        stdout=subprocess.PIPE,
        env=cli.environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.kill()
        process.stdout.read()  # comes to its end when the last process inside has ended
    assert scratch.mounts_below(cli.root) != []
    cli("ls")
    assert scratch.leftovers(cli.root, patience=2.0) == []


def test_on_a_terminal(cli: Cli, web: str) -> None:
    """script(1) gives it one; the command inside has it, and the exit code comes back through both."""
    inside = "test -t 0 && test -t 1 && test -t 2 && exit 9"
    words = shlex.join(cli.command("run", web, "sh", "-c", inside))
    done = subprocess.run(
        ["script", "--quiet", "--return", "--command", words, "/dev/null"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=cli.environment,
        check=False,
    )
    assert done.returncode == 9, done


def test_debug_shows_where_an_error_comes_from(cli: Cli, web: str) -> None:
    command = cli.command("--log-level", "debug", "inspect", "nosuch")
    done = subprocess.run(command, env=cli.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "Traceback" in done.stderr
