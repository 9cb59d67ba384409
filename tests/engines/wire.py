"""Protocol buffers as far as the tests need them: messages by field number, without generated code."""

from __future__ import annotations

from collections.abc import Mapping


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def encode(fields: Mapping[int, object]) -> bytes:
    """A message: texts, numbers, messages (dicts keyed by number), maps (keyed by text), lists of these."""
    out = b""
    for number, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            out += _field(number, one)
    return out


def _field(number: int, value: object) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    if isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
        return b"".join(_field(number, {1: key, 2: text}) for key, text in value.items())
    data = value.encode() if isinstance(value, str) else encode(value)  # type: ignore[arg-type]
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def decode(data: bytes) -> dict[int, bytes | int]:
    """The fields of a message whose fields do not repeat; what is a number comes as one."""
    fields: dict[int, bytes | int] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            shift += 7
            at += 1
            if data[at - 1] < 0x80:
                return value

    while at < len(data):
        number, kind = divmod(varint(), 8)
        value: bytes | int = varint()
        if kind == 2:
            length = int(value)
            value = data[at : at + length]
            at += length
        fields[number] = value
    return fields
