"""No archive reaches what is outside of its directory, in any form; and hard cases come out right."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from layerlimit.archive import Applied, Form, Limits, apply, native
from layerlimit.errors import Error
from tests.archive import naive
from tests.archive.attack_case import Case
from tests.archive.attacks import CASES
from tests.archive.world import World

pytestmark = pytest.mark.lane("root")
#: In Python alone, one form is enough for a short run: tests/archive/test_native.py compares the two in all.
FORMS_AND_CORES = pytest.mark.parametrize(
    ("form", "core"),
    [
        *((form, "native") for form in Form),
        (Form.OVERLAY, "python"),
        *(pytest.param(form, "python", marks=pytest.mark.long) for form in (Form.AUFS, Form.FLAT)),
    ],
)


def outcome(archive: bytes, form: Form, limits: Limits | None) -> tuple[Applied | None, str, str]:
    """What :func:`apply` returns for ``/layer``, or the code and the message of its error."""
    try:
        applied = apply(io.BytesIO(archive), Path("/layer"), form=form, limits=limits, durable=False)
    except Error as error:
        return None, error.code, str(error)
    return applied, "", ""


@FORMS_AND_CORES
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_outside_is_touched(
    case: Case, form: Form, core: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if core == "python":
        monkeypatch.setattr(native, "core", None)
    world = World(tmp_path / "world")
    case.before(world.layer)
    applied, code, message = world.run(lambda: outcome(case.archive, form, case.limits))
    assert world.intact
    assert code == case.error, message
    assert case.names in message
    if not case.error:
        assert applied.diff_id.startswith("sha256:")
        assert bool(applied.skipped) == bool(applied.warnings) == case.warns
    case.after(world.layer, form)


@pytest.mark.parametrize("case", [case for case in CASES if case.escapes], ids=lambda case: case.name)
def test_the_attack_works_on_an_extractor_that_trusts(case: Case, tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    case.before(world.layer)
    world.run(lambda: naive.extract(case.archive, "/layer"), proc=False)
    assert not world.intact
