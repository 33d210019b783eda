"""Knows no settings: the command line of ``localrun launch``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from localrun.cli.options import Json
from localrun.errors import UsageError

# Written out, as the help is to be there at once; a test compares it with the descriptions.
NAMES = (
    "claude, codex, opencode, aider, llama.vim, continue, zed, vscode, minuet, jetbrains, cursor"
)
_REST = "localrun.launch.rest"


class LaunchCommand(TyperCommand):
    """What follows ``--`` is the agent's, whether or not a model was named before it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta[_REST] = tuple(args[at + 1 :])
            args = args[:at]
        return super().parse_args(ctx, args)


Agent = Annotated[str, typer.Argument(metavar="AGENT", help=f"{NAMES}.")]
Model = Annotated[
    str | None,
    typer.Argument(metavar="REF", help="Else what the server has loaded, or the first on disk."),
]
Server = Annotated[
    str | None, typer.Option("--server", help="The server's URL; else one that runs here.")
]
Ctx = Annotated[
    int | None, typer.Option("--ctx", help="Context in tokens of a server that is started.")
]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", help="Key of the server; better in LOCALRUN_API_KEY.")
]
Print = Annotated[
    bool, typer.Option("--print", help="Print the settings; write and start nothing.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Write the file that is shown without asking.")]


def launch(
    context: typer.Context,
    agent: Agent,
    ref: Model = None,
    server: Server = None,
    ctx: Ctx = None,
    api_key: ApiKey = None,
    print_only: Print = False,
    yes: Yes = False,
    json: Json = False,
) -> int:
    """Set up an editor or agent for a model and start it; arguments after -- are its own."""
    from localrun.cli.launch.connecting import Wish
    from localrun.cli.launch.launching import Manner
    from localrun.cli.launch.launching import launch as launch_agent
    from localrun.config import settings

    if ctx is not None and ctx < 1:
        raise UsageError(f"--ctx {ctx} is no number of tokens")
    manner = Manner(print_only, json, yes, context.meta.get(_REST, ()))
    return launch_agent(agent.lower(), Wish(ref, server, ctx, api_key), manner, settings())
