"""The daemon's configuration file: TOML, typed, every key known. ``config.toml`` beside this is its manual.

No file is needed: every key has a default, and the command line overrides what a file says. The types below
are the schema; a key that is not in them is an error, never ignored: a limit with a typo is no limit.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from layerlimit.errors import Error, InvalidArgument, from_os_error
from layerlimit.limit import Limit, parse_size

if TYPE_CHECKING:
    from layerlimit.store import Policy

DEFAULT_FILE: Final = Path("/etc/layerlimit/config.toml")
_HINT: Final = "'layerlimit config default' shows every key with its meaning"
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


def _size(key: str, value: int | str | None, *, least: int = 1) -> int | None:
    if value is None:
        return None
    try:
        size = parse_size(value) if isinstance(value, str) else value
    except Error as error:
        raise _Refused(f"{key} = {error.message}") from error
    _require(size >= least, f"{key} = {value} is not {'above 0' if least else 'a size'}")
    return size


class _Refused(ValueError):
    """msgspec adds the place in the file to a ValueError, and only to that."""


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Refused(otherwise)


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file; its keys are the fields, its defaults theirs."""


class Snapshotter(_Table, frozen=True, kw_only=True):
    """A name that containerd knows us by: a class of layers with limits of its own.

    Sizes are bytes, or text such as ``"10GiB"``; :meth:`limit` and :meth:`maximum_bytes` read them.
    """

    name: str
    default_limit: int | str | None = None
    maximum: int | str | None = None
    inodes: int | None = None

    def __post_init__(self) -> None:
        _require(
            _NAME.fullmatch(self.name) is not None,
            f"the name {self.name!r} is not made of letters, digits, '.', '_' and '-'",
        )
        default = _size("default_limit", self.default_limit)
        maximum = _size("maximum", self.maximum)
        _require(self.inodes is None or self.inodes > 0, f"inodes = {self.inodes} is not above 0")
        _require(
            self.inodes is None or default is not None,
            "inodes needs a default_limit: they are limited together",
        )
        if default is not None and maximum is not None:
            _require(
                default <= maximum,
                f"default_limit = {self.default_limit!r} is above maximum = {self.maximum!r}",
            )

    @property
    def limit(self) -> Limit | None:
        """What a layer gets that asks for nothing; None: no limit."""
        size = _size("default_limit", self.default_limit)
        return None if size is None else Limit(size, inodes=self.inodes)

    @property
    def maximum_bytes(self) -> int | None:
        """The most that a layer of this class can ask for; None: no maximum."""
        return _size("maximum", self.maximum)


class Metrics(_Table, frozen=True, kw_only=True):
    """Where Prometheus reads: ``HOST:PORT`` or ``unix:/PATH``; empty: nowhere."""

    address: str = ""

    def __post_init__(self) -> None:
        try:
            if self.address:
                parse_address(self.address)
        except Error as error:
            raise _Refused(f"address = {error.message}") from error


class Log(_Table, frozen=True, kw_only=True):
    """What is logged to stderr; ``auto`` is text on a terminal and JSON elsewhere."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "text"] = "auto"


class PolicyTable(_Table, frozen=True, kw_only=True):
    """How much limits may promise; a key that is left out keeps what ``layerlimit config`` recorded."""

    overcommit: float | None = None
    floor: int | str | None = None

    def __post_init__(self) -> None:
        _require(
            self.overcommit is None or 0 < self.overcommit < float("inf"),
            f"overcommit = {self.overcommit} is not a ratio above 0",
        )
        _size("floor", self.floor, least=0)

    @property
    def floor_bytes(self) -> int | None:
        """The bytes that always stay free on the disk."""
        return _size("floor", self.floor, least=0)

    def over(self, recorded: Policy) -> Policy:
        """The policy that a store recorded, with what the file says instead."""
        floor = self.floor_bytes
        return replace(
            recorded,
            overcommit=recorded.overcommit if self.overcommit is None else self.overcommit,
            floor=recorded.floor if floor is None else floor,
        )


class Config(_Table, frozen=True, kw_only=True):
    """The whole file."""

    root: str = "/var/lib/layerlimit"
    address: str = "/run/layerlimit/layerlimit.sock"
    containerd: str = "/run/containerd/containerd.sock"
    docker_root: str = ""
    snapshotters: tuple[Snapshotter, ...] = (Snapshotter(name="layerlimit"),)
    metrics: Metrics = Metrics()
    log: Log = Log()
    policy: PolicyTable = PolicyTable()

    def __post_init__(self) -> None:
        for key in ("root", "address", "containerd", "docker_root"):
            path = getattr(self, key)
            _require(
                path.startswith("/") or (key == "docker_root" and not path),
                f"{key} = {path!r} is not an absolute path",
            )
        names = [each.name for each in self.snapshotters]
        _require(bool(names), "there is no snapshotter: give one [[snapshotters]] at least")
        twice = sorted({name for name in names if names.count(name) > 1})
        _require(not twice, f"the snapshotter {', '.join(twice)} is there twice")


def read_config(path: Path | None = None) -> Config:
    """What ``path`` says, or :data:`DEFAULT_FILE` where there is one, or the defaults."""
    if path is not None or DEFAULT_FILE.exists():
        return load_config(path or DEFAULT_FILE)
    return Config()


def override(config: Config, **given: object) -> Config:
    """The configuration with what the command line says instead; None stands for "not said".

    The keys are those of :class:`Config`; ``metrics``, ``log_level`` and ``log_format`` set what is in their
    tables, and ``snapshotters`` are words ``NAME`` or ``NAME=LIMIT``: a name that the file has, too, keeps
    what the file says of it besides.
    """
    said = {key: value for key, value in given.items() if value not in (None, ())}
    try:
        if "metrics" in said:
            said["metrics"] = Metrics(address=str(said["metrics"]))
        log = {key: said.pop(f"log_{key}") for key in ("level", "format") if f"log_{key}" in said}
        if log:
            said["log"] = msgspec.structs.replace(config.log, **log)
        if "snapshotters" in said:
            known = {each.name: each for each in config.snapshotters}
            words: Any = said["snapshotters"]
            said["snapshotters"] = tuple(_snapshotter(word, known) for word in words)
        return msgspec.convert(msgspec.to_builtins(msgspec.structs.replace(config, **said)), Config)
    except (msgspec.ValidationError, _Refused) as error:
        reason = str(error).partition(" - at `$")[0]
        raise InvalidArgument(reason, hint="see --help", code="config.invalid") from error


def _snapshotter(word: str, known: Mapping[str, Snapshotter]) -> Snapshotter:
    name, equals, limit = word.partition("=")
    found = known.get(name) or Snapshotter(name=name)
    return msgspec.structs.replace(found, default_limit=limit) if equals else found


def load_config(path: Path) -> Config:
    """What the file says. InvalidArgument names file, key and cure; NotFound when it is not there."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise from_os_error(
            error, f"read the configuration {path}", hint="give another file with --config"
        ) from error
    except UnicodeDecodeError as error:
        raise _invalid(f"{path} is not UTF-8 text") from error
    return parse_config(text, source=str(path))


def parse_config(text: str, *, source: str) -> Config:
    """:func:`load_config` of the text of the file called ``source``."""
    try:
        table: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _invalid(f"{source} is not TOML: {error}") from error
    try:
        return msgspec.convert(table, Config)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        key = place.rstrip("`").lstrip(".")
        reason = reason.replace("Object contains unknown field", "there is no key").replace("`", "'")
        reason = reason.replace("Object missing required field", "there has to be a key")
        raise _invalid(f"{source}: {f'{key}: ' if key else ''}{reason}") from error


def default_config() -> str:
    """The documented default file, as text."""
    return resources.files("layerlimit.daemon").joinpath("config.toml").read_text(encoding="utf-8")


def parse_address(text: str) -> tuple[str, int] | Path:
    """Where to listen: ``(host, port)`` of ``HOST:PORT``, or the path of ``unix:/PATH``; InvalidArgument."""
    if text.startswith("unix:"):
        path = Path("/" + text.removeprefix("unix:").lstrip("/"))
        if text.startswith("unix:/") and len(path.parts) > 1:
            return path
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if colon and host and port.isascii() and port.isdigit() and 0 <= int(port) <= 65535:
        return host, int(port)
    raise InvalidArgument(
        f"{text!r} is not an address",
        hint="write HOST:PORT, such as 127.0.0.1:9745, or unix:/PATH",
        code="address.invalid",
    )


def _invalid(message: str) -> InvalidArgument:
    return InvalidArgument(message, hint=_HINT, code="config.invalid")
