"""Whether we are in a user namespace."""

from __future__ import annotations

import subprocess
import sys

import pytest

from layerlimit.linux.userns import in_initial_user_namespace

ASK = "from layerlimit.linux.userns import in_initial_user_namespace as ask; print(ask())"


@pytest.mark.lane("root")
def test_a_namespace_of_ones_own_is_noticed() -> None:
    inside = ["unshare", "--user", "--map-root-user", sys.executable, "-c", ASK]
    assert subprocess.run(inside, check=True, text=True, capture_output=True).stdout == "False\n"
    here = subprocess.run([sys.executable, "-c", ASK], check=True, text=True, capture_output=True).stdout
    assert here == f"{in_initial_user_namespace()}\n"
