"""What a store has to look like after a power cut, and in what it does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

State = Mapping[str, Any]

# What a cut may leave, as long as a repair without force puts it right.
MENDED = {"image.unclean", "image.damaged", "resize.unfinished", "promised.mismatch"}


def expected(events: Iterable[Mapping[str, Any]]) -> list[dict[str, State]]:
    """The entries by name as they have to be: one possibility, or two when an operation had not returned."""
    certain: dict[str, State] = {}
    begun: Mapping[str, State | None] | None = None
    for event in events:
        if "begin" in event:
            begun = event["changes"]
        else:
            assert begun is not None
            certain, begun = _changed(certain, begun), None
    return [certain] if begun is None else [certain, _changed(certain, begun)]


def _changed(entries: dict[str, State], changes: Mapping[str, State | None]) -> dict[str, State]:
    changed = {**entries, **changes}
    return {name: state for name, state in changed.items() if state is not None}


def faults(events: Iterable[Mapping[str, Any]], report: Mapping[str, Any]) -> list[str]:
    """Every promise that the store broke, as sentences; of two possible states, against the nearer one."""
    if "failure" in report:
        return [f"the store cannot be used: {report['failure']}"]
    against = [list(_entries(entries, report["entries"])) for entries in expected(events)]
    return [*min(against, key=len), *_whole(report)]


def _entries(entries: Mapping[str, State], found: Mapping[str, State]) -> Iterator[str]:
    for name in found.keys() - entries.keys():
        yield f"{name!r} is there, but it was removed, or never made"
    for name, state in entries.items():
        if name not in found:
            yield f"{state['kind']} {name!r} is lost"
        else:
            yield from (f"{state['kind']} {name!r}: {fault}" for fault in _entry(state, found[name]))


def _entry(state: State, found: State) -> Iterator[str]:
    for key in ("kind", "parent", "limit", "labels"):
        if found[key] != state[key]:
            yield f"{key} is {found[key]!r}, not {state[key]!r}"
    if found["promised"] != (found["limit"] or 0):
        yield f"the account has {found['promised']} bytes for a limit of {found['limit']}"
    if "failure" in found:
        yield f"it cannot be mounted: {found['failure']}"
        return
    if state["content"] is not None:
        have, want = found["content"], state["content"]
        for path in sorted(have.keys() | want.keys()):
            if have.get(path) != want.get(path):
                yield f"{path} is {have.get(path)!r}, not {want.get(path)!r}"
    if state["kind"] == "active" and state["limit"]:
        if state["fresh"] and found["available"] < state["limit"]:
            yield f"only {found['available']} bytes of {state['limit']} are available"
        # Fresh images have up to 1 % more than was asked for, and a file of its own costs no more.
        if found["fitted"] is None or found["fitted"] > state["limit"] * 1.02:
            yield f"{found['fitted']} bytes fit into a limit of {state['limit']}"


def _whole(report: Mapping[str, Any]) -> Iterator[str]:
    for when in ("opened", "gc"):
        yield from (f"{when}: {note}" for note in report[when])
    yield from (f"check found {code}: {text}" for code, text, _ in report["found"] if code not in MENDED)
    yield from (f"not repaired: {code}: {text}" for code, text, done in report["repair"] if not done)
    yield from (f"after the repair: {code}: {text}" for code, text, _ in report["after"])
    yield from (f"left behind: {left}" for left in report["left"])
