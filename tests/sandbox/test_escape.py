"""Ways out of the sandbox, tried by root inside.

What is refused there is seen to work outside: else the refusal would show nothing.
"""

from __future__ import annotations

import os
import platform
import re
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from layerlimit.errors import Error
from layerlimit.linux.seccomp import CLONE, CLONE3, DENIED, UNSHARE
from layerlimit.sandbox import run
from tests.sandbox.inside import Inside, outside

pytestmark = pytest.mark.lane("root", "overlay")

COLUMN = {"x86_64": 0, "aarch64": 2}[platform.machine()]


def number(name: str) -> int:
    found = DENIED[name][COLUMN]
    assert found is not None
    return found


# Each line tries one thing that works for root outside, in a mount namespace of its own.
PRIVILEGED = f"""
directory = "/tmp/escape-%d" % os.getpid()
os.mkdir(directory)
os.chdir(directory)
attempt("mknod of a block device", lambda: os.mknod("block", stat.S_IFBLK | 0o600, os.makedev(7, 0)))
attempt("mknod of a character device", lambda: os.mknod("null", stat.S_IFCHR | 0o600, os.makedev(1, 3)))
attempt("mount", lambda: check(libc.mount(b"none", b".", b"tmpfs", 0, None)))
attempt("umount2", lambda: check(libc.umount2(directory.encode(), 2)))
attempt("remount", lambda: check(libc.mount(None, b"/proc", None, 0x1020, None)))
attempt("bind", lambda: check(libc.mount(b"/proc", directory.encode(), None, 0x1000, None)))
attempt("fsopen", lambda: os.close(syscall({number("fsopen")}, b"tmpfs", 0)))
attempt("open_tree", lambda: os.close(syscall({number("open_tree")}, -100, b"/", 1)))
attempt("mount_setattr", lambda: syscall({number("mount_setattr")}, -100, b"/proc", 0, bytes(32), 32))
attempt("unshare of a mount namespace", lambda: syscall({UNSHARE[COLUMN]}, 0x00020000))
attempt("clone with a user namespace", lambda: syscall({CLONE[COLUMN]}, 0x10000000, 0) or os._exit(0))
mine = os.open("/proc/self/ns/uts", os.O_RDONLY)
attempt("setns", lambda: syscall({number("setns")}, mine, 0))
attempt("quotactl", lambda: syscall({number("quotactl")}, 0x80000100, None, 0, None))  # Q_SYNC
attempt("add_key", lambda: syscall({number("add_key")}, b"user", b"layerlimit", b"x", 1, -1))
attempt("keyctl", lambda: syscall({number("keyctl")}, 0, -1, 0))
attempt("perf_event_open", lambda: os.close(
    syscall({number("perf_event_open")}, struct.pack("IIQ", 1, 128, 0) + bytes(112), 0, -1, -1, 0)))
attempt("bpf", lambda: os.close(
    syscall({number("bpf")}, 0, struct.pack("IIII", 2, 4, 4, 1) + bytes(56), 72)))
attempt("syslog", lambda: syscall({number("syslog")}, 10, None, 0))
attempt("settimeofday", lambda: syscall({number("settimeofday")}, None, None))
attempt("sysctl", lambda: opened("/proc/sys/vm/overcommit_memory", os.O_WRONLY))
if os.path.exists("/proc/sysrq-trigger"):
    attempt("sysrq", lambda: opened("/proc/sysrq-trigger", os.O_WRONLY))
attempt("core_pattern", lambda: opened("/proc/sys/kernel/core_pattern", os.O_WRONLY))
attempt("interrupts", lambda: opened("/proc/irq/default_smp_affinity", os.O_WRONLY))
attempt("sysfs", lambda: opened("/sys/kernel/profiling" if os.path.exists("/sys/kernel/profiling")
    else "/sys/kernel/uevent_seqnum", os.O_WRONLY))
attempt("sysfs of a block device", lambda: opened("/sys/block/loop0/queue/read_ahead_kb", os.O_WRONLY))
attempt("host name", lambda: check(libc.sethostname(b"escaped", 7)))
attempt("nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
os.chdir("/")
"""


@pytest.mark.guest
@pytest.mark.lane("loop")
def test_what_root_may_outside_is_refused_inside(inside: Inside) -> None:
    free = outside(PRIVILEGED + "\nlibc.umount2(directory.encode(), 2)\n", [inside.interpreter])
    (inside.root / "tmp").chmod(0o1777)
    confined = inside.python(PRIVILEGED)
    assert {name: result for name, result in free.items() if result != "ok"} == {}
    read_only = {"sysctl", "sysrq", "core_pattern", "interrupts", "sysfs", "sysfs of a block device"}
    expected = {name: "EROFS" if name in read_only else "EPERM" for name in free}
    expected["nice"] = "EACCES"
    assert confined == expected


def test_the_flags_of_clone3_cannot_be_seen_so_it_is_not_there(inside: Inside) -> None:
    program = (
        f'attempt("clone3", lambda: syscall({CLONE3[COLUMN]}, struct.pack("Q", 0x10000000) + bytes(56), 64))'
    )
    assert inside.python(program) == {"clone3": "ENOSYS"}


def test_no_call_of_the_list_gets_by(inside: Inside) -> None:
    """Called with nonsense, each would otherwise fail with another error (or, as reboot, with EPERM too)."""
    calls = {name: numbers[COLUMN] for name, numbers in DENIED.items() if numbers[COLUMN] is not None}
    lines = [
        f"attempt({name!r}, lambda: syscall({nr}, -1, -1, -1, -1, -1, -1))" for name, nr in calls.items()
    ]
    assert inside.python("\n".join(lines)) == dict.fromkeys(calls, "EPERM")


def test_the_capabilities_are_dockers_without_mknod_and_cannot_grow(inside: Inside) -> None:
    done = inside.sh("cat /proc/self/status; cat /proc/1/status")
    held = int(re.findall(r"CapEff:\t(\w+)", Path("/proc/self/status").read_text())[0], 16)
    for field, value in {
        "CapInh": 0,
        "CapPrm": 0xA00425FB & held,
        "CapEff": 0xA00425FB & held,
        "CapBnd": 0xA00425FB & held,
        "CapAmb": 0,
        "NoNewPrivs": 1,
        "Seccomp": 2,
    }.items():
        assert {int(found, 16) for found in re.findall(rf"{field}:\t(\w+)", done.out)} == {value}, field


def test_a_set_user_id_program_gives_a_user_nothing(inside: Inside) -> None:
    program = inside.root / "suid"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o4755)
    assert inside.run("/suid", "-u", user="4321").out == "4321\n"


def test_device_files_of_the_layer_do_not_work(inside: Inside) -> None:
    os.mknod(inside.root / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with (inside.root / "zero").open("rb") as file:
        assert file.read(1) == b"\0"
    assert inside.python('attempt("zero", lambda: opened("/zero"))') == {"zero": "EACCES"}


def test_chroot_does_not_lead_out(inside: Inside) -> None:
    (inside.root / "only-here").touch()
    found = inside.python("""
os.makedirs("/tmp/jail", exist_ok=True)
top = os.open("/", os.O_RDONLY)
os.chroot("/tmp/jail")
os.fchdir(top)
for _ in range(50):
    os.chdir("..")
os.chroot(".")
results["there"] = os.path.exists("/only-here")
""")
    assert found == {"there": True}


def test_file_handles_do_not_lead_out(inside: Inside) -> None:
    """Capability and filter both refuse it: CVE-2014-3519, "shocker"."""
    program = """
handle = ctypes.create_string_buffer(struct.pack("II", 128, 0) + bytes(128))
mount_id = ctypes.c_int()
check(libc.name_to_handle_at(-100, b"/dev", handle, ctypes.byref(mount_id), 0))
top = os.open("/dev", os.O_RDONLY)
attempt("open", lambda: os.close(check(libc.open_by_handle_at(top, handle, 0))))
"""
    assert outside(program, [inside.interpreter]) == {"open": "ok"}
    assert inside.python(program) == {"open": "EPERM"}


def test_the_init_cannot_be_traced_or_looked_into(inside: Inside) -> None:
    found = inside.python("""
attempt("ptrace", lambda: check(libc.ptrace(16, 1, 0, 0)))  # PTRACE_ATTACH
for name in ("exe", "root", "cwd", "fd/0"):
    attempt(name, lambda: os.readlink("/proc/1/" + name))
attempt("mem", lambda: opened("/proc/1/mem", os.O_RDWR))
attempt("environ", lambda: opened("/proc/1/environ"))
attempt("maps", lambda: open("/proc/1/maps").read())
""")
    assert found.pop("ptrace") == "EPERM"
    assert found == dict.fromkeys(found, "EACCES")


def test_the_processes_of_the_host_cannot_be_reached(inside: Inside) -> None:
    found = inside.python(f'attempt("kill", lambda: os.kill({os.getpid()}, 0))')
    assert found == {"kill": "ESRCH"}


@pytest.mark.guest
def test_nothing_of_the_kernel_can_be_written_to_through_proc_and_sys(inside: Inside) -> None:
    """Everything that root could open for writing, by walking; the files of processes are their own."""
    walk = """
writable = []
for top in ("/proc", "/sys"):
    for directory, names, files in os.walk(top):
        if directory == "/proc":
            names[:] = [n for n in names if not n.isdigit() and n not in ("self", "thread-self", "net")]
        for name in files:
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode  # without a write bit there is nothing to call
            if not stat.S_ISREG(mode) or not mode & 0o222:
                continue
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                writable.append(path)
            except OSError:
                pass
results["writable"] = writable
"""
    assert "/proc/sys/vm/swappiness" in outside(walk, [inside.interpreter])["writable"]
    assert inside.python(walk)["writable"] == []


def test_what_docker_masks_is_masked(inside: Inside) -> None:
    for path in ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/proc/acpi"):
        if Path(path).exists():
            assert inside.sh(f"if [ -d {path} ]; then ls -A {path}; else head -c 1 {path}; fi").out == ""


def test_text_cannot_be_put_into_a_terminal(inside: Inside) -> None:
    """TIOCSTI and TIOCLINUX; also with bits above the 32 that the kernel looks at (CVE-2019-10063)."""
    found = inside.python("""
master, slave = os.openpty()
for name, request in (("sti", 0x5412), ("linux", 0x541C), ("wide", 0x1_0000_5412)):
    attempt(name, lambda: check(libc.ioctl(slave, ctypes.c_ulong(request), b"x")))
attempt("winsize", lambda: check(libc.ioctl(slave, ctypes.c_ulong(0x5413), bytes(8))))
""")
    assert found == {"sti": "EPERM", "linux": "EPERM", "wide": "EPERM", "winsize": "ok"}


# -- the start ----------------------------------------------------------------------------------------------


def test_the_interpreter_cannot_be_written_to_by_what_it_executes(inside: Inside) -> None:
    """CVE-2019-5736: a script whose interpreter is /proc/self/exe executes the program that executes it."""
    (inside.root / "script").write_text(
        "#!/proc/self/exe\n"
        "import os\n"
        "print(os.stat('/proc/self/exe').st_ino)\n"
        "try:\n"
        "    os.chmod('/proc/self/exe', os.stat('/proc/self/exe').st_mode & 0o7777)\n"
        "except OSError as error:\n"
        "    print(error.errno)\n"
    )
    (inside.root / "script").chmod(0o755)
    done = inside.run("/script", env={"PYTHONHOME": sys.base_prefix})
    assert done.out == f"{Path(sys.executable).stat().st_ino}\n30\n", done.err  # EROFS


def test_a_working_directory_by_a_leaked_descriptor_is_refused(inside: Inside) -> None:
    """CVE-2024-21626: no descriptor of the host is open when names of the root's are resolved."""
    script = 'for n in 3 4 5 6 7 8 9 10 11 12; do [ ! -e "/proc/self/fd/$n/etc" ] || echo "$n"; done'
    assert inside.sh(script).out == ""
    for n in range(3, 12):
        with pytest.raises(Error, match="working directory"):
            inside.run("pwd", workdir=f"/proc/self/fd/{n}/..")


@pytest.mark.lane("strace")
def test_nothing_is_opened_by_name_between_entering_the_root_and_the_command(
    inside: Inside, tmp_path: Path
) -> None:
    """CVE-2019-14271: no module, library or table is loaded when names mean the root's files."""
    trace = tmp_path / "trace"
    program = (
        "from pathlib import Path; from layerlimit.sandbox import run; "
        f"run(Path({str(inside.root)!r}), ['true'], user='daemon')"
    )
    watched = "trace=pivot_root,open,openat,openat2,execve,readlink,stat,newfstatat,access,unlink,mkdir,chdir"
    command = ["strace", "-f", "-s", "200", "-o", str(trace), "-e", watched, sys.executable, "-c", program]
    subprocess.run(command, check=True, capture_output=True)
    lines = [line for line in trace.read_text().splitlines() if "ENOSYS" not in line]
    entered = [n for n, line in enumerate(lines) if "pivot_root(" in line][-1]
    executed = next(
        n for n, line in enumerate(lines) if n > entered and "execve(" in line and line.endswith(" = 0")
    )
    named = [re.sub(r"^\d+ +", "", line) for line in lines[entered + 1 : executed]]
    calls = [line for line in named if not line.startswith(("execve(", "<...", "+++", "---"))]
    names = {match for line in calls for match in re.findall(r'^\w+\([^"]*"([^"]*)"', line)}
    assert names == {"/"}  # the working directory
    assert not any(line.startswith(("open", "readlink")) for line in calls)


def test_a_fifo_or_a_huge_file_for_the_users_does_not_hang_the_start(inside: Inside) -> None:
    passwd = inside.root / "etc/passwd"
    passwd.unlink()
    os.mkfifo(passwd)
    with pytest.raises(Error, match="not a regular file"):
        inside.run("true", user="root")
    passwd.unlink()
    passwd.write_bytes(b"root:x:0:0::/:/bin/sh\n" * 200_000)
    with pytest.raises(Error, match="File too large"):
        inside.run("true", user="root")


def test_links_in_place_of_the_users_files_stay_inside(inside: Inside) -> None:
    secret = inside.root.parent / "memory/passwd"  # on a mount of its own, which the root does not show
    secret.write_text("outsider:x:1234:1234::/:/bin/sh\n")
    passwd = inside.root / "etc/passwd"
    passwd.unlink()
    passwd.symlink_to("../../../../../../../../.." + str(secret))
    with pytest.raises(Error, match="no user 'outsider'"):
        inside.run("true", user="outsider")
    passwd.unlink()
    passwd.symlink_to(f"/proc/{os.getpid()}/root{secret}")
    with pytest.raises(Error, match="no user 'outsider'"):
        inside.run("true", user="outsider")


def test_a_root_that_is_changed_during_a_run_uncovers_nothing(inside: Inside) -> None:
    """Somebody renames the mount point of /proc below a run: it moves with all its masks."""
    read_end, write_end = os.pipe()
    ready_read, ready_write = os.pipe()
    script = """
        echo
        read go
        ls -d /old/self
        echo 1 > /old/sys/vm/swappiness
        head -c 1 /old/kcore
        echo 1 > /proc/sys/vm/swappiness
    """
    codes: list[int] = []
    with tempfile.TemporaryFile() as err:
        thread = threading.Thread(
            target=lambda: codes.append(
                run(
                    inside.root, ["sh", "-c", script], stdin=read_end, stdout=ready_write, stderr=err.fileno()
                )
            )
        )
        thread.start()
        try:
            os.read(ready_read, 1)
            (inside.root / "proc").rename(inside.root / "old")
            (inside.root / "proc").mkdir()
        finally:
            os.write(write_end, b"\n")
            thread.join()
            os.close(ready_write)
            seen = os.read(ready_read, 100)
            for fd in (read_end, write_end, ready_read):
                os.close(fd)
        err.seek(0)
        complaints = err.read().decode()
    assert seen == b"/old/self\n"
    assert "/old/sys/vm/swappiness: Read-only file system" in complaints
    assert "/proc/sys/vm/swappiness: Directory nonexistent" in complaints
