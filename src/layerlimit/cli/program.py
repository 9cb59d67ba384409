"""The command as a whole: which sub-commands there are, and how each run of it ends."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from typing import Final

import click

from layerlimit import __version__
from layerlimit.cli.failure import ended_by_exception, note_format, report
from layerlimit.cli.options import global_options
from layerlimit.cli.settings import Settings

# In the order of the help: what one does first comes first.
COMMANDS: Final = (
    "import",
    "create",
    "view",
    "commit",
    "mount",
    "umount",
    "run",
    "ls",
    "tree",
    "inspect",
    "df",
    "resize",
    "rename",
    "label",
    "changes",
    "diff",
    "apply",
    "rm",
    "gc",
    "check",
    "config",
    "doctor",
    "migrate",
    "serve",
    "setup",
)


class Program(click.Group):
    """Loads a sub-command when it is asked for, so that a short command starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = "import_" if cmd_name == "import" else cmd_name
        command: click.Command = importlib.import_module(f"layerlimit.cli.commands.{module}").command
        return command


program: Final = Program(
    "layerlimit",
    params=[
        *global_options(hidden=False),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            help="Show the version and exit.",
            callback=lambda ctx, _, value: _show_version(ctx) if value else None,
        ),
    ],
    help="Copy-on-write root filesystems with a hard disk limit.",
    epilog="Sizes are binary: 10g is 10GiB; plain digits are bytes. They may also follow the command.",
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _show_version(ctx: click.Context) -> None:
    click.echo(f"layerlimit {__version__}")
    ctx.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (without the program's name) and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    settings = Settings()
    log = logging.getLogger("layerlimit")
    handler = _Log(settings)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        with ended_by_exception():
            code = program.main(words, prog_name="layerlimit", standalone_mode=False, obj=settings)
        return code if isinstance(code, int) else 0
    except BaseException as error:
        if isinstance(error, click.UsageError):
            note_format(words, settings)
        return report(error, settings)
    finally:
        log.removeHandler(handler)


class _Log(logging.Handler):
    """Log lines on stderr, from the level on that the options say, wherever they stand."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings

    def emit(self, record: logging.LogRecord) -> None:
        wanted = "error" if self._settings.quiet else self._settings.log_level
        if record.levelno >= logging.getLevelNamesMapping()[wanted.upper()]:
            self._settings.tell(f"{record.levelname.lower()}: {record.getMessage()}")
