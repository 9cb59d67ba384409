"""The client of the content store: against real containerds, and a lying one where those do not lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from layerlimit.containerd.content import Caller, ContentStore
from layerlimit.errors import Busy, Corrupt, Error, InvalidArgument, NotFound, OutOfSpace
from tests.archive.images import sha256
from tests.containerd.blobs import KEPT, Liar, lying, pull, push, uploads
from tests.engines.daemons import CURRENT, DEBIAN, Containerd, Release
from tests.engines.island import island

CALLER = Caller("blobs")


@pytest.fixture(
    scope="module", params=[Release("debian", DEBIAN, 2), CURRENT], ids=lambda release: release.name
)
def containerd(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Containerd]:
    with island(tmp_path_factory.mktemp("content")) as made:
        yield Containerd(made, request.param).start()


@pytest.fixture
def content(containerd: Containerd) -> Iterator[ContentStore]:
    with closing(ContentStore(str(containerd.address))) as content:
        yield content


@pytest.mark.lane("engines")
def test_what_is_written_can_be_read(containerd: Containerd, content: ContentStore) -> None:
    blob = os.urandom(5_000_001)  # more than one message
    with content.write(CALLER, "a") as upload:
        upload.write(memoryview(blob)[:3_000_000])
        upload.write(memoryview(blob)[3_000_000:])
        assert upload.commit(sha256(blob), KEPT)
    assert pull(content, CALLER, sha256(blob)) == blob
    info = content.info(CALLER, sha256(blob))
    assert (info.size, dict(info.labels)) == (len(blob), KEPT)
    assert uploads(containerd) == []
    with pytest.raises(NotFound, match="not found"):
        pull(content, Caller("other"), sha256(blob))


@pytest.mark.lane("engines")
def test_a_blob_that_is_there_gets_labels(containerd: Containerd, content: ContentStore) -> None:
    push(content, CALLER, b"twice")
    with content.write(CALLER, "b") as upload:
        upload.write(memoryview(b"twice"))
        assert not upload.commit(sha256(b"twice"), {})
    content.label(CALLER, sha256(b"twice"), {"a/b.c": "d"})
    assert dict(content.info(CALLER, sha256(b"twice")).labels) == {**KEPT, "a/b.c": "d"}
    assert uploads(containerd) == []


def half(containerd: Containerd, content: ContentStore, digest: str) -> None:
    """Uploads four bytes, and commits them as what they are not, or fails before that."""
    with content.write(CALLER, "c") as upload:
        upload.write(memoryview(b"half"))
        assert len(uploads(containerd)) == 1
        if not digest:
            raise RuntimeError
        upload.commit(digest, KEPT)


@pytest.mark.lane("engines")
def test_an_upload_that_fails_leaves_nothing(containerd: Containerd, content: ContentStore) -> None:
    with pytest.raises(RuntimeError):
        half(containerd, content, "")
    assert uploads(containerd) == []
    with pytest.raises(Error, match="unexpected commit digest"):
        half(containerd, content, sha256(b"whole"))
    assert uploads(containerd) == []


@pytest.mark.lane("engines")
def test_a_lease_keeps_a_blob(containerd: Containerd, content: ContentStore) -> None:
    for lease in ("keeps", "goes"):
        containerd.ctr("leases", "create", "--id", lease, namespace=CALLER.namespace)
    keeps = Caller(CALLER.namespace, "keeps")
    assert content.leased(keeps) is keeps
    for caller, blob in ((CALLER, b"none"), (keeps, b"theirs"), (content.leased(CALLER), b"ours")):
        with content.write(caller, "g") as upload:
            upload.write(memoryview(blob))
            upload.commit(sha256(blob), {})
    containerd.ctr("leases", "delete", "--sync", "goes", namespace=CALLER.namespace)  # collects
    assert pull(content, CALLER, sha256(b"theirs")) == b"theirs"
    assert pull(content, CALLER, sha256(b"ours")) == b"ours"
    with pytest.raises(NotFound):
        pull(content, CALLER, sha256(b"none"))


@pytest.mark.lane("engines")
def test_a_name_in_use_is_left_alone(containerd: Containerd, content: ContentStore) -> None:
    with content.write(CALLER, "d") as upload:
        upload.write(memoryview(b"mine"))
        with pytest.raises(Busy), content.write(CALLER, "d"):
            pass
        assert len(uploads(containerd)) == 1
        assert upload.commit(sha256(b"mine"), KEPT)


def test_what_comes_is_verified(tmp_path: Path) -> None:
    blob = os.urandom(10_000)
    with lying(tmp_path, Liar(blob)) as content:
        assert pull(content, CALLER, sha256(blob)) == blob
        with pytest.raises(Corrupt):
            pull(content, CALLER, sha256(b"other"))
        with pytest.raises(Corrupt), content.read(CALLER, sha256(blob), len(blob) + 1) as read:
            read.drain()
        for digest in ("", "md5:00", "sha256:../../x"):
            with pytest.raises(InvalidArgument), content.read(CALLER, digest):
                pass


def test_a_full_disk_aborts_the_upload(tmp_path: Path) -> None:
    liar = Liar(room=10)
    with lying(tmp_path, liar) as content:
        with pytest.raises(OutOfSpace, match="no space left"), content.write(CALLER, "e") as upload:
            upload.write(memoryview(b"x" * 11))
    assert liar.aborted == ["e"]


def test_no_containerd_is_said(tmp_path: Path) -> None:
    with closing(ContentStore(f"{tmp_path}/none.sock")) as content:
        with pytest.raises(Busy) as caught, content.write(CALLER, "f"):
            pass
        assert caught.value.code == "containerd.silent"
        with pytest.raises(Busy):
            pull(content, CALLER, sha256(b""))
