"""``layerlimit doctor``: what works here."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any, Final

import click

from layerlimit import __version__
from layerlimit.cli.describe import LIFTED_BY, capacity_entry, capacity_text
from layerlimit.cli.diagnosis import Finding, Proof, scratch, try_limit, try_union
from layerlimit.cli.options import Command
from layerlimit.cli.output import pairs, printable
from layerlimit.cli.settings import Settings, require_root
from layerlimit.errors import Error, NotSupported
from layerlimit.limit import LIMITERS, format_size
from layerlimit.limit.ext4 import program
from layerlimit.linux import capabilities
from layerlimit.linux.statfs import statfs
from layerlimit.store import Capacity
from layerlimit.union import MECHANISMS

# What each is needed for (capabilities(7)).
_CAPABILITIES: Final = {
    "CAP_SYS_ADMIN": (21, "to mount"),
    "CAP_SYS_RESOURCE": (24, "to grow a mounted layer"),
    "CAP_MKNOD": (27, "to make device files of layers, and whiteouts"),
    "CAP_CHOWN": (0, "to give files their owners"),
    "CAP_DAC_OVERRIDE": (1, "to read what others own"),
    "CAP_FOWNER": (3, "to set modes and times"),
    "CAP_SETFCAP": (31, "to restore file capabilities"),
    "CAP_LINUX_IMMUTABLE": (9, "to guard mount points"),
}
_EXIT_NOTHING_WORKS: Final = NotSupported.exit_code


@click.command("doctor", cls=Command, short_help="Say what works on this machine, by trying it.")
@click.pass_obj
def command(settings: Settings) -> int:
    """Say for each union and limiter whether it works here, and why not; and what limits promise of the disk.

    Each is tried in a scratch directory on the disk of the root: unions are mounted, limits are written past
    and grown. The exit code is 0 when at least one limit holds, else 7.
    """
    require_root()
    with scratch(settings.root) as where:
        unions = [try_union(name, where) for name in MECHANISMS]
        limiters = [_limiter(name, unions, where) for name in LIMITERS]
    capacity, trouble = _capacity(settings)
    report = {**_machine(settings.root), "unions": [_union(each) for each in unions], "limiters": limiters}
    report["root"]["capacity"] = capacity_entry(capacity) if capacity else None
    report["root"]["trouble"] = trouble
    told = f"unknown: {trouble}" if trouble else capacity_text(capacity) if capacity else "no layers yet"
    settings.show(report, *_lines(report, told))
    return 0 if any(entry["works"] for entry in limiters) else _EXIT_NOTHING_WORKS


def _capacity(settings: Settings) -> tuple[Capacity | None, str]:
    """What the store promises, if there is one; or why that cannot be told."""
    if not (settings.root / "store.db").exists():
        return None, ""
    try:
        with settings.open_store() as store:
            return store.capacity(), ""
    except Error as error:
        return None, str(error)


def _machine(root: Path) -> dict[str, Any]:
    near = next(path for path in (root, *root.parents) if path.is_dir())
    space = statfs(near)
    held = capabilities.read().effective
    return {
        "version": __version__,
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "root": {
            "path": str(root),
            "exists": (root / "layers").exists(),
            "file_system": space.name,
            "free_bytes": space.bavail * space.frsize,
        },
        "e2fsprogs": {name: _version_of(name) for name in ("mke2fs", "e2fsck", "resize2fs")},
        "capabilities": {name: bool(held >> number & 1) for name, (number, _) in _CAPABILITIES.items()},
    }


def _version_of(name: str) -> str | None:
    """The version that an e2fsprogs program says it has; null when it is not installed."""
    try:
        option = [] if name == "resize2fs" else ["-V"]  # resize2fs says it with its usage
        done = subprocess.run(
            [program(name), *option],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except NotSupported:
        return None
    words = (done.stderr or done.stdout).split()
    return words[1] if len(words) > 1 else ""


def _union(found: Finding) -> dict[str, Any]:
    return {"name": found.name, "works": found.works, "why": found.why}


def _limiter(name: str, unions: list[Finding], where: Path) -> dict[str, Any]:
    """The limiter over the first union that works, which is the one that is used by default."""
    entry: dict[str, Any] = {
        "name": name,
        "union": None,
        "works": False,
        "why": "no union works",
        "proof": None,
        "lifted_by": LIFTED_BY[name],
    }
    for union in unions:
        if not union.works:
            continue
        entry["union"] = union.name
        try:
            proof = try_limit(name, union.name, where)
        except Error as error:
            entry["why"] = str(error)
            break
        entry["proof"] = _proof(proof)
        entry["works"] = proof.holds
        entry["why"] = "" if proof.holds else "the limit does not hold"
        break
    return entry


def _proof(proof: Proof) -> dict[str, Any]:
    return {
        "asked_bytes": proof.asked,
        "shown_bytes": proof.shown,
        "written_bytes": proof.written,
        "answer": proof.answer,
        "grows_mounted": proof.grows_mounted,
        "grows_unmounted": proof.grows_unmounted,
        "why_not_mounted": proof.why_not_mounted,
    }


def _lines(report: dict[str, Any], capacity: str) -> list[str]:
    root, tools, held = report["root"], report["e2fsprogs"], report["capabilities"]
    missing = [f"{name} {_CAPABILITIES[name][1]}" for name, has in held.items() if not has]
    exists = "" if root["exists"] else ", not made yet"
    free = format_size(root["free_bytes"])
    rows = [
        ("layerlimit", report["version"]),
        ("kernel", f"{report['kernel']} on {report['architecture']}"),
        ("root", f"{printable(root['path'])} on {root['file_system']}, {free} free{exists}"),
        ("capacity", capacity),
        ("e2fsprogs", ", ".join(f"{name} {version or 'missing'}" for name, version in tools.items())),
        ("capabilities", f"missing: {', '.join(missing)}" if missing else "all that are needed"),
    ]
    rows += [
        (f"union {each['name']}", "works" if each["works"] else f"no: {each['why']}")
        for each in report["unions"]
    ]
    for each in report["limiters"]:
        label = f"limiter {each['name']}"
        proof = each["proof"]
        if proof is None:
            rows.append((label, f"no: {each['why']}"))
            continue
        verdict = f"works over {each['union']}" if each["works"] else f"no: {each['why']}"
        grows = "mounted or not" if proof["grows_mounted"] else f"only unmounted: {proof['why_not_mounted']}"
        rows += [
            (label, f"{verdict}: {_story(proof)}"),
            ("  grows", grows if proof["grows_unmounted"] else "no"),
            ("  can be lifted by", each["lifted_by"]),
        ]
    return pairs(rows)


def _story(proof: dict[str, Any]) -> str:
    asked, shown, written = proof["asked_bytes"], proof["shown_bytes"], proof["written_bytes"]
    return (
        f"of {asked} bytes asked, {shown} were shown and {written} could be written, then {proof['answer']}"
    )
