"""AUFS options: each call whole, nothing left out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerlimit.errors import InvalidArgument
from layerlimit.union import aufs_options
from tests.union.stacks import sha256

TAIL = ["dio", "xino=/dev/shm/aufs.xino", "dirperm1"]
PAGE = 4095

# Names as AUFS can take them, at most 48 bytes; the kernel counts bytes, not characters.
name = st.text(st.characters(exclude_characters=":,=\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
LEAST = 48 + len("append:") + len("=ro+wh")


def taken_apart(calls: list[str]) -> tuple[list[str], list[str]]:
    """The branches and the other options, as the kernel would read them."""
    found: list[str] = []
    others: list[str] = []
    for number, data in enumerate(calls):
        for option in data.split(","):
            if option.startswith("br:") and number == 0:
                found += option.removeprefix("br:").split(":")
            elif option.startswith("append:"):
                found.append(option.removeprefix("append:"))
            else:
                others.append(option)
    return found, others


def branches(names: list[str]) -> list[str]:
    return [aufs_options.writable(names[0]), *map(aufs_options.read_only, names[1:])]


@given(st.lists(name, min_size=1, max_size=200), st.integers(LEAST, 400))
def test_nothing_is_lost_and_no_call_is_too_long(names: list[str], room: int) -> None:
    wanted = branches(names)
    calls = aufs_options.calls(wanted, ["dio"], room=room)
    assert taken_apart(calls) == (wanted, ["dio"])
    assert max(len(data.encode()) for data in calls) <= room


@given(st.lists(name, min_size=1), st.integers(LEAST, 400), st.integers(0, 9), st.integers(0))
def test_a_branch_that_fits_no_call_is_refused(names: list[str], room: int, surplus: int, at: int) -> None:
    names.insert(at % (len(names) + 1), "x" * (room - len("=rw") + surplus))
    with pytest.raises(InvalidArgument) as caught:
        aufs_options.calls(branches(names), ["dio"], room=room)
    assert caught.value.code == "aufs.page"


def test_a_short_stack_is_one_call() -> None:
    wanted = [aufs_options.writable("/d/2"), aufs_options.read_only("/d/1"), aufs_options.read_only("/d/0")]
    assert aufs_options.calls(wanted, TAIL, room=PAGE) == [
        "br:/d/2=rw:/d/1=ro+wh:/d/0=ro+wh,dio,xino=/dev/shm/aufs.xino,dirperm1"
    ]


def test_the_rest_is_appended_in_as_few_calls_as_fit() -> None:
    root = "/var/lib/docker/aufs/diff/"
    names = [root + sha256(number) for number in range(126)]
    wanted = [aufs_options.writable(names[0]), *map(aufs_options.read_only, names[1:])]
    calls = aufs_options.calls(wanted, TAIL, room=PAGE)
    assert taken_apart(calls) == (wanted, TAIL)
    assert len(calls) == 4  # 41 branches of 97 bytes, then 39 with "append:" before each
    assert all(data.startswith("append:") for data in calls[1:])
    for data, following in itertools.pairwise(calls[1:]):
        first = following.split(",")[0]
        assert len(data) + 1 + len(first) > PAGE


def test_no_call_has_more_options_than_aufs_has_room_for() -> None:
    wanted = [aufs_options.writable("/w"), *(aufs_options.read_only(f"/{number}") for number in range(200))]
    calls = aufs_options.calls(wanted, TAIL, room=PAGE)
    assert taken_apart(calls) == (wanted, TAIL)
    for number, data in enumerate(calls):
        options = data.count(",") + 1 + (data.count(":") - 1 if number == 0 else 0)
        assert options <= aufs_options.OPTIONS_MAX


@pytest.mark.parametrize("length", range(40, 100))
def test_the_page_may_end_anywhere_in_a_branch(length: int) -> None:
    """Every position of the cut: between two branches, within a path, within ``=ro+wh``."""
    wanted = [aufs_options.writable("/" + "w" * length)]
    wanted += [aufs_options.read_only(f"/{number:03}" + "d" * (length - 3)) for number in range(126)]
    calls = aufs_options.calls(wanted, TAIL, room=PAGE)
    assert taken_apart(calls) == (wanted, TAIL)
    assert max(map(len, calls)) <= PAGE


@pytest.mark.parametrize("at", [0, 1, 60])
def test_a_branch_that_never_fits_is_refused(at: int) -> None:
    names = [f"/{number}" for number in range(61)]
    names[at] = "/" + "x" * PAGE
    wanted = [aufs_options.writable(names[0]), *map(aufs_options.read_only, names[1:])]
    with pytest.raises(InvalidArgument, match="does not fit the page"):
        aufs_options.calls(wanted, TAIL, room=PAGE)
