"""Syncs beside the reading of a blob."""

from __future__ import annotations

import errno
import hashlib
import threading
from pathlib import Path

import pytest

from layerlimit.containerd import writing_out
from layerlimit.containerd.writing_out import EVERY, WritingOut


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    with path.open("wb") as blob:
        blob.write(b"first")
        blob.truncate(2 * EVERY)
    return path


def test_the_file_system_is_synced_while_a_large_blob_is_read(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, threading.Thread]] = []
    once = threading.Event()

    def sync(fd: int, path: Path) -> None:
        assert path.samefile(f"/proc/self/fd/{fd}")
        synced.append((fd, threading.current_thread()))
        once.set()

    monkeypatch.setattr(writing_out, "sync_file_system_of", sync)
    content = hashlib.sha256()
    with large.open("rb", buffering=0) as blob, WritingOut(blob, tmp_path) as stream:
        buffer = memoryview(bytearray(EVERY))
        content.update(buffer[: stream.readinto(buffer)])
        once.wait()  # with the blob half read
        while data := stream.read(1 << 20):
            content.update(data)
    assert content.digest() == hashlib.sha256(large.read_bytes()).digest()
    assert {fd for fd, _ in synced} == {stream.opened}
    assert not any(thread.is_alive() or thread is threading.current_thread() for _, thread in synced)


def test_what_the_disk_refused_is_told(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def sync(fd: int, path: Path) -> None:
        failed.set()
        raise OSError(errno.EIO, "syncfs", str(path))

    monkeypatch.setattr(writing_out, "sync_file_system_of", sync)
    with large.open("rb", buffering=0) as blob:
        stream = WritingOut(blob, tmp_path).__enter__()
        stream.read(EVERY)
        failed.wait()
        with pytest.raises(OSError, match="syncfs"):
            stream.__exit__(None, None, None)


def test_a_small_blob_is_left_to_the_last_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.write_bytes(b"small")
    monkeypatch.delattr(writing_out, "sync_file_system_of")
    with small.open("rb", buffering=0) as blob, WritingOut(blob, tmp_path) as stream:
        assert (stream.read(EVERY), stream.read(EVERY)) == (b"small", b"")
