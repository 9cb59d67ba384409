"""What a command finds inside, and what its caller gets back."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from layerlimit.errors import Error, InvalidArgument, NotFound
from layerlimit.sandbox import run
from tests.sandbox.inside import Inside

pytestmark = pytest.mark.lane("root", "overlay")


# -- exit codes ------------------------------------------------------------------------------------------


def test_the_exit_code_is_the_commands(inside: Inside) -> None:
    assert inside.run("true").code == 0
    assert inside.sh("exit 7").code == 7
    assert inside.sh("exit 125").code == 125


def test_death_by_a_signal_is_128_and_its_number(inside: Inside) -> None:
    assert inside.sh("kill -TERM $$").code == 128 + signal.SIGTERM
    assert inside.sh("kill -KILL $$").code == 128 + signal.SIGKILL


def test_a_command_that_is_not_there_is_127(inside: Inside) -> None:
    for name in ("no-such-command", "/no/such/command", "/etc/passwd/x"):
        done = inside.run(name)
        assert done.code == 127
        assert done.err == f"layerlimit: cannot execute {name}: {os.strerror(2)}\n" or "Not a dir" in done.err


def test_a_command_that_cannot_be_executed_is_126(inside: Inside) -> None:
    (inside.root / "garbage").write_bytes(b"\x00garbage")
    (inside.root / "garbage").chmod(0o755)
    for name, reason in (
        ("/etc/passwd", "Permission denied"),
        ("/etc", "Permission denied"),
        ("/garbage", "Exec format error"),
    ):
        done = inside.run(name)
        assert (done.code, done.err) == (126, f"layerlimit: cannot execute {name}: {reason}\n")


def test_a_script_whose_interpreter_is_missing_is_127(inside: Inside) -> None:
    (inside.root / "script").write_text("#!/no/such/shell\n")
    (inside.root / "script").chmod(0o755)
    assert inside.run("/script").code == 127


def test_a_command_is_looked_up_in_the_path_it_will_have(inside: Inside) -> None:
    directory = inside.root / "opt/mine"
    directory.mkdir(parents=True)
    (directory / "tool").write_text("#!/bin/sh\necho mine\n")
    (directory / "tool").chmod(0o755)
    (inside.root / "opt/other").mkdir()
    (inside.root / "opt/other/tool").write_text("not executable")
    assert inside.run("tool").code == 127
    assert inside.run("tool", env={"PATH": "/opt/other:/opt/mine"}).out == "mine\n"
    assert inside.run("tool", env={"PATH": "/opt/other"}).code == 126
    assert inside.run("./tool", workdir="/opt/mine").out == "mine\n"


# -- environment, directory, names ------------------------------------------------------------------------


def test_the_environment_is_dockers_and_what_was_asked_for(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROM_HOST", "seen")
    monkeypatch.setenv("NOT_ASKED_FOR", "secret")
    monkeypatch.delenv("UNSET", raising=False)
    done = inside.run("env", env=["A=1=2", "FROM_HOST", "UNSET", "EMPTY="], hostname="box")
    assert sorted(done.out.splitlines()) == sorted(
        [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOSTNAME=box",
            "HOME=/root",
            "A=1=2",
            "FROM_HOST=seen",
            "EMPTY=",
        ]
    )
    assert "HOME=/elsewhere\n" in inside.run("env", env={"HOME": "/elsewhere"}).out


def test_bytes_that_are_not_utf8_pass_unchanged(inside: Inside) -> None:
    odd = os.fsdecode(b"\xff\xfe")
    script = 'printf %s "$ODD-$0" | od -An -tx1; basename "$PWD" | od -An -tx1'
    done = inside.run("sh", "-c", script, odd, env={"ODD": odd}, workdir="/" + odd)
    assert done.out.split() == ["ff", "fe", "2d", "ff", "fe", "ff", "fe", "0a"]
    assert (inside.root / odd).is_dir()


@pytest.mark.parametrize(
    "options",
    [
        {"argv": []},
        {"argv": [""]},
        {"argv": ["a\0b"]},
        {"env": ["=x"]},
        {"env": [""]},
        {"env": {"A=B": "x"}},
        {"env": {"A": "x\0"}},
        {"workdir": "relative"},
        {"workdir": ""},
        {"hostname": "x" * 65},
        {"user": ":"},
        {"user": "root:"},
        {"user": ":root"},
        {"user": "no-such-user"},
        {"user": "root:no-such-group"},
        {"user": "-1"},
        {"user": str(1 << 31)},
    ],
    ids=str,
)
def test_what_cannot_be_accepted_is_invalid(bare: Path, options: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        run(bare, **{"argv": ["true"], **options})  # type: ignore[arg-type]


def test_a_working_directory_is_made_inside_the_root(inside: Inside) -> None:
    (inside.root / "link").symlink_to("/etc")
    (inside.root / "up").symlink_to("../../../../../../var")
    assert inside.run("pwd", workdir="/made/for/it").out == "/made/for/it\n"
    assert inside.run("pwd", workdir="/link/made").out == "/etc/made\n"
    assert inside.run("pwd", workdir="/up").out == "/var\n"
    assert (inside.root / "etc/made").stat().st_mode & 0o7777 == 0o755
    assert not Path("/etc/made").exists()


def test_a_working_directory_that_cannot_be_is_an_error(inside: Inside) -> None:
    with pytest.raises(Error, match="use /etc/passwd as the working directory"):
        inside.run("pwd", workdir="/etc/passwd")
    with pytest.raises(Error, match="Read-only file system"):
        inside.run("pwd", workdir="/made", read_only=True)


def test_the_host_name_is_the_sandboxs_own(inside: Inside) -> None:
    assert inside.run("hostname", hostname="box").out == "box\n"
    assert inside.run("hostname").out == platform.node() + "\n"
    assert platform.node() != "box"


def test_who_runs_it(inside: Inside) -> None:
    with (inside.root / "etc/passwd").open("a") as file:
        file.write("tester:x:4321:4322:Test:/home/tester:/bin/sh\n")
    with (inside.root / "etc/group").open("a") as file:
        file.write("testers:x:4322:\nextra:x:4400:tester,other\nmore:x:4401:tester\n")
    script = "echo $(id -u) $(id -g) $(id -G) $HOME $(grep CapEff /proc/self/status)"
    capless = "CapEff: 0000000000000000"
    for user, expected in {
        "tester": f"4321 4322 4322 4400 4401 /home/tester {capless}",
        "4321": f"4321 4322 4322 4400 4401 /home/tester {capless}",
        "tester:extra": f"4321 4400 4400 /home/tester {capless}",
        "4321:9999": f"4321 9999 9999 /home/tester {capless}",
        "7777": f"7777 0 0 / {capless}",
        "7777:testers": f"7777 4322 4322 / {capless}",
    }.items():
        assert inside.sh(script, user=user).out == expected + "\n"
    assert inside.sh("id -u; id -g", user="root").out == "0\n0\n"


def test_files_made_inside_belong_to_the_user_and_have_umask_022(inside: Inside) -> None:
    (inside.root / "tmp").chmod(0o1777)
    before = os.umask(0o077)
    try:
        assert inside.sh("umask; touch /tmp/made", user="4321:4322").out == "0022\n"
    finally:
        os.umask(before)
    status = (inside.root / "tmp/made").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (4321, 4322, 0o644)


# -- descriptors -------------------------------------------------------------------------------------------


def test_three_descriptors_are_passed_and_no_other(inside: Inside) -> None:
    with open("/etc/passwd", "rb") as other:
        os.set_inheritable(other.fileno(), True)
        found = inside.python('results["open"] = sorted(os.listdir("/proc/self/fd"))')
    assert found["open"] == ["0", "1", "2", "3"]  # 3 is the listing itself


def test_standard_input_is_passed(inside: Inside) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"hello")
    os.close(write_end)
    assert inside.run("cat", stdin=read_end).out == "hello"
    os.close(read_end)


def test_a_file_for_reading_keeps_its_position_and_cannot_be_written_to(
    inside: Inside, tmp_path: Path
) -> None:
    path = tmp_path / "input"
    path.write_text("first\nsecond\n")
    script = "cat; echo changed > /proc/self/fd/0; echo changed > /dev/stdin; chmod 777 /proc/self/fd/0"
    with path.open("rb") as file:
        os.lseek(file.fileno(), 6, os.SEEK_SET)
        done = inside.sh(script, stdin=file.fileno())
    assert done.out == "second\n"
    assert done.err.count("Read-only file system") == 3
    assert path.read_text() == "first\nsecond\n"


def test_a_deleted_file_can_be_read(inside: Inside) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"still here")
        file.seek(0)
        assert inside.run("cat", stdin=file.fileno()).out == "still here"


def test_a_directory_is_not_passed(inside: Inside) -> None:
    directory = os.open("/", os.O_RDONLY)
    try:
        with pytest.raises(InvalidArgument, match="directory"):
            inside.run("true", stdin=directory)
    finally:
        os.close(directory)


def test_a_caller_without_standard_descriptors_passes_dev_null(root: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from layerlimit.sandbox import run; "
        "[os.close(n) for n in range(3)]; "
        f"code = run(Path({str(root)!r}), ['sh', '-c', sys.argv[1]]); "
        "os._exit(code)"
    )
    script = "readlink /proc/self/fd/0 > /seen; ls /proc/self/fd | wc -l >> /seen"
    done = subprocess.run([sys.executable, "-c", program, script], check=False)
    assert done.returncode == 0
    assert (root / "seen").read_text() == "/dev/null\n4\n"


def test_the_end_of_the_output_is_the_commands(inside: Inside) -> None:
    """The processes around the command keep no end of its pipe open while it runs on without it."""
    read_end, write_end = os.pipe()
    go_read, go_write = os.pipe()
    codes: list[int] = []
    thread = threading.Thread(
        target=lambda: codes.append(
            run(
                inside.root,
                ["sh", "-c", "exec >&-; read go"],
                stdin=go_read,
                stdout=write_end,
                stderr=go_read,
            )
        )
    )
    thread.start()
    try:
        # Ours stays open until the command has its copy; then only the command's closing ends the pipe.
        while "read go" not in " ".join(commands_of(descendants(os.getpid()))):
            time.sleep(0.01)
        os.close(write_end)
        assert os.read(read_end, 1) == b""
        assert thread.is_alive()
    finally:
        os.write(go_write, b"go\n")
        thread.join()
        for fd in (read_end, go_read, go_write):
            os.close(fd)
    assert codes == [0]


def descendants(ancestor: int) -> list[int]:
    """The processes that ``ancestor`` started, and those they started, nearest first."""
    found: list[int] = []
    todo = [ancestor]
    while todo:
        pid = todo.pop(0)
        try:
            children = [
                int(child)
                for task in Path(f"/proc/{pid}/task").iterdir()
                for child in (task / "children").read_text().split()
            ]
        except OSError:
            continue
        found += children
        todo += children
    return found


def commands_of(pids: list[int]) -> list[str]:
    found = []
    for pid in pids:
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        except OSError:
            pass
    return found


# -- the root ----------------------------------------------------------------------------------------------


def test_the_root_is_written_to_or_not(inside: Inside) -> None:
    assert inside.sh("echo x > /made").code == 0
    assert (inside.root / "made").read_text() == "x\n"
    done = inside.sh("echo y > /made", read_only=True)
    assert done.code != 0
    assert "Read-only file system" in done.err
    assert (inside.root / "made").read_text() == "x\n"


def test_a_root_given_by_a_link_is_the_directory_it_names(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(inside.root)
    assert run(tmp_path / "link", ["true"]) == 0


def test_a_root_that_is_not_there_or_no_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        run(tmp_path / "missing", ["true"])
    (tmp_path / "file").touch()
    with pytest.raises(Error, match="use the root"):
        run(tmp_path / "file", ["true"])


def test_missing_mount_points_are_made_and_stay_empty(bare: Path) -> None:
    for name in ("proc", "sys", "dev"):
        (bare / name).rmdir()
    with pytest.raises(Error, match="needs a directory /proc"):
        run(bare, ["true"], read_only=True)
    with open(os.devnull, "wb") as null:
        assert run(bare, ["/true"], stderr=null.fileno()) == 127
    assert [list((bare / name).iterdir()) for name in ("proc", "sys", "dev")] == [[], [], []]


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
def test_a_mount_point_that_is_a_link_is_refused(bare: Path, name: str) -> None:
    (bare / name).rmdir()
    (bare / name).symlink_to("/etc")
    with pytest.raises(Error, match=f"mount /{name} in the root"):
        run(bare, ["true"])
    assert list((bare / "etc").iterdir()) == []


def test_the_hosts_name_service_is_shown_and_cannot_be_changed(inside: Inside) -> None:
    for name in ("resolv.conf", "hosts"):
        (inside.root / "etc" / name).unlink(missing_ok=True)
        (inside.root / "etc" / name).write_text("the layer's\n")
    done = inside.sh("cat /etc/resolv.conf /etc/hosts; echo x >> /etc/resolv.conf; echo x >> /etc/hosts")
    expected = "".join(Path("/etc", name).read_text() for name in ("resolv.conf", "hosts"))
    assert done.out == expected
    assert done.err.count("Read-only file system") == 2
    assert (inside.root / "etc/resolv.conf").read_text() == "the layer's\n"


def test_a_root_without_the_files_of_the_name_service_gets_none(inside: Inside) -> None:
    for name in ("resolv.conf", "hosts"):
        (inside.root / "etc" / name).unlink(missing_ok=True)
    (inside.root / "etc/hosts").symlink_to("/proc/1/environ")
    assert inside.sh("ls /etc/resolv.conf").code == 2
    assert not (inside.root / "etc/resolv.conf").exists()


def test_a_link_to_the_name_service_is_followed_inside_the_root(inside: Inside) -> None:
    (inside.root / "etc/resolv.conf").unlink(missing_ok=True)
    (inside.root / "etc/resolv.conf").symlink_to("../../../../../run/resolve/stub.conf")
    (inside.root / "run/resolve").mkdir(parents=True)
    (inside.root / "run/resolve/stub.conf").write_text("the layer's\n")
    assert inside.run("cat", "/etc/resolv.conf").out == Path("/etc/resolv.conf").read_text()


# -- processes ---------------------------------------------------------------------------------------------


def test_what_the_command_leaves_behind_ends_with_it(inside: Inside) -> None:
    marker = "86399.25"
    assert (
        inside.sh(f"setsid sleep {marker} & setsid sh -c 'trap \"\" TERM HUP; sleep {marker}' & exit 3").code
        == 3
    )
    assert [line for line in commands_of(all_pids()) if marker in line] == []


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def test_the_init_tells_nothing_of_the_host(inside: Inside) -> None:
    assert (
        inside.sh("tr -d '\\0' < /proc/1/cmdline; cat /proc/1/comm").out == "layerlimit-initlayerlimit-init\n"
    )


def test_orphans_are_reaped(inside: Inside) -> None:
    script = "for i in 1 2 3 4 5; do sh -c 'true & exec true'; done; sleep 0.3; cat /proc/[0-9]*/stat"
    states = [line.split(") ")[1][0] for line in inside.sh(script).out.splitlines()]
    assert "Z" not in states
    assert states


def test_the_command_sees_only_the_processes_of_its_sandbox(inside: Inside) -> None:
    found = inside.python('results["pids"] = [int(n) for n in os.listdir("/proc") if n.isdigit()]')
    assert found["pids"] == [1, 2]


def test_a_signal_to_the_caller_reaches_the_command(root: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from layerlimit.sandbox import run; "
        f"sys.exit(run(Path({str(root)!r}), ['sh', '-c', sys.argv[1]]))"
    )
    script = "trap 'echo got; exit 9' $SIGNAL; echo ready; while :; do sleep 0.05; done"
    for name in ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2"):
        command = [sys.executable, "-c", program, script.replace("$SIGNAL", name)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as caller:
            assert caller.stdout is not None
            assert caller.stdout.readline() == "ready\n"
            caller.send_signal(getattr(signal, f"SIG{name}"))
            assert caller.stdout.read() == "got\n"
        assert caller.returncode == 9


def test_a_signal_without_a_handler_ends_the_command_and_the_handlers_come_back(root: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    read_end, write_end = os.pipe()

    def interrupt() -> None:
        os.read(read_end, 1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert run(root, ["sh", "-c", "echo; exec sleep 60"], stdout=write_end) == 128 + signal.SIGINT
    thread.join()
    os.close(read_end)
    os.close(write_end)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("who", ["caller", "monitor"])
def test_kill_9_leaves_nothing(root: Path, who: str) -> None:
    marker = "86398.5"
    program = (
        "import sys; from pathlib import Path; from layerlimit.sandbox import run; "
        f"run(Path({str(root)!r}), ['sh', '-c', 'setsid sleep {marker} & echo ready; sleep {marker}'])"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as caller:
        try:
            assert caller.stdout is not None
            assert caller.stdout.readline() == "ready\n"
            while commands_of(descendants(caller.pid)).count(f"sleep {marker} ") < 2:
                time.sleep(0.01)
            inside = descendants(caller.pid)
            if who == "caller":
                caller.kill()
            else:
                os.kill(inside[0], signal.SIGKILL)
            assert caller.stdout.read() == ""  # nobody has the pipe any more: all inside are dead
        finally:
            caller.kill()
    assert [line for line in commands_of(inside) if "sleep" in line] == []
    # and the fixture's plain unmount shows that nothing holds the root


def test_several_at_once_on_one_root(inside: Inside) -> None:
    codes: dict[int, int] = {}
    threads = [
        threading.Thread(target=lambda n=n: codes.update({n: inside.sh(f"sleep 0.1; exit {n}").code}))
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == {n: n for n in range(6)}


def test_nothing_stays_open_in_the_caller(inside: Inside) -> None:
    inside.run("true")
    before = sorted(os.listdir("/proc/self/fd"))
    inside.run("true")
    with pytest.raises(Error):
        inside.run("true", workdir="/etc/passwd")
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_without_privileges_it_is_a_typed_error(root: Path) -> None:
    program = (
        "from pathlib import Path; from layerlimit.errors import Error; from layerlimit.sandbox import run; "
        "from layerlimit.linux import capabilities as c; c.restrict(c.mask(c.CAP_SETPCAP))\n"
        f"try: run(Path({str(root)!r}), ['true'])\n"
        "except Error as error: print(type(error).__name__, error.hint)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "PermissionDenied run it as root\n"


def test_a_stream_that_is_not_open_is_a_typed_error(root: Path) -> None:
    with pytest.raises(Error, match="Bad file descriptor"):
        run(root, ["true"], stdin=987)


# -- mounts ------------------------------------------------------------------------------------------------
