"""The diff service over a socket, with a real containerd's content store; then by containerd itself."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, timestamp_pb2

from layerlimit import Limit, Store, archive
from layerlimit.archive import Form
from layerlimit.containerd.content import UNCOMPRESSED, Caller, ContentStore
from layerlimit.containerd.diff import SERVICE, diff_handlers
from layerlimit.containerd.server import serving
from layerlimit.containerd.service import Service
from layerlimit.containerd.snapshots import Class, Snapshots
from layerlimit.containerd.wire import diff_pb2 as wire
from layerlimit.containerd.wire import mount_pb2
from layerlimit.containerd.wire.descriptor_pb2 import Descriptor
from layerlimit.containerd.workers import Workers
from layerlimit.containerd.workers import _Role as Role
from layerlimit.containerd.writing_out import WritingOut
from layerlimit.store import Info
from layerlimit.union import Mount
from tests.archive import trees
from tests.archive.archives import archive as tar
from tests.archive.archives import file, folder, hardlink, symlink
from tests.archive.images import sha256
from tests.containerd.blobs import KEPT, Liar, lying, pull, push, uploads
from tests.driver.filling import upper_of
from tests.engines import image
from tests.engines.daemons import CURRENT, Containerd
from tests.engines.island import island

MIB = 1 << 20
CALLER = Caller("diffs")
TAR = "application/vnd.oci.image.layer.v1.tar"
LOWER = tar(
    folder(b"etc", mode=0o710, uid=3),
    file(b"etc/gone", b"gone"),
    file(b"etc/kept", b"k" * (2 * MIB)),
    hardlink(b"also", b"etc/kept"),
    folder(b"hidden"),
    file(b"hidden/below", b"below"),
    file(b"twice", b"gone again"),
    file(b".wh.twice"),
    file(b".wh.never"),  # a whole tree has no marks
)
UPPER = tar(
    file(b"etc/.wh.gone"),  # etc itself is not there: made as the layer below has it
    file(b"etc/new", b"new", extended={b"SCHILY.xattr.user.colour": b"red"}),
    folder(b"hidden"),
    file(b"hidden/.wh..wh..opq"),
    symlink(b"link", b"etc/new"),
)
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED

pytestmark = pytest.mark.lane("overlay", "loop", "engines")


@dataclass
class Served:
    """A differ behind a socket, and the snapshots it is for."""

    store: Store
    snapshots: Snapshots
    content: ContentStore
    directory: Path
    told: list[Info] = field(default_factory=list)

    def call(self, name: str, request: Any, answer: Any, caller: Caller | None = CALLER) -> Any:
        with grpc.insecure_channel(f"unix:{self.directory}/diff.sock") as channel:
            method = channel.unary_unary(
                f"/{SERVICE}/{name}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=answer.FromString,
            )
            return method(request, metadata=caller.metadata if caller else ())

    def apply(self, mounts: Iterable[Any], blob: bytes | str, media: str = f"{TAR}+gzip", **more: Any) -> Any:
        digest = blob if isinstance(blob, str) else push(self.content, CALLER, blob)
        size = 0 if isinstance(blob, str) else len(blob)
        asked = Descriptor(media_type=media, digest=digest, size=size)
        request = wire.ApplyRequest(diff=asked, mounts=wired(mounts), **more)
        return self.call("Apply", request, wire.ApplyResponse).applied

    def diff(
        self, left: Iterable[Any], right: Iterable[Any], labels: Mapping[str, str] = {}, **more: Any
    ) -> Any:
        request = wire.DiffRequest(left=wired(left), right=wired(right), labels={**KEPT, **labels}, **more)
        return self.call("Diff", request, wire.DiffResponse).diff

    def layer(self, name: str, parent: str, data: bytes) -> None:
        """A committed snapshot with this content."""
        self.apply(self.snapshots.prepare(f"{name}-active", parent, {}), data, TAR)
        self.snapshots.commit(f"{name}-active", name, parent, {})


def wired(mounts: Iterable[Any]) -> list[mount_pb2.Mount]:
    return [mount_pb2.Mount(type=m.type, source=m.source, options=m.options) for m in mounts]


@contextmanager
def service(directory: Path, content: ContentStore) -> Iterator[Served]:
    with Store(directory / "root") as store:
        snapshots = Snapshots(store.partition("q"), Class("q", maximum=64 * MIB))
        served = Served(store, snapshots, content, directory)
        try:
            with serving(directory / "diff.sock", [diff_handlers(store, content, served.told.append)]):
                yield served
        finally:
            store.driver.cleanup()


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    with island(tmp_path_factory.mktemp("diff")) as made:
        yield Containerd(made, CURRENT).start()


@pytest.fixture
def served(containerd: Containerd, tmp_path: Path) -> Iterator[Served]:
    with closing(ContentStore(str(containerd.address))) as content, service(tmp_path, content) as served:
        yield served


def refused(code: grpc.StatusCode, call: Any, *arguments: Any, **more: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **more)
    assert caught.value.code() is code, caught.value.details()
    return str(caught.value.details())


def trees_of(directory: Path, *layers: bytes) -> Iterator[dict[bytes, trees.Seen]]:
    """What the layers' directories must look like: a base as a whole tree, others as changes."""
    lowers: list[Path] = []
    for number, data in enumerate(layers):
        root = directory / f"wanted{number}"
        root.mkdir()
        archive.apply(io.BytesIO(data), root, form=Form.OVERLAY if lowers else Form.FLAT, lowers=lowers)
        lowers.insert(0, root)
        yield seen(root)


def seen(root: Path) -> dict[bytes, trees.Seen]:
    """What is on disk; a tar does not say when something was deleted."""
    return {
        path: replace(each, mtime=0) if each.kind == "c" else each
        for path, each in trees.scan(root, seconds=True).items()
    }


# ---- apply -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, Limit(16 * MIB)], ids=["unlimited", "limited"])
def test_blobs_become_layers(served: Served, tmp_path: Path, limit: Limit | None) -> None:
    labels = {"layerlimit/size": str(limit.bytes)} if limit else {}
    blobs = {"base": gzip.compress(LOWER), "top": UPPER + bytes(10)}
    parent = ""
    for (name, blob), wanted in zip(blobs.items(), trees_of(tmp_path, LOWER, UPPER), strict=True):
        mounts = served.snapshots.prepare(f"{name}-active", parent, labels)
        assert served.apply(mounts, blob) == Descriptor(
            media_type=TAR,
            digest=sha256(LOWER if name == "base" else blob),
            size=len(LOWER if name == "base" else blob),
        )
        info = served.snapshots.stat(f"{name}-active")
        assert [each.id for each in served.told] == [info.id]
        assert seen(upper_of(mounts)) == wanted
        served.told.clear()
        served.snapshots.commit(f"{name}-active", name, parent, {})
        parent = name
    with served.store.partition("q").mounted("top", read_only=True) as path:
        assert sorted(each.name for each in (path / "etc").iterdir()) == ["kept", "new"]
        assert list((path / "hidden").iterdir()) == []
        assert (path / "etc").stat().st_mode & 0o777 == 0o710


def test_the_last_sync_hears_of_every_failed_write(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes by a descriptor from before the first; tests/archive/test_apply.py has what it would miss."""
    sync, names = served.store.driver.sync, []

    def watched(id: str, *, opened: int) -> None:
        assert os.path.samestat(os.fstat(opened), (served.store.root / "diff" / id).stat())
        sync(id, opened=opened)

    def opening(self: WritingOut) -> WritingOut:
        names.extend(os.listdir(self._directory))
        return enter(self)

    enter = WritingOut.__enter__
    monkeypatch.setattr(served.store.driver, "sync", watched)
    monkeypatch.setattr(WritingOut, "__enter__", opening)
    served.apply(served.snapshots.prepare("base", "", {}), LOWER, TAR)
    assert [served.snapshots.stat("base").id] == [each.id for each in served.told]
    assert names == []


def test_what_is_not_ours_is_left_to_others(served: Served, tmp_path: Path) -> None:
    served.layer("base", "", LOWER)
    blob = push(served.content, CALLER, UPPER)
    (mount,) = served.snapshots.prepare("active", "base", {})
    (view,) = served.snapshots.view("view", "base", {})
    (bind,) = served.snapshots.prepare("empty", "", {})
    served.told.clear()
    options = mount.options
    upper = next(option for option in options if option.startswith("upperdir="))
    id = Path(upper).name
    base = served.snapshots.stat("base").id
    outside = tmp_path / "outside"
    outside.mkdir()
    other = Path(bind.source).name

    def with_upper(path: str) -> Mount:
        return Mount("overlay", "overlay", tuple(f"upperdir={path}" if o == upper else o for o in options))

    foreign: list[list[Mount]] = [
        [],
        [mount, mount],
        [view],
        [Mount("bind", str(outside), ("rw", "rbind"))],
        [Mount("bind", "relative", ("rw", "rbind"))],
        [Mount("bind", bind.source, ("ro", "rbind"))],
        [Mount("bind", f"{served.store.root}/diff/{base}", ("rw", "rbind"))],  # committed
        [Mount("bind", f"{served.store.root}/diff/{id}", ("rw", "rbind"))],  # without what is below it
        [Mount("bind", f"{served.store.root}/diff/../../outside", ("rw", "rbind"))],
        [Mount("bind", f"{served.store.root}/diff/{other}/..", ("rw", "rbind"))],
        [Mount("bind", f"{served.store.root}/diff/nobody", ("rw", "rbind"))],
        [Mount("ext4", bind.source, ("loop",))],
        [with_upper(str(outside))],
        [with_upper(bind.source)],
        [Mount("overlay", "overlay", (*options, f"lowerdir={outside}"))],
        [Mount("overlay", "overlay", (*options, "uidmap=0:1000:10"))],
        [Mount("overlay", "overlay", (*options, "ro"))],
    ]
    for mounts in foreign:
        refused(UNIMPLEMENTED, served.apply, mounts, blob)
    for media in (
        "",
        f"{TAR}+encrypted",
        f"{TAR}+gzip+encrypted",
        "application/vnd.oci.image.config.v1+json",
    ):
        refused(UNIMPLEMENTED, served.apply, [mount], blob, media)
    refused(UNIMPLEMENTED, served.apply, [mount], blob, payloads={"key": any_pb2.Any()})
    for path in (outside, Path(bind.source), served.store.root / "diff" / id):
        assert list(path.iterdir()) == []
    assert served.told == []
    served.apply([Mount("overlay", "overlay", (*options, "redirect_dir=off"))], blob)  # as BuildKit has it
    assert [each.id for each in served.told] == [id]


def test_blobs_that_fail_are_said_by_their_code(served: Served) -> None:
    mounts = served.snapshots.prepare("small", "", {"layerlimit/size": "4m"})
    refused(grpc.StatusCode.NOT_FOUND, served.apply, mounts, sha256(b"nowhere"))
    refused(grpc.StatusCode.RESOURCE_EXHAUSTED, served.apply, mounts, tar(file(b"big", bytes(8 * MIB))))
    refused(grpc.StatusCode.INVALID_ARGUMENT, served.apply, mounts, tar(file(b"../../x", b"x")))
    refused(grpc.StatusCode.INVALID_ARGUMENT, served.apply, mounts, "no digest")
    request = wire.ApplyRequest(diff=Descriptor(media_type=TAR, digest=sha256(b"")), mounts=wired(mounts))
    refused(grpc.StatusCode.INVALID_ARGUMENT, served.call, "Apply", request, wire.ApplyResponse, None)
    assert served.told == []


def test_a_layer_mounted_here_is_refused(served: Served) -> None:
    mounts = served.snapshots.prepare("held", "", {})
    with served.store.partition("q").mounted("held"):
        said = refused(grpc.StatusCode.FAILED_PRECONDITION, served.apply, mounts, UPPER)
    assert "'held' is mounted" in said


def test_a_blob_that_is_not_its_digest_is_no_success(tmp_path: Path) -> None:
    with lying(tmp_path, Liar(gzip.compress(LOWER))) as content, service(tmp_path, content) as served:
        mounts = served.snapshots.prepare("base", "", {})
        refused(grpc.StatusCode.DATA_LOSS, served.apply, mounts, sha256(b"other"))
        assert served.told == []


def test_a_caller_that_gives_up_does_not_keep_the_layer(tmp_path: Path) -> None:
    liar = Liar(LOWER[:5000], stalls=True)
    with lying(tmp_path, liar) as content, service(tmp_path, content) as served:
        mounts = wired(served.snapshots.prepare("active", "", {}))
        request = wire.ApplyRequest(diff=Descriptor(media_type=TAR, digest=sha256(LOWER)), mounts=mounts)
        with grpc.insecure_channel(f"unix:{served.directory}/diff.sock") as channel:
            method = channel.unary_unary(
                f"/{SERVICE}/Apply",
                request_serializer=wire.ApplyRequest.SerializeToString,
                response_deserializer=wire.ApplyResponse.FromString,
            )
            call = method.future(request, metadata=CALLER.metadata)
            assert liar.stalled.acquire(timeout=30)
            call.cancel()
            served.snapshots.commit("active", "base", "", {})  # which waits for the layer
        assert served.told == []


@pytest.mark.parametrize("name", ["Apply", "Diff"])
def test_long_calls_hold_up_no_other(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are threads for all calls; nobody comes to help."""
    bring = Workers._bring
    monkeypatch.setattr(Workers, "_bring", lambda self, role: role is Role.SERVE and bring(self, role))
    liar = Liar(LOWER[:5000], stalls=True)
    with lying(tmp_path, liar) as content, service(tmp_path, content) as served:
        asked: list[Any]
        if name == "Apply":
            asked = [
                wire.ApplyRequest(
                    diff=Descriptor(media_type=TAR, digest=sha256(LOWER)),
                    mounts=wired(served.snapshots.prepare(f"active{number}", "", {})),
                )
                for number in range(2)
            ]
        else:
            mounts = wired(served.snapshots.prepare("active", "", {}))
            asked = [wire.DiffRequest(right=mounts, media_type=TAR, ref=f"r{number}") for number in range(2)]
        with grpc.insecure_channel(f"unix:{served.directory}/diff.sock") as channel:
            method: grpc.UnaryUnaryMultiCallable[Any, bytes] = channel.unary_unary(
                f"/{SERVICE}/{name}", request_serializer=lambda request: request.SerializeToString()
            )
            metadata = Caller("default", lease="kept").metadata
            calls = [method.future(request, metadata=metadata) for request in asked]
            assert all(liar.stalled.acquire(timeout=30) for _ in calls)
            with pytest.raises(grpc.RpcError) as caught:
                method(type(asked[0])(), metadata=metadata, timeout=30)
            assert caught.value.code() is UNIMPLEMENTED
            for call in calls:
                call.cancel()


# ---- diff ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("media", "opened"),
    [
        ("", gzip.decompress),
        (TAR, bytes),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", gzip.decompress),
    ],
)
def test_layers_become_blobs(served: Served, tmp_path: Path, media: str, opened: Any) -> None:
    served.layer("base", "", LOWER)
    mounts = served.snapshots.prepare("active", "base", {"layerlimit/size": "16m"})
    served.apply(mounts, UPPER, TAR)
    left = served.snapshots.view("left", "base", {})
    found = served.diff(left, mounts, media_type=media, labels={"a": "b"}, ref="r")
    blob = pull(served.content, CALLER, found.digest)
    assert (found.media_type, found.size) == (media or f"{TAR}+gzip", len(blob))
    labels = dict(served.content.info(CALLER, found.digest).labels)
    assert labels.items() >= {"a": "b", **KEPT, UNCOMPRESSED: sha256(opened(blob))}.items()
    wanted = list(trees_of(tmp_path, LOWER, UPPER))[1]
    (tmp_path / "again").mkdir()
    archive.apply(
        io.BytesIO(blob), tmp_path / "again", form=Form.OVERLAY, lowers=[tmp_path / "wanted0"], durable=True
    )
    assert seen(tmp_path / "again") == wanted
    assert served.diff(left, mounts, media_type=media, labels={"c": "d"}) == found  # which is there already
    assert dict(served.content.info(CALLER, found.digest).labels) == {**labels, "c": "d"}

    # The same, once committed, through a view of it; and what is below it.
    served.snapshots.commit("active", "top", "base", {})
    right = served.snapshots.view("right", "top", {})
    assert served.diff(left, right, media_type=media) == found
    nothing = served.snapshots.view("nothing", "", {})
    below = served.diff(nothing, left, media_type=media)
    assert served.content.info(CALLER, below.digest).labels[UNCOMPRESSED]
    assert served.diff([], left, media_type=media) == below
    for wrong in (
        (nothing, right),
        (right, left),
        (right, right),
        (left, []),
        ([Mount("bind", "/", ())], left),
    ):
        refused(UNIMPLEMENTED, served.diff, *wrong)
    refused(UNIMPLEMENTED, served.diff, left, right, media_type="application/x-tar")


def test_times_are_capped(served: Served) -> None:
    served.layer("base", "", LOWER)
    left, right = served.snapshots.view("left", "", {}), served.snapshots.view("right", "base", {})
    epoch = timestamp_pb2.Timestamp(seconds=1000)
    found = served.diff(left, right, source_date_epoch=epoch, media_type=TAR)
    with tarfile.open(fileobj=io.BytesIO(pull(served.content, CALLER, found.digest))) as made:
        assert {each.mtime for each in made} == {1000}


def test_a_diff_that_fails_leaves_no_blob(served: Served, containerd: Containerd) -> None:
    left = served.snapshots.view("left", "", {})
    (mount,) = served.snapshots.prepare("active", "", {})
    (Path(mount.source) / "a").write_bytes(os.urandom(4 * MIB))
    (Path(mount.source) / ".wh.b").touch()  # a tar cannot say that
    refused(grpc.StatusCode.FAILED_PRECONDITION, served.diff, left, [mount])
    assert uploads(containerd) == []


# ---- containerd ------------------------------------------------------------------------------------


def test_containerd_unpacks_and_exports_with_it(tmp_path: Path) -> None:
    """Imports an image and takes the difference of its top snapshot; containerd verifies the diff IDs."""
    with island(tmp_path) as made:
        socket = tmp_path / "diff.sock"
        containerd = Containerd(made, CURRENT, ("q",), socket, differ=True)
        content = ContentStore(str(containerd.address))
        with closing(content), Store(tmp_path / "root") as store:
            told: list[Info] = []
            snapshots = {"q": Snapshots(store.partition("q"), Class("q"))}
            handlers = [
                Service(snapshots, lambda: None).handler(),
                diff_handlers(store, content, told.append),
            ]
            with serving(socket, handlers):
                containerd.start()
                packed = image.test_image(tmp_path)
                containerd.ctr("images", "import", "--local", "--snapshotter", "q", packed)
                below, above = (sha256(layer) for layer in image.busybox_layers())
                assert [each.parent == "" for each in told] == [True, False]
                key = sha256(f"{below} {above}".encode())  # the chain ID
                with store.partition("q").mounted(snapshot(store, key), read_only=True) as path:
                    assert sorted(each.name for each in (path / "hidden").iterdir()) == ["above"]
                    assert sorted(each.name for each in (path / "old").iterdir()) == ["kept"]
                containerd.ctr("snapshots", "--snapshotter", "q", "prepare", "new", key)
                (changed,) = (each for each in store.partition("q").ls("kind==active"))
                added = store.root / "diff" / changed.id / "added"
                added.write_text("added")
                os.setxattr(added, "user.colour", b"red")  # containerd's own differ would leave it out
                before = blobs(containerd)
                script = f"{CURRENT.programs}/ctr --address {containerd.address} --namespace {made.cgroup}"
                out = tmp_path / "out.tar.gz"
                made.run("sh", "-c", f"{script} snapshots --snapshotter q diff new > {out}")
                with tarfile.open(out) as found:
                    assert [(each.name, each.pax_headers) for each in found] == [
                        ("added", {"SCHILY.xattr.user.colour": "red"})
                    ]
                (digest,) = blobs(containerd) - before
                labels = content.info(Caller(made.cgroup), digest).labels
                assert labels[UNCOMPRESSED] == sha256(gzip.decompress(out.read_bytes()))


def snapshot(store: Store, key: str) -> str:
    """What the store calls the snapshot that containerd's clients call ``key``."""
    (name,) = (each.name for each in store.partition("q").ls() if each.name.endswith(f"/{key}"))
    return name


def blobs(containerd: Containerd) -> set[str]:
    """The digests of all blobs."""
    return set(containerd.ctr("content", "ls", "--quiet").stdout.split())
