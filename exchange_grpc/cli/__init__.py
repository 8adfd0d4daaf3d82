"""The command line: `exchange serve`, and a command for each thing that one does with an exchange.

Law: nothing here that a user of the package could not write: it uses `Exchange`, `Peer`, the errors and
the generated stubs. Each client command is an exchange itself, `cli-...`, linked while it runs.

    console, pretty             errors, exit codes, values, the link; tables, colours
    serve, config, logs, demo   `serve`: its settings, what it logs, what it plays with
    handle, child               `handle`: a shell command as a handler; one run of it
    talk, observe, state        `send`, `publish`, `request`, `request-many`; `observe`; `state ...`
    look                        `describe`, `peers`, `routes`, `handlers`, `stats`
    explain, tree, reason       `trace`, `why`; how both are drawn
    bench, doctor, completion   those commands
"""

import os
import sys

# gRPC's own lines on stderr would stand beside ours. It reads this when it is imported: hence before.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import click

from ..version import VERSION
from .bench import bench
from .completion import completion
from .console import EXIT_CODES
from .doctor import doctor
from .explain import trace, why
from .handle import handle
from .look import describe, handlers, peers, routes, stats
from .observe import observe
from .serve import serve
from .state import state
from .talk import publish, request, request_many, send

SECTIONS = {
    "Take part": (serve, handle),
    "Talk": (request, request_many, send, publish, state),
    "Look": (observe, describe, peers, routes, handlers, stats),
    "Understand": (trace, why, doctor, bench),
    "Shell": (completion,),
}


class Sections(click.Group):
    """A group whose help has its commands by what they are for."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See click."""
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(str(command.name), command.get_short_help_str(80)) for command in commands])


@click.group(cls=Sections, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="exchange")
@click.pass_context
def main(context: click.Context) -> None:
    """Serve an exchange, and talk to one.

    \b
    exchange serve --demo                            # in one shell, and in another:
    exchange request compute.sum '{"a":5,"b":3}'     # prints 8

    What a command prints is JSON, one value on each line; on a terminal it may be a table. EXCHANGE_URL
    says which exchange to talk to, if it is not that of `exchange serve` here. NO_COLOR=1 takes colours away.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character gets its number
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    if os.environ.get("NO_COLOR"):
        context.color = False


for each in (command for commands in SECTIONS.values() for command in commands):
    main.add_command(each)
