"""containerd's filter language, for listing entries.

    filter   = selector *("," selector)          all must match; of several filters one must
    selector = fieldpath [op value]              without an operator: the field is there
    op       = "==" | "!=" | "~="                ~= is a regular expression, searched
    fieldpath = field *("." field)               field: [A-Za-z0-9_]+ or "quoted"

Fields are ``name``, ``parent``, ``kind`` and ``labels.<key>``. Source: pkg/filters of containerd.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from layerlimit.errors import InvalidArgument

_TOKEN = re.compile(
    r"\s*(?:(?P<op>==|!=|~=)|(?P<separator>[.,])|(?P<quoted>\"(?:[^\"\\\n]|\\.)*\")|(?P<field>[A-Za-z0-9_]+))"
)
_VALUE = re.compile(r"\s*(?:(?P<quoted>\"(?:[^\"\\\n]|\\.)*\")|(?P<bare>[^\s,\"/|][^\s,]*))")
_PATTERN = re.compile(r"\s*(?P<pattern>/(?:[^/\\]|\\.)*/|\|(?:[^|\\]|\\.)*\|)")

Fields = Mapping[str, str]
Matcher = Callable[[Fields, Fields], bool]


@dataclass(frozen=True, slots=True)
class _Selector:
    path: tuple[str, ...]
    operator: str
    value: str

    def matches(self, fields: Fields, labels: Fields) -> bool:
        if self.path[0] == "labels":
            found = labels.get(".".join(self.path[1:]))
        else:
            found = fields.get(self.path[0]) if len(self.path) == 1 else None
        if self.operator == "":
            return found is not None
        if self.operator == "==":
            return found is not None and found == self.value
        if self.operator == "!=":
            return (found or "") != self.value
        try:
            return found is not None and re.search(self.value, found) is not None
        except re.error:
            return False


def parse(filters: Iterable[str]) -> Matcher:
    """What tells whether an entry's fields and labels match any of ``filters``; InvalidArgument if malformed.

    No filter, or an empty one, matches everything.
    """
    alternatives = [_parse(text) for text in filters]
    if not alternatives or [] in alternatives:
        return lambda fields, labels: True
    return lambda fields, labels: any(
        all(selector.matches(fields, labels) for selector in one) for one in alternatives
    )


def _parse(text: str) -> list[_Selector]:
    selectors: list[_Selector] = []
    at = 0
    if not text.strip():
        return []
    while True:
        selector, at = _selector(text, at)
        selectors.append(selector)
        if not text[at:].strip():
            return selectors
        match = _TOKEN.match(text, at)
        if match is None or match["separator"] != ",":
            raise _bad(text, at)
        at = match.end()


def _selector(text: str, at: int) -> tuple[_Selector, int]:
    path: list[str] = []
    while True:
        match = _TOKEN.match(text, at)
        if match is None or not (match["field"] or match["quoted"]):
            raise _bad(text, at)
        path.append(match["field"] or _unquote(match["quoted"], text))
        at = match.end()
        following = _TOKEN.match(text, at)
        if following is not None and following["separator"] == ".":
            at = following.end()
            continue
        if following is None or not following["op"]:
            return _Selector(tuple(path), "", ""), at
        value, at = _value(text, following.end(), following["op"])
        return _Selector(tuple(path), following["op"], value), at


def _value(text: str, at: int, operator: str) -> tuple[str, int]:
    if operator == "~=":
        pattern = _PATTERN.match(text, at)
        if pattern is not None:
            raw = pattern["pattern"]
            return raw[1:-1].replace("\\" + raw[0], raw[0]), pattern.end()
    match = _VALUE.match(text, at)
    if match is None:
        raise _bad(text, at)
    value = match["bare"] if match["bare"] is not None else _unquote(match["quoted"], text)
    return value, match.end()


def _unquote(quoted: str, text: str) -> str:
    try:
        value = ast.literal_eval(quoted)
    except (SyntaxError, ValueError) as error:
        raise _bad(text, 0) from error
    if not isinstance(value, str):
        raise _bad(text, 0)
    return value


def _bad(text: str, at: int) -> InvalidArgument:
    return InvalidArgument(
        f"the filter {text!r} is malformed at {text[at : at + 20]!r}",
        hint='write field==value, labels.key==value or labels."a.key", joined by commas',
        code="filter.invalid",
    )
