"""``layerlimit run``: run a command inside a layer."""

from __future__ import annotations

import click

from layerlimit.cli.failure import RUN_FAILED, report
from layerlimit.cli.options import NAME, Command
from layerlimit.cli.settings import Settings
from layerlimit.errors import Error


class _Run(Command):
    """The command to run is everything from its first word on, whether ``--`` stands before it or not."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._separated(args))

    def _separated(self, args: list[str]) -> list[str]:
        takes_value = {
            name
            for param in self.params
            if isinstance(param, click.Option) and not param.is_flag
            for name in param.opts
        }
        named = False
        index = 0
        while index < len(args) and args[index] != "--":
            word = args[index]
            if word.startswith("-") and word != "-":
                index += 1 if word not in takes_value else 2
            elif named:
                return [*args[:index], "--", *args[index:]]
            else:
                named = True
                index += 1
        return args


@click.command("run", cls=_Run, short_help="Run a command in a layer, confined to it.")
@NAME
@click.argument("words", metavar="[--] COMMAND [ARG...]", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "-u", "--user", default="", help="NAME or UID, or with :GROUP, as the layer's /etc/passwd has it."
)
@click.option("-e", "--env", multiple=True, metavar="KEY[=VALUE]", help="Set a variable, or pass it on.")
@click.option("-w", "--workdir", default="/", metavar="DIR", help="Where the command starts.  [default: /]")
@click.option("--hostname", default="", help="Without, the host's.")
@click.option(
    "--read-only", is_flag=True, help="The command cannot write; it never can to a committed layer."
)
@click.pass_obj
def command(
    settings: Settings,
    name: str,
    words: tuple[str, ...],
    user: str,
    env: tuple[str, ...],
    workdir: str,
    hostname: str,
    read_only: bool,
) -> int:
    """Mount the layer NAME, run COMMAND in it, unmount it, and end with the command's exit code.

    The command has namespaces, /proc and /dev of its own and the host's network. It cannot mount, reach a
    device, or lift the limit. 125: layerlimit failed; 126, 127: the command cannot be executed, or is not
    there; 128 + N: signal N ended it.
    """
    from layerlimit import sandbox

    try:
        with settings.open_store() as store:
            read_only = read_only or not store.stat(name).writable
            with store.mounted(name, read_only=read_only) as root:
                return sandbox.run(
                    root, words, env=env, user=user, workdir=workdir, hostname=hostname, read_only=read_only
                )
    except Error as error:
        report(error, settings)
        return RUN_FAILED
