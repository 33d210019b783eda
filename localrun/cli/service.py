"""Knows no model: ``localrun serve`` as a service of this user, run by systemd or launchd.

https://www.freedesktop.org/software/systemd/man/latest/systemd.service.html, systemd.exec for the
limits, and launchd.plist(5).
"""

from __future__ import annotations

import plistlib
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localrun.cli.output import note, say
from localrun.config import Settings, environment
from localrun.errors import UsageError
from localrun.ref import PathRef, parse

MARK = "written by localrun: its flag uninstall-service removes this file"
UNIT = "localrun.service"
LABEL = "localrun"
_KEY = "LOCALRUN_API_KEY"
# Quoted alike by systemd and by sh.
_SAFE_KEY = re.compile(r"[A-Za-z0-9._~+/=:@%,!^*-]+")
_PLAIN = re.compile(r"[A-Za-z0-9_./:=@+,-]+")
# Where models and settings are; a service has no shell that would set them.
_KEPT = ("LOCALRUN_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "OLLAMA_MODELS")
_NOT_A_FLAG = {"install_service", "uninstall_service", "yes", "api_key"}


@dataclass(frozen=True, slots=True)
class Service:
    """command: the whole command line. writable: directories. key_file: holds the API key."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    writable: tuple[Path, ...] = ()
    key_file: Path | None = None
    log: Path = Path()


def systemd_unit(service: Service) -> str:
    """The text of a user unit.

    Left open are the devices (GPUs), memory that is both written and executed (compiled kernels)
    and namespaces (the templates' child); what needs a capability is not for a user's units.
    """
    lines = [
        f"# {MARK}",
        "[Unit]",
        "Description=localrun, open-weight language models on a local port",
        "",
        "[Service]",
        "Type=exec",
        f"ExecStart={' '.join(_quoted(part).replace('$', '$$') for part in service.command)}",
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in service.env.items()),
        *([f"EnvironmentFile={_path(service.key_file)}"] if service.key_file else []),
        "Restart=on-failure",
        "RestartSec=5",
        "TimeoutStopSec=30",
        "",
        "NoNewPrivileges=yes",
        "LockPersonality=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "SystemCallArchitectures=native",
        "UMask=0077",
        "# Where the kernel keeps user namespaces from users, these end it with 226/NAMESPACE.",
        "ProtectSystem=strict",
        "ProtectHome=read-only",
        "PrivateTmp=yes",
        *(f"ReadWritePaths={_quoted(f'-{path}')}" for path in service.writable),
        "",
        "[Install]",
        "WantedBy=default.target",
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """As systemd splits words: specifiers, quotes and backslashes mean themselves."""
    text = text.replace("%", "%%")
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _path(path: Path) -> str:
    # The whole line is one path: nothing is quoted there.
    return str(path).replace("%", "%%")


def launchd_agent(service: Service) -> str:
    """The text of a property list. launchd reads no key from a file, so a shell does it."""
    command = list(service.command)
    if service.key_file is not None:
        script = f'. "$0"; export {_KEY}; exec "$@"'
        command = ["/bin/sh", "-c", script, str(service.key_file), *command]
    document: dict[str, Any] = {
        "Label": LABEL,
        "ProgramArguments": command,
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 5,
        # Otherwise its CPU time and its reads are throttled as a background program's.
        "ProcessType": "Interactive",
        "Umask": 0o077,
        "StandardErrorPath": str(service.log),
    }
    if service.env:
        document["EnvironmentVariables"] = dict(service.env)
    text = plistlib.dumps(document).decode()
    head, _, rest = text.partition("<plist")
    return f"{head}<!-- {MARK} -->\n<plist{rest}"


def install(context: Any, here: Settings, *, yes: bool) -> int:
    """Write the unit of this very command line, and say how it is switched on.

    ``context`` is that of the command ``serve``; its flags, and not those of config.toml, which the
    service reads itself, become those of the service. Returns the exit code.

    Raises:
        UsageError: no such services on this system, a key that no file can carry, or nobody to ask.
    """
    from localrun.cli.user_files import changed, write

    place, mac = _place(), sys.platform == "darwin"
    given = _given(context)
    key = given.get("api_key")
    if key is not None and not _SAFE_KEY.fullmatch(key):
        raise UsageError(
            "the API key holds characters that a service's file cannot carry",
            hint="letters, digits and . _ ~ + / = : @ % , ! ^ * - are taken",
        )
    key_file = here.config_file.parent / "service.env"
    service = Service(
        command=(sys.executable, "-P", "-m", "localrun.cli", "serve", *_flags(context, given)),
        env={name: value for name in _KEPT if (value := environment().get(name))},
        writable=_writable(here),
        key_file=None if key is None else key_file,
        log=here.state / "service.log",
    )
    text = launchd_agent(service) if mac else systemd_unit(service)
    if not changed(place, text, yes=yes):
        return 1
    if key is not None:
        write(key_file, f"# {MARK}\n{_KEY}='{key}'\n")
        note(f"the API key is in {key_file}, which only you can read")
    if mac:
        here.state.mkdir(parents=True, exist_ok=True)
        note("not switched on yet; this does it:")
        say(f"launchctl bootstrap gui/$(id -u) '{place}'")
        return 0
    note("not switched on yet; this does it, the last line for a machine where nobody logs in:")
    say("systemctl --user daemon-reload")
    say(f"systemctl --user enable --now {UNIT}")
    say("loginctl enable-linger")
    return 0


def uninstall(here: Settings) -> int:
    """Remove what ``install`` wrote, and say how it is switched off.

    Raises:
        UsageError: there is none, or somebody else wrote it.
    """
    from localrun.cli.user_files import read

    place = _place()
    text = read(place)
    if text is None:
        raise UsageError(f"{place}: no service is installed")
    if MARK not in text:
        raise UsageError(
            f"{place} was not written by localrun", hint="remove it yourself if it is to go"
        )
    place.unlink()
    note(f"removed {place}")
    key_file = here.config_file.parent / "service.env"
    if MARK in (read(key_file) or ""):
        key_file.unlink()
        note(f"removed {key_file}")
    note("if it runs, this ends it:")
    if sys.platform == "darwin":
        say(f"launchctl bootout gui/$(id -u)/{LABEL}")
        return 0
    # `systemctl enable` made it; without the unit `systemctl disable` would not find it.
    link = place.parent / "default.target.wants" / UNIT
    if link.is_symlink():
        with suppress(OSError):
            link.unlink()
    say(f"systemctl --user stop {UNIT}")
    say("systemctl --user daemon-reload")
    return 0


def _place() -> Path:
    match sys.platform:
        case "linux":
            config = environment().get("XDG_CONFIG_HOME")
            root = Path(config) if config else Path.home() / ".config"
            return root / "systemd" / "user" / UNIT
        case "darwin":
            return Path.home() / "Library" / "LaunchAgents" / f"{LABEL}.plist"
        case other:
            raise UsageError(f"services are for systemd and launchd, not for {other}")


def _given(context: Any) -> dict[str, Any]:
    """The values of the command line and of the environment, which a service does not have."""
    return {
        name: value
        for name, value in context.params.items()
        if getattr(context.get_parameter_source(name), "name", "") in {"COMMANDLINE", "ENVIRONMENT"}
        and value is not None
    }


def _flags(context: Any, given: Mapping[str, Any]) -> list[str]:
    words = []
    for parameter in context.command.params:
        name = parameter.name
        if name not in given or name in _NOT_A_FLAG:
            continue
        value = given[name]
        if parameter.param_type_name == "argument":
            words += [_absolute(ref) for ref in value]
        elif isinstance(value, bool):
            words += (parameter.opts if value else parameter.secondary_opts)[:1]
        else:
            values = value if isinstance(value, list | tuple) else [value]
            text = _PATHS.get(name, str)
            words += [f"{parameter.opts[0]}={text(each)}" for each in values]
    return words


def _absolute(ref: str) -> str:
    """A service begins in another directory than the shell that a path was typed in."""
    parsed = parse(ref)
    return str(Path(parsed.path).expanduser().absolute()) if isinstance(parsed, PathRef) else ref


_PATHS: Mapping[str, Callable[[Any], str]] = {
    "draft": _absolute,
    "mirror": lambda folder: str(folder.expanduser().absolute()),
}


def _writable(here: Settings) -> tuple[Path, ...]:
    # Beside our own: where libraries keep kernels that they compiled.
    home = Path.home()
    places = (here.data, here.state, here.cache, here.hub_cache, home / ".cache", home / ".nv")
    return tuple(dict.fromkeys((*places, home / ".triton")))
