"""Knows no command's body: the command tree, and how every failure leaves the program.

One of the two places where ``except Exception`` stands: what reaches the top is a defect, said in
one line; ``--verbose`` shows the traceback.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer
from typer.main import get_command

from localrun import __version__
from localrun.cli import (
    bench,
    chat,
    doctor,
    evaluate,
    hardware,
    models,
    plan,
    pull,
    quantize,
    run,
    serve,
    show,
)
from localrun.cli.launch.command import LaunchCommand, launch
from localrun.cli.output import clean_text, complain
from localrun.config import ENV_PREFIX, ConfigValue
from localrun.errors import ConfigError, LocalrunError

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="localrun",
    help="Run open-weight language models on this machine.",
    epilog="Every flag is also LOCALRUN_<FLAG> in the environment and a key of config.toml.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # importing rich would double the time of --help
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Log to stderr; tracebacks of defects.")
    ] = False,
) -> None:
    if version:
        typer.echo(f"localrun {__version__}")
        raise typer.Exit
    from localrun.cli.log import log_to_stderr

    log_to_stderr(verbose=verbose)


app.command("pull")(pull.pull)
app.command("list")(models.list_models)
app.command("show")(show.show)
app.command("plan")(plan.plan)
app.command("rm")(models.remove)
app.command("import")(models.import_model)
app.command("run")(run.run)
app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("ps")(serve.ps)
app.command("stop")(serve.stop)
app.command("launch", cls=LaunchCommand)(launch)
app.command("bench")(bench.bench)
app.command("quantize")(quantize.quantize)
app.add_typer(evaluate.app, name="evaluate")
app.command("hardware")(hardware.hardware)
app.command("doctor")(doctor.doctor)


def command_tree() -> Any:
    """The command with one environment variable set on every flag (DESIGN section 3)."""
    tree = get_command(app)
    for flag in every_flag(tree):
        # LOCALRUN_VERSION is what a package or an image may set; it asks for nothing.
        if flag.name != "version":
            flag.envvar = ENV_PREFIX + flag.name.upper()
            flag.show_envvar = False
    return tree


def every_flag(command: Any) -> Iterator[Any]:
    """The options of a command and of all commands below it."""
    yield from _flags(command)
    for inner in getattr(command, "commands", {}).values():
        yield from every_flag(inner)


class ConfiguredDefaults(dict[str, Any]):
    """Defaults of each command from config.toml, read when the first command asks for its own."""

    def __init__(self, tree: Any) -> None:
        super().__init__()
        self._tree = tree

    def get(self, name: str, default: Any = None) -> Any:
        if not self and name in self._tree.commands:
            from localrun.config import defaults, settings

            commands, file = self._tree.commands, settings().config_file
            known = frozenset(
                flag.name for command in commands.values() for flag in every_flag(command)
            )
            values = defaults(file, known)
            for each, command in commands.items():
                self[each] = _defaults_of(command, values, file)
        return super().get(name, default)


def _defaults_of(command: Any, values: Mapping[str, ConfigValue], file: Path) -> dict[str, Any]:
    """By flag, and below a group by command."""
    found: dict[str, Any] = {
        flag.name: _shaped(flag, values[flag.name], file)
        for flag in _flags(command)
        if flag.name in values
    }
    for name, inner in getattr(command, "commands", {}).items():
        found[name] = _defaults_of(inner, values, file)
    return found


def _flags(command: Any) -> Iterator[Any]:
    return (each for each in command.params if each.param_type_name == "option")


def _shaped(flag: Any, value: ConfigValue, file: Path) -> ConfigValue:
    """A flag that may be given several times takes a list, and one value as a list of one."""
    if flag.multiple:
        return value if isinstance(value, list) else [str(value)]
    if isinstance(value, list):
        raise ConfigError(f"{file}: {flag.name!r} is a list, {flag.opts[0]} takes one value")
    return value


def execute(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    try:
        tree = command_tree()
        result = tree.main(
            list(arguments),
            prog_name="localrun",
            standalone_mode=False,
            default_map=ConfiguredDefaults(tree),
        )
        return result if isinstance(result, int) else 0
    except LocalrunError as error:
        complain(error.message, error.hint)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`| head`): nobody is left to be told.
        sys.stderr.close()
        return EXIT_FAILURE
    except typer.TyperException as error:
        _show_usage(error)
        return error.exit_code
    except OSError as error:
        # The disk behind a redirection is full, a directory is not ours: no defect of the program.
        place = error.filename if isinstance(error.filename, str) else "standard output"
        complain(f"{place}: {error.strerror or error}", "")
        return EXIT_FAILURE
    except Exception as error:  # the command line's top
        if "--verbose" in arguments:
            raise
        complain(
            f"internal error: {type(error).__name__}: {error}",
            "this is a defect of localrun: repeat with `localrun --verbose …` for the traceback",
        )
        return EXIT_FAILURE


def _show_usage(error: typer.TyperException) -> None:
    """What the library says of a command line, which may quote what was pasted into it."""
    origin = _origin(error)
    show = getattr(error, "show", None)
    if origin or show is None:
        complain(f"{origin}: {error.message}" if origin else error.message, "")
        return
    said = io.StringIO()
    show(file=said)
    sys.stderr.write(clean_text(said.getvalue()))


def _origin(error: typer.TyperException) -> str | None:
    """The variable or the line of config.toml behind a value that nobody has typed."""
    from localrun.config import settings

    flag, context = getattr(error, "param", None), getattr(error, "ctx", None)
    if flag is None or context is None:
        return None
    source = context.get_parameter_source(flag.name)
    match getattr(source, "name", None):
        case "ENVIRONMENT":
            return str(flag.envvar)
        case "DEFAULT_MAP":
            return f"{settings().config_file}: {flag.name}"
        case _:
            return None


def _show_defect(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """The traceback of ``--verbose``, whose last line may quote a stranger."""
    import traceback

    sys.stderr.write(clean_text("".join(traceback.format_exception(kind, error, trace))))


def _open_closed_streams() -> None:
    """A stream that the shell closed (``>&-``) becomes the null device.

    This comes before anything is opened, so that no file or socket of ours gets its number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115  # open until the end
            setattr(sys, name, null)


def run_app() -> None:
    """Run the command line of this process and exit."""
    _open_closed_streams()
    sys.excepthook = _show_defect
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that lacks a character shows a mark in its place; the answer goes on.
        sys.stdout.reconfigure(errors="replace")
    sys.exit(execute(sys.argv[1:]))
