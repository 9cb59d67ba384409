"""Reading, inflating and hashing beside the use of a layer: nothing is lost, and nobody waits for ever."""

from __future__ import annotations

import gc
import gzip
import hashlib
import io
import os
import threading
import weakref

import pytest

from layerlimit.archive import buffers, pipeline

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


@pytest.mark.parametrize("to_the_end", [True, False])
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_buffers_are_gone_with_the_source(
    monkeypatch: pytest.MonkeyPatch, *, compressed: bool, to_the_end: bool
) -> None:
    """And not when the garbage collector comes by, which may take a daemon that unpacks images long."""
    made = []

    def large_buffer(size: int) -> memoryview:
        buffer = buffers.large_buffer(size)
        made.append(weakref.ref(buffer.obj))
        return buffer

    monkeypatch.setattr(pipeline, "large_buffer", large_buffer)
    content = os.urandom(256 * 1024) + bytes(3 * pipeline.CHUNK)
    stream = io.BytesIO(gzip.compress(content, 1) if compressed else content)
    gc.disable()
    try:
        with pipeline.Source(stream) as source:
            assert source.chunk()
            while to_the_end and source.chunk():
                pass
        for thread in threading.enumerate():
            if thread.name.startswith("layer-"):
                thread.join(PATIENCE)
        assert made
        assert [reference() for reference in made if reference() is not None] == []
    finally:
        gc.enable()
