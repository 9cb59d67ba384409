"""``layerlimit serve``: the daemon that containerd and Docker call."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from layerlimit.cli.options import Command
from layerlimit.cli.settings import DEFAULT_ROOT, Settings, require_root
from layerlimit.errors import NotSupported


def _path(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


@click.command("serve", cls=Command, short_help="Serve containerd and Docker as a snapshotter.")
@click.option("--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="Read this file.")
@click.option("--address", metavar="PATH", help="The socket that containerd calls.")
@click.option(
    "--snapshotter",
    "snapshotters",
    multiple=True,
    metavar="NAME[=LIMIT]",
    help="A name that containerd knows this daemon by, and its containers' limit; several times.",
)
@click.option("--docker-root", metavar="DIR", help="Docker's data root: --storage-opt size= is read there.")
@click.option("--containerd", metavar="PATH", help="containerd's socket: labels and annotations are read.")
@click.option("--metrics", metavar="ADDRESS", help="Serve Prometheus at HOST:PORT or unix:/PATH.")
@click.option("--log-format", type=click.Choice(["auto", "json", "text"]), help="How to log to stderr.")
@click.pass_context
def command(
    context: click.Context,
    file: Path | None,
    address: str | None,
    snapshotters: tuple[str, ...],
    docker_root: str | None,
    containerd: str | None,
    metrics: str | None,
    log_format: str | None,
) -> None:
    """Serve containerd, and Docker through it, as a snapshotter, until SIGTERM.

    Options win over the configuration file, /etc/layerlimit/config.toml where there is one;
    'layerlimit config default' shows and explains it. Containers run on while this does not.
    """
    require_root()
    try:
        from layerlimit.daemon.run import run
    except ModuleNotFoundError as error:
        raise NotSupported(
            f"serving needs the library {error.name}",
            hint="install it with: pip install 'layerlimit[serve]'",
            code="serve.library",
        ) from error
    from layerlimit.daemon.config import override, read_config
    from layerlimit.daemon.logs import logging_to

    settings = context.ensure_object(Settings)
    config = override(
        read_config(file),
        root=str(settings.root) if settings.root != Path(DEFAULT_ROOT) else None,
        address=_path(address),
        docker_root=_path(docker_root),
        containerd=_path(containerd),
        snapshotters=snapshotters,
        metrics=metrics,
        log_level=settings.log_level if settings.log_level != Settings().log_level else None,
        log_format=log_format,
    )
    with logging_to(sys.stderr, level=config.log.level, format=config.log.format):
        run(config)
