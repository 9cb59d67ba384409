"""The virtual machine itself; what it does is held by the tests that boot it (tests/vm/test_reboot.py)."""

from __future__ import annotations

import pytest

from tests.vm.machine import MachineError, require

pytestmark = pytest.mark.lane("vm")


def test_missing_program_is_an_error_and_not_a_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MachineError, match="qemu-system-x86_64"):
        require()
