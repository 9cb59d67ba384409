"""What ``containerd --version`` says."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerlimit.setup.version import containerd_version, parse_version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n", (1, 6)),
        ("containerd containerd.io 1.7.27 05044ec0a9a75232cad458027ca83437aae3f4da\n", (1, 7)),
        ("containerd github.com/containerd/containerd/v2 v2.4.2 \n", (2, 4)),
        ("something else\n", None),
    ],
)
def test_parse(text: str, version: tuple[int, int] | None) -> None:
    assert parse_version(text) == version


def test_no_program(tmp_path: Path) -> None:
    assert containerd_version(str(tmp_path / "containerd")) is None
