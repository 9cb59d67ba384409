"""The daemon as a whole: one store, its classes, the socket, and the thread that deletes what was removed."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

from layerlimit.containerd.content import ContentStore
from layerlimit.containerd.diff import diff_handlers
from layerlimit.containerd.origins import Containerd, Docker
from layerlimit.containerd.server import serving
from layerlimit.containerd.service import Service
from layerlimit.containerd.snapshots import Class, Snapshots
from layerlimit.daemon.config import Config, PolicyTable
from layerlimit.daemon.notify import notify, take_notify_socket
from layerlimit.daemon.observe import observe
from layerlimit.errors import Busy, Error, from_os_error
from layerlimit.linux.files import try_flock
from layerlimit.linux.libc import trim_memory
from layerlimit.store import Store

_REAP_SECONDS: Final = 60.0  # what could not be deleted is tried again
_PAUSE_SECONDS: Final = 1.0  # removals come in groups

log = logging.getLogger("layerlimit.daemon")


def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT. Mounts stay as they are: containers do not notice.

    Busy when another daemon serves this root or this address.
    """
    manager = take_notify_socket()
    root = Path(config.root)
    with contextlib.ExitStack() as stack:
        ended = stack.enter_context(_ended_by_signal())
        stack.enter_context(_alone(root))
        store = stack.enter_context(Store(root))
        for note in store.opened:
            log.warning("%s", note)
        containerd = Containerd(config.containerd)
        stack.callback(containerd.close)
        docker = Docker(Path(config.docker_root)) if config.docker_root else None
        # What the file does not say is asked of the store each time: it may be changed while we run.
        policy = None if config.policy == PolicyTable() else config.policy.over(store.policy)
        classes = {
            each.name: Snapshots(
                store.partition(each.name, policy=policy),
                Class(each.name, each.limit, each.maximum_bytes),
                docker=docker,
                containerd=containerd,
            )
            for each in config.snapshotters
        }
        removed = stack.enter_context(_reaping(store))
        content = ContentStore(config.containerd)
        stack.callback(content.close)
        handlers = (
            Service(classes, removed.set).handler(),
            diff_handlers(store, content, lambda info: classes[info.namespace].synced(info.name)),
        )
        observer = observe(store.partition(store.namespace, policy=policy), config.metrics.address)
        stack.enter_context(serving(Path(config.address), handlers, observer.interceptors))
        stack.enter_context(observer.endpoint())
        notify(manager, "READY=1")
        log.info("serving %s at %s", ", ".join(classes), config.address)
        ended.wait()
        notify(manager, "STOPPING=1")
        log.info("ending")


@contextlib.contextmanager
def _ended_by_signal() -> Iterator[threading.Event]:
    """In the block, SIGTERM and SIGINT set the event."""
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the root for one daemon, by a flock on its directory that ends with the process."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(error, f"use {root}") from error
    try:
        if not try_flock(fd):
            raise Busy(
                f"another daemon serves {root}", hint="end it, or give another --root", code="root.served"
            )
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _reaping(store: Store) -> Iterator[threading.Event]:
    """In the block, a thread deletes what was removed: soon after the event is set, and now and then."""
    removed, ended = threading.Event(), threading.Event()

    def reap() -> None:
        while not ended.is_set():
            removed.wait(_REAP_SECONDS)
            if ended.wait(_PAUSE_SECONDS):
                return
            removed.clear()
            try:
                for note in store.reaper.run(everywhere=False):
                    log.warning("%s", note)
            except Error as error:
                log.error("cannot delete what was removed: %s", error)
            trim_memory()  # of the layers that were unpacked since

    thread = threading.Thread(target=reap, name="reaper")
    thread.start()
    try:
        yield removed
    finally:
        ended.set()
        removed.set()
        thread.join()
