"""Reading, inflating and hashing beside the use of a layer: nothing is lost, and nobody waits for ever."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import threading

import pytest

from layerlimit.archive import pipeline

PATIENCE = 60  # seconds after which it hangs


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("buffers", [1, 2, 8])
def test_all_go_on_however_fast_the_others_are(
    monkeypatch: pytest.MonkeyPatch, buffers: int, *, compressed: bool
) -> None:
    """One may take all buffers between two steps of another, who has to be able to give them back."""
    monkeypatch.setattr(pipeline, "CHUNK", 512)
    monkeypatch.setattr(pipeline, "_BUFFERS", buffers)
    # Behind the first 256 KiB, which have a buffer of their own.
    content = os.urandom(256 * 1024) + bytes(512 * 2000 + 100)
    stream = gzip.compress(content, 1) if compressed else content
    failures: list[str] = []

    def use() -> None:
        for _ in range(10):
            with pipeline.Source(io.BytesIO(stream)) as source:
                seen = hashlib.sha256()
                while chunk := source.chunk():
                    seen.update(chunk)
                if source.digest() != f"sha256:{seen.hexdigest()}":
                    failures.append(source.digest())

    user = threading.Thread(target=use, daemon=True)
    user.start()
    user.join(PATIENCE)
    assert not user.is_alive(), "the pipeline hangs"
    assert failures == []
