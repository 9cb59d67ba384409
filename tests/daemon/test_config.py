"""The configuration file: what it can say, and what is refused in words that help."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from layerlimit.daemon import config as module
from layerlimit.daemon.config import (
    Config,
    Log,
    Metrics,
    PolicyTable,
    Snapshotter,
    default_config,
    load_config,
    override,
    parse_address,
    parse_config,
    read_config,
)
from layerlimit.errors import InvalidArgument, NotFound
from layerlimit.limit import Limit
from layerlimit.store import Policy

GIB = 1 << 30


def test_the_default_file_says_the_defaults() -> None:
    assert parse_config(default_config(), source="default") == Config() == parse_config("", source="empty")


def test_every_key_is_documented_and_every_example_is_valid() -> None:
    text = default_config()
    for table, head in (
        (Config, ""),
        (Snapshotter, "[[snapshotters]]"),
        (Metrics, "[metrics]"),
        (Log, "[log]"),
        (PolicyTable, "[policy]"),
    ):
        start = text.index(head)
        section = text[start:] if head else text[: text.index("\n[")]
        for field in msgspec.structs.fields(table):
            if field.name not in ("snapshotters", "metrics", "log", "policy"):
                assert re.search(rf"^(?:# )?{field.name} = ", section, re.MULTILINE), field.name
    plain = re.sub(r"^(address|docker_root) = \"\"\n", "", text, flags=re.MULTILINE)
    shown = re.sub(r"^# (\w+ = |\[\[\w+\]\]$)", r"\1", plain, flags=re.MULTILINE)
    config = parse_config(shown, source="examples")
    assert config.docker_root == "/var/lib/docker"
    assert config.metrics.address == "127.0.0.1:9745"
    assert [each.name for each in config.snapshotters] == ["layerlimit", "layerlimit-small"]
    assert config.policy.floor_bytes == 256 << 20


def test_sizes_are_numbers_or_text() -> None:
    config = parse_config(
        '[[snapshotters]]\nname = "a"\ndefault_limit = "1g"\nmaximum = 2147483648\ninodes = 100\n'
        '[[snapshotters]]\nname = "b"\n',
        source="x",
    )
    first, second = config.snapshotters
    assert first.limit == Limit(GIB, inodes=100)
    assert first.maximum_bytes == 2 * GIB
    assert (second.limit, second.maximum_bytes) == (None, None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("snapshoters = 1", "there is no key 'snapshoters'"),
        ("root = 5", "root: Expected 'str'"),
        ('root = "layers"', "root = 'layers' is not an absolute path"),
        ('address = ""', "address = '' is not an absolute path"),
        ('[log]\nlevel = "loud"', "log.level: Invalid enum value 'loud'"),
        ('[[snapshotters]]\nname = "a b"', "snapshotters[0]: the name 'a b'"),
        ('[[snapshotters]]\nname = "../a"', "snapshotters[0]: the name '../a'"),
        ("[[snapshotters]]\ndefault_limit = 1", "snapshotters[0]: there has to be a key 'name'"),
        ('[[snapshotters]]\nname = "a"\ndefault_limit = "10x"', "default_limit = '10x' is not a size"),
        ('[[snapshotters]]\nname = "a"\ndefault_limit = 0', "default_limit = 0 is not above 0"),
        ('[[snapshotters]]\nname = "a"\ndefault_limit = true', "snapshotters[0].default_limit: Expected"),
        (
            '[[snapshotters]]\nname = "a"\nmaximum = "1g"\ndefault_limit = "2g"',
            "'2g' is above maximum = '1g'",
        ),
        ('[[snapshotters]]\nname = "a"\ninodes = 5', "inodes needs a default_limit"),
        ('[[snapshotters]]\nname = "a"\n[[snapshotters]]\nname = "a"', "the snapshotter a is there twice"),
        ("snapshotters = []", "there is no snapshotter"),
        ('[metrics]\naddress = "9745"', "metrics: address = '9745' is not an address"),
        ("[policy]\novercommit = 0.0", "policy: overcommit = 0.0 is not a ratio"),
        ("[policy]\novercommit = nan", "policy: overcommit = nan is not a ratio"),
        ("[policy]\nfloor = -1", "policy: floor = -1"),
        ("root = [", "is not TOML"),
    ],
)
def test_what_is_refused_names_file_key_and_cure(text: str, says: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_config(text, source="/etc/layerlimit/config.toml")
    assert "/etc/layerlimit/config.toml" in refused.value.message
    assert says in refused.value.message
    assert "config default" in refused.value.hint
    assert refused.value.code == "config.invalid"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="--config"):
        load_config(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(InvalidArgument, match="UTF-8"):
        load_config(tmp_path / "bytes")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:9745", ("127.0.0.1", 9745)),
        ("[::1]:0", ("::1", 0)),
        ("unix:/run/a.sock", Path("/run/a.sock")),
        ("unix:///run/a.sock", Path("/run/a.sock")),
    ],
)
def test_addresses(text: str, place: object) -> None:
    assert parse_address(text) == place


@pytest.mark.parametrize(
    "text", ["", ":1", "host", "host:", "host:65536", "host:-1", "unix:", "unix:a", "h:²"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_address(text)


def test_the_schema_is_closed() -> None:
    assert tomllib.loads(default_config()).keys() <= {field.name for field in msgspec.structs.fields(Config)}
    tables = [
        each for each in vars(module).values() if isinstance(each, type) and issubclass(each, module._Table)
    ]
    assert all(each.__struct_config__.forbid_unknown_fields for each in tables)


def test_the_command_line_wins() -> None:
    config = parse_config(
        '[[snapshotters]]\nname = "a"\ndefault_limit = "1g"\nmaximum = "4g"\n[log]\nformat = "json"\n',
        source="x",
    )
    assert override(config, root=None, snapshotters=()) == config
    changed = override(
        config, root="/r", log_level="debug", metrics="127.0.0.1:1", snapshotters=("a=2g", "b")
    )
    assert (changed.root, changed.metrics.address) == ("/r", "127.0.0.1:1")
    assert changed.log == Log(level="debug", format="json")
    first, second = changed.snapshotters
    assert (first.limit, first.maximum_bytes) == (Limit(2 * GIB), 4 * GIB)
    assert second == Snapshotter(name="b")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"root": "here"}, "root = 'here' is not an absolute path"),
        ({"snapshotters": ("a=8g",)}, "'8g' is above maximum"),
        ({"snapshotters": ("b", "b")}, "the snapshotter b is there twice"),
        ({"snapshotters": ("b=",)}, "default_limit = '' is not a size"),
        ({"metrics": "9745"}, "'9745' is not an address"),
        ({"log_level": "loud"}, "Invalid enum value 'loud'"),
    ],
)
def test_a_bad_option_is_refused(given: dict[str, object], says: str) -> None:
    config = parse_config('[[snapshotters]]\nname = "a"\nmaximum = "4g"\n', source="x")
    with pytest.raises(InvalidArgument) as refused:
        override(config, **given)
    assert says in refused.value.message


def test_the_policy_is_what_was_recorded_unless_the_file_says_so() -> None:
    recorded = Policy(overcommit=3.0, floor=7, default_limit=9)
    assert PolicyTable().over(recorded) == recorded
    assert PolicyTable(floor="1g").over(recorded) == Policy(3.0, GIB, 9)
    assert PolicyTable(overcommit=1.5, floor=0).over(recorded) == Policy(1.5, 0, 9)


def test_no_file_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEFAULT_FILE", tmp_path / "config.toml")
    assert read_config() == Config()
    (tmp_path / "config.toml").write_text('root = "/r"\n')
    assert read_config().root == "/r"
    with pytest.raises(NotFound):
        read_config(tmp_path / "none")
