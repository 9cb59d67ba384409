"""The ``image`` limiter: one sparse ext4 file per limited layer, loop-mounted.

    containers_quota/<id>.ext4   the image; its loop device inherits a flock on it
    img/<id>                     where it is mounted; upper/ and work/ inside
    diff/<id>                    bind mount of upper/ (of the root of an image of the Go driver), if asked for

**One attachment.** The flock is taken before LOOP_CONFIGURE and lives in the device's open file: whoever
cannot take it looks for the live device of the image and mounts that, so that a place whose mounts were
taken away behind our back comes back as the same superblock.

**Proof.** :meth:`ImageLimiter.attach` never returns a place on trust: what is mounted at ``img/<id>`` must
be a loop device whose backing file is, by device and inode, this layer's image; before mounting, the
superblock must carry the UUID that was recorded when the layer was made and must fit the file.

**Crash safety.** create: what is to be is announced → clone → own UUID → both synced (the driver removes
a leftover). attach: nothing on disk changes; a killed process leaves a device that frees itself, or mounts
that the next call proves and uses.
resize: lengthen the file → grow the file system → the driver records it; repeating each step is harmless.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
import uuid as uuids
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from layerlimit.errors import Busy, Corrupt, InvalidArgument, NotSupported, from_os_error
from layerlimit.limit import ext4
from layerlimit.limit.protocol import Announce, Health, Limit, Place, Record, Usage
from layerlimit.limit.template import (
    Templates,
    detached,
    fill_inodes,
    free_when_empty,
    mount_options,
    sync_mounted,
)
from layerlimit.linux import files, loop, mount
from layerlimit.linux.patience import PAUSE, TRIES, patiently
from layerlimit.linux.statfs import statfs
from layerlimit.linux.statx import statx

_LOCK_PAUSES = (0.001, 0.002, 0.004, 0.008, 0.016, 0.03, 0.06, 0.12, 0.25, 0.5)
_NO_PROCESS = "another process attaches or checks it right now; try again"


class ImageLimiter:
    """Images below one root directory; see the module for the layout. Implements ``Limiter``."""

    name = "image"

    def __init__(self, root: Path) -> None:
        self._images = root / "containers_quota"
        self._places = root / "img"
        self._binds = root / "diff"
        self.templates = Templates(root / "templates")

    def image(self, id: str) -> Path:
        """The image file of a layer."""
        return files.below(self._images, f"{id}.ext4")

    def _place(self, id: str) -> Path:
        return files.below(self._places, id)

    def _upper_bind(self, id: str) -> Path:
        return files.below(self._binds, id)

    def files(self, id: str) -> list[Path]:
        return [self.image(id), self._place(id)]

    # -- create ------------------------------------------------------------------------------------

    def create(
        self,
        id: str,
        limit: Limit,
        owner: tuple[int, int],
        *,
        announce: Announce = lambda _: lambda: None,
    ) -> Record:
        if limit.bytes < ext4.MIN_BYTES:
            raise InvalidArgument(
                f"a limit of {limit.bytes} bytes is too small for an image",
                hint=f"ask for at least {ext4.MIN_BYTES} bytes (4 MiB)",
                code="limit.range",
            )
        image = self.image(id)
        identity = uuids.uuid4()
        with self.templates.open(limit, owner) as template:
            record = Record(
                limit=limit,
                limiter=self.name,
                uuid=identity.hex,
                fresh_blocks=template.free_blocks,
                fresh_inodes=template.free_inodes,
            )
            settle = announce(record)
            image.parent.mkdir(mode=0o700, exist_ok=True)
            try:
                fd = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                try:
                    files.copy_sparse(template.fd, fd, template.size)
                    ext4.write_uuid(fd, identity.bytes)
                    if limit.reserve:
                        files.allocate(fd, template.size, image)
                    files.start_writing(fd)
                    settle()
                    os.fsync(fd)
                except BaseException:
                    os.unlink(image)
                    raise
                finally:
                    os.close(fd)
                files.sync_directory(image.parent)
                os.makedirs(self._place(id), mode=0o700, exist_ok=True)
                files.set_immutable(self._place(id), True)
            except OSError as error:
                raise from_os_error(error, f"make the image of layer {id}") from error
            return record

    # -- attach ------------------------------------------------------------------------------------

    def attach(self, id: str, record: Record, *, read_only: bool = False, bind: bool = True) -> Place:
        place = self._place(id)
        try:
            image = self._stat(id)
            fresh = False
            if not self._is_mounted(id, image):
                fresh = self._mount(id, image, record, read_only=read_only)
            else:
                with self._opened(id, os.O_RDONLY) as fd:
                    self._check_identity(fd, id, record)
                if not read_only:
                    self._make_writable(id)
            upper = place if record.rooted else files.below(place, "upper")
            work = None if record.rooted else files.below(place, "work")
            if bind:
                self._bind(id, upper)
        except OSError as error:
            raise from_os_error(error, f"attach the image of layer {id}") from error
        return Place(upper=upper, work=work, fresh=fresh)

    def _stat(self, id: str) -> os.stat_result:
        try:
            found = os.lstat(self.image(id))
        except FileNotFoundError as error:
            raise Corrupt(
                f"the image {self.image(id)} of layer {id} is gone",
                hint="restore it, or remove the layer; without it the layer has no limit and is not used",
                code="image.missing",
            ) from error
        if not stat.S_ISREG(found.st_mode):
            raise Corrupt(
                f"{self.image(id)} is not a regular file", hint="remove the layer", code="image.type"
            )
        return found

    def _is_mounted(self, id: str, image: os.stat_result) -> bool:
        """Whether img/<id> is a mount, which then must be of this very image."""
        place = self._place(id)
        try:
            here = statx(place)
        except FileNotFoundError:
            os.makedirs(place, mode=0o700)
            return False
        if not here.mount_root:
            return False
        try:
            with loop.open_by_number(here.dev_major, here.dev_minor) as device:
                proven = device.status().backs(image)
        except OSError as error:
            raise Corrupt(
                f"{place} is mounted from something that is no attached image ({error})",
                hint=f"unmount {place} and try again",
                code="image.foreign",
            ) from error
        if not proven:
            raise Corrupt(
                f"{place} is mounted from another file than {self.image(id)}",
                hint="the image was replaced in use; put the original back, or unmount all of it",
                code="image.swapped",
            )
        return True

    @contextlib.contextmanager
    def _opened(self, id: str, flags: int) -> Iterator[int]:
        fd = os.open(self.image(id), flags | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            yield fd
        finally:
            os.close(fd)

    def _mount(self, id: str, image: os.stat_result, record: Record, *, read_only: bool) -> bool:
        """Mount the image, attached or not; whether it had to be attached."""
        with self._opened(id, os.O_RDWR) as fd:
            self._check_identity(fd, id, record)
            live = self._lock(fd, id)
            if live is None and not record.fresh_blocks:
                live = loop.find(image)  # made by the Go driver: its line in fstab mounts without a flock
            fresh = live is None
            if live is not None:
                device = live
            else:
                if not ext4.read_superblock(fd, self.image(id)).clean:
                    ext4.repair(self.image(id), fd)
                block = ext4.read_superblock(fd, self.image(id))
                device = loop.attach(fd, self.image(id), block_size=512 if block.block_size < 4096 else 4096)
        with device:
            if not device.status().backs(image):
                raise Corrupt(f"{self.image(id)} was replaced", hint="try again", code="image.swapped")
            self._mount_device(device.path, id, record, read_only=read_only)
        return fresh

    def _lock(self, fd: int, id: str) -> loop.Loop | None:
        """Take the image's flock, or find the live loop device that has it, open. Waits for others to pass.

        The kernel ends an autoclear device, and with it the flock, some milliseconds after the last unmount.
        """
        for pause in _LOCK_PAUSES:
            if files.try_flock(fd):
                return None
            live = loop.find(os.fstat(fd))
            if live is not None:
                return live
            time.sleep(pause)
        if files.try_flock(fd):
            return None
        raise Busy(f"the image of layer {id} is locked", hint=_NO_PROCESS, code="image.locked")

    def _check_identity(self, fd: int, id: str, record: Record) -> None:
        block = ext4.read_superblock(fd, self.image(id))
        if block.uuid != record.uuid and (record.uuid or not record.rooted):
            raise Corrupt(
                f"{self.image(id)} is not the image of layer {id}: UUID {block.uuid}, not {record.uuid}",
                hint="put the original back, or remove the layer",
                code="image.swapped",
            )

    def _mount_device(self, device: Path, id: str, record: Record, *, read_only: bool) -> None:
        try:
            try:
                self._mount_as(device, id, record, read_only=read_only)
            except OSError as error:
                # A copy of our mount in another namespace, or a process in one that was taken away, keeps
                # the superblock as it was: read-only although we want to write, or the reverse.
                if error.errno != errno.EBUSY:
                    raise
                self._mount_as(device, id, record, read_only=not read_only)
                if not read_only:
                    self._make_writable(id)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise Busy(
                    f"the image of layer {id} is mounted elsewhere with other options", code="image.busy"
                ) from error
            if error.errno in (errno.EUCLEAN, errno.EINVAL, errno.EIO, errno.EBADMSG, errno.ENODATA):
                raise Corrupt(
                    f"the kernel refuses the image {self.image(id)}: {error.strerror}",
                    hint=f"look at it with 'e2fsck -fn {self.image(id)}'; it is kept as it is",
                    code="image.refused",
                ) from error
            raise

    def _mount_as(self, device: Path, id: str, record: Record, *, read_only: bool) -> None:
        with mount.FsContext("ext4") as context:
            context.set_string("source", device)
            context.set_string("errors", "remount-ro")
            for option in mount_options(record.limit):
                context.set_flag(option)
            if read_only and not record.rooted:
                context.set_flag("ro")
            context.create()
            with context.mount() as mounted:
                if record.rooted:  # the layer is the root of the image: what mke2fs put there is not its own
                    with contextlib.suppress(OSError):
                        os.rmdir("lost+found", dir_fd=mounted.fd)
                else:
                    self._check_directories(mounted.fd, id)
                # Whoever was told of a directory in here must not find host disk should it be unmounted.
                files.set_immutable(self._place(id), True)
                mounted.attach(self._place(id))

    def _check_directories(self, root: int, id: str) -> None:
        for name in ("upper", "work"):
            try:
                mode = os.stat(name, dir_fd=root, follow_symlinks=False).st_mode
            except OSError:
                mode = 0
            if not stat.S_ISDIR(mode):
                raise Corrupt(
                    f"the image of layer {id} has no directory {name}/",
                    hint="it was damaged or changed by hand; restore it, or remove the layer",
                    code="image.layout",
                )

    def _make_writable(self, id: str) -> None:
        """Refuse a degraded place; turn one that was attached read-only, as a parent, writable."""
        place = self._place(id)
        health = self.health(id)
        if health.state == "degraded":
            raise Corrupt(
                f"layer {id} is degraded: {health.why}",
                hint="unmount it everywhere; its next mount repairs it",
                code="layer.degraded",
            )
        if not statfs(place).read_only:
            return
        with mount.FsContext.pick(place) as context:
            context.set_flag("rw")
            context.reconfigure()

    def _bind(self, id: str, upper: Path) -> None:
        """Have ``diff/<id>`` be the upper of the proven place, replacing anything stale there."""
        bind, want = self._upper_bind(id), statx(upper)
        try:
            have = statx(bind)
        except FileNotFoundError:
            bind.mkdir(mode=0o755, parents=True)
            have = statx(bind)
        if have.mount_root:
            if (have.device, have.ino) == (want.device, want.ino):
                return
            self._unmount(bind, id)
        # Should somebody unmount this behind our back, a path handed out must not turn into host disk.
        files.set_immutable(bind, True)
        mount.bind(upper, bind)

    def sync(self, id: str) -> None:
        """Make what was written to the layer durable: its file system if it is mounted, then the image.

        It may be mounted in another namespace only, which got a copy of a mount that has gone here: then no
        last unmount has written it out.
        """
        place = self._place(id)
        with self._opened(id, os.O_RDONLY) as fd:
            if self._mount_root(place):
                files.sync_file_system(place)
            elif not files.try_flock(fd) and (live := loop.find(os.fstat(fd))) is not None:
                with live:
                    sync_mounted(live.path)
            os.fsync(fd)

    def unbind(self, id: str) -> None:
        """Take the bind at ``diff/<id>`` away, so that the upper below it can be exchanged."""
        bind = self._upper_bind(id)
        while self._mount_root(bind):
            self._unmount(bind, id)

    # -- detach ------------------------------------------------------------------------------------

    def is_attached(self, id: str) -> bool:
        return any(self._mount_root(path) for path in (self._upper_bind(id), self._place(id)))

    def _mount_root(self, path: Path) -> bool:
        try:
            return statx(path).mount_root
        except (FileNotFoundError, NotADirectoryError):
            return False

    def detach(self, id: str) -> None:
        for path in (self._upper_bind(id), self._place(id)):
            while self._mount_root(path):
                self._unmount(path, id)

    def _unmount(self, path: Path, id: str) -> None:
        try:
            patiently(lambda: mount.unmount(path))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise from_os_error(error, f"unmount {path}") from error
            raise Busy(
                f"layer {id} is in use: {path} cannot be unmounted",
                hint="end the processes that have files open or their working directory there",
                code="layer.in_use",
            ) from error

    # -- measure -----------------------------------------------------------------------------------

    def usage(self, id: str, record: Record) -> Usage:
        place = self._place(id)
        space = statfs(place) if self._mount_root(place) else None
        if space is not None and self._mount_root(place):  # still: those who only look have no lock
            free_blocks, free_inodes, unit = space.bfree, space.ffree, space.frsize
        else:
            self._stat(id)
            with self._opened(id, os.O_RDONLY) as fd:
                block = ext4.read_superblock(fd, self.image(id))
            free_blocks, free_inodes, unit = block.free_blocks, block.free_inodes, block.block_size
        if not record.fresh_blocks:  # an image of the Go driver: what it had free when new is not known
            with self._opened(id, os.O_RDONLY) as fd:
                block = ext4.read_superblock(fd, self.image(id))
            return Usage((block.blocks - free_blocks) * unit, block.inodes - free_inodes)
        return Usage(
            max(0, record.fresh_blocks - free_blocks) * unit, max(0, record.fresh_inodes - free_inodes)
        )

    def size(self, id: str) -> int:
        place = self._place(id)
        if self._mount_root(place):
            space = statfs(place)
            return space.blocks * space.frsize
        self._stat(id)
        with self._opened(id, os.O_RDONLY) as fd:
            block = ext4.read_superblock(fd, self.image(id))
        return block.blocks * block.block_size

    def health(self, id: str) -> Health:
        try:
            here = statx(self._place(id))
        except (FileNotFoundError, NotADirectoryError):
            return Health("detached")
        if not here.mount_root:
            return Health("detached")
        name = os.path.basename(os.readlink(f"/sys/dev/block/{here.dev_major}:{here.dev_minor}"))
        facts = f"/sys/fs/ext4/{name}"
        errors = int(_read(f"{facts}/errors_count") or 0)
        # Since 6.18 a file system that hit an error keeps its flags and only refuses writes
        # ("emergency_ro"); before, it turned read-only. Either way it counted the error.
        if errors:
            where = _read(f"{facts}/last_error_func") or "unknown place"
            return Health("degraded", f"ext4 on {name} met {errors} error(s), the last in {where}")
        return Health("ok")

    def inspect(self, id: str, record: Record, *, deep: bool) -> list[tuple[str, str]]:
        """What is not as it should be, as codes and sentences; ``deep`` reads the whole file system.

        Raises Corrupt for an image that cannot be used at all.
        """
        found = []
        self._stat(id)
        with self._opened(id, os.O_RDONLY) as fd:
            self._check_identity(fd, id, record)
            clean = ext4.read_superblock(fd, self.image(id)).clean
        if record.growing is not None:
            found.append(
                ("resize.unfinished", f"layer {id} was about to grow to {record.growing.bytes} bytes")
            )
        if not self.is_attached(id):
            if not clean:
                found.append(("image.unclean", f"{self.image(id)} was not unmounted cleanly"))
            elif deep and (damage := ext4.damage(self.image(id))):
                found.append(("image.damaged", f"{self.image(id)} is damaged: {damage}"))
        return found

    def recovered(self, id: str) -> list[str]:
        try:
            return sorted(os.listdir(self._place(id) / "lost+found"))
        except (FileNotFoundError, NotADirectoryError):
            return []

    # -- resize ------------------------------------------------------------------------------------

    def resize(self, id: str, record: Record, limit: Limit) -> Record:
        if limit == record.limit and record.growing is None:
            return record
        if not record.fresh_blocks:  # other block and group sizes, a root reserve: no limit could be promised
            raise NotSupported(
                f"the image of layer {id} was made by the Go driver and keeps its size",
                hint="create a new layer with the limit you want and copy the data",
                code="resize.go_image",
            )
        if limit.bytes < record.limit.bytes:
            raise InvalidArgument(
                f"layer {id} has a limit of {record.limit.bytes} bytes and cannot shrink to {limit.bytes}",
                hint="a limit only grows",
                code="resize.shrink",
            )
        self._stat(id)
        try:
            with self._opened(id, os.O_RDWR) as fd:
                self._check_identity(fd, id, record)
                block = ext4.read_superblock(fd, self.image(id))
                per_group = block.inodes_per_group
                target = max(
                    ext4.image_size(limit, inodes_per_group=per_group), block.blocks * block.block_size
                )
                if limit != record.growing:
                    self._check_inodes(id, record, limit, target, block)
                self._lengthen(fd, id, record, target)
                if self._is_mounted(id, os.fstat(fd)):
                    gained = self._grow_online(fd, id, limit, target, per_group)
                else:
                    gained = self._grow_offline(fd, id, limit, target, per_group)
                fresh = record.fresh_blocks + gained[0], record.fresh_inodes + gained[1]
                if record.growing is not None:  # how far the attempt before this one came is not known
                    fresh = self._count_fresh(id, os.fstat(fd), limit)
        except OSError as error:
            raise from_os_error(error, f"grow layer {id} to {limit.bytes} bytes") from error
        return replace(record, limit=limit, fresh_blocks=fresh[0], fresh_inodes=fresh[1], growing=None)

    def _count_fresh(self, id: str, image: os.stat_result, limit: Limit) -> tuple[int, int]:
        """What would be free if the layer were empty, by a walk over what it has."""
        if self._is_mounted(id, image):
            root = os.open(self._place(id), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                return free_when_empty(root)
            finally:
                os.close(root)
        with detached(self.image(id), limit) as root:
            return free_when_empty(root)

    def _check_inodes(
        self, id: str, record: Record, limit: Limit, target: int, block: ext4.Superblock
    ) -> None:
        if limit.inodes is None:
            return
        now = record.limit.inodes or block.inodes - ext4.SPARE_INODES
        if limit.inodes < now:
            raise InvalidArgument(
                f"layer {id} may have {now} inodes and cannot shrink to {limit.inodes}",
                hint="a limit only grows",
                code="resize.shrink",
            )
        possible = -(-target // ext4.GROUP) * block.inodes_per_group - ext4.SPARE_INODES
        if limit.inodes > possible:
            raise InvalidArgument(
                f"layer {id} cannot have {limit.inodes} inodes with {limit.bytes} bytes, only {possible}",
                hint="inodes grow with the bytes: ask for more bytes",
                code="resize.inodes",
            )

    def _lengthen(self, fd: int, id: str, record: Record, target: int) -> None:
        """Give the image its new length, or on failure leave it the old one."""
        length = os.fstat(fd).st_size
        try:
            if length < target:
                os.ftruncate(fd, target)
            if record.limit.reserve:
                files.allocate(fd, target, self.image(id))
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, length)
            raise

    def _grow_online(self, fd: int, id: str, limit: Limit, target: int, per_group: int) -> tuple[int, int]:
        place = self._place(id)
        old = statfs(place)
        here = statx(place)
        with loop.open_by_number(here.dev_major, here.dev_minor) as device:
            device.refresh_capacity()
            try:
                files.ext4_resize(place, target // old.frsize)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EROFS):
                    raise
                held = ext4.read_superblock(device.fd, device.path)  # that of the image may be older
                os.ftruncate(fd, held.blocks * held.block_size)  # also what an attempt that died has added
                device.refresh_capacity()
                hint = "growing a mounted ext4 needs CAP_SYS_RESOURCE; unmount the layer and resize it then"
                if error.errno == errno.EROFS:
                    hint = "it is mounted read-only below its children; unmount them and resize it then"
                raise NotSupported(
                    f"layer {id} cannot grow while it is mounted: {error.strerror}",
                    hint=hint,
                    code="resize.online",
                ) from error
        filled = 0
        if limit.inodes is not None:
            root = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                filled = fill_inodes(root, limit.inodes, per_group)
            finally:
                os.close(root)
        new = statfs(place)
        return new.blocks - old.blocks, new.files - old.files - filled

    def _grow_offline(self, fd: int, id: str, limit: Limit, target: int, per_group: int) -> tuple[int, int]:
        for _ in range(TRIES):
            live = self._lock(fd, id)
            if live is None:
                break
            live.close()  # it may be on its way out: whoever looks at a device delays its end
            time.sleep(PAUSE)
        else:
            raise Busy(
                f"the image of layer {id} is attached elsewhere", hint=_NO_PROCESS, code="image.locked"
            )
        if not ext4.read_superblock(fd, self.image(id)).clean:
            ext4.repair(self.image(id), fd)
        old = ext4.read_superblock(fd, self.image(id))
        ext4.grow(self.image(id), fd, target // old.block_size)
        if limit.inodes is not None:
            with detached(self.image(id), limit) as root:
                fill_inodes(root, limit.inodes, per_group)
        new = ext4.read_superblock(fd, self.image(id))
        os.fsync(fd)
        return new.free_blocks - old.free_blocks, new.free_inodes - old.free_inodes


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        return files.read_whole(path).decode(errors="replace").strip()
    return ""
