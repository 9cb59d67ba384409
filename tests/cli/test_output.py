"""What goes to stdout, character by character."""

from __future__ import annotations

import json

from layerlimit.cli.output import columns, encode, pairs, printable


def test_printable_neither_forges_lines_nor_talks_to_the_terminal() -> None:
    assert printable("/a\nA /b\x1b[2J\x9b\x7f\u2028") == "/a\\x0aA /b\\x1b[2J\\x9b\\x7f\\x2028"
    assert printable("/naïve ☃ \\x0a") == "/naïve ☃ \\x0a"


def test_encode_keeps_names_that_are_not_utf_8() -> None:
    name = b"/\xff\xfe".decode(errors="surrogateescape")
    assert json.loads(encode({"path": name}))["path"] == name
    assert json.loads(encode({"path": name}, indent=2))["path"] == name
    assert encode({"path": "/ä"}) == '{"path":"/ä"}'.encode()


def test_columns() -> None:
    lines = list(columns(("NAME", "SIZE"), [("a", "10 B"), ("longer", "2 B")], right=(1,)))
    assert lines == ["NAME    SIZE", "a       10 B", "longer   2 B"]
    assert list(columns(("A", "B"), [("x", "")])) == ["A  B", "x"]


def test_pairs() -> None:
    assert pairs([("Name", "a"), ("Longer", 3)]) == ["Name:   a", "Longer: 3"]
