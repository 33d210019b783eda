"""Knows every environment variable and the one configuration file; nothing else reads either.

Precedence: default < config.toml < ``LOCALRUN_<FLAG>`` < flag. The command line looks its flags up
through ``defaults``; the rooms below get ``Settings`` by value.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from localrun.errors import ConfigError

ENV_PREFIX = "LOCALRUN_"
CONFIG_NAME = "config.toml"

ConfigValue = str | int | float | bool | list[str]


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things lie. All paths are absolute.

    data: models and manifests, conversations. state: running servers, logs.
    cache: what may be deleted at any time. hub_cache: the shared Hugging Face cache.
    ollama_models, lmstudio_models: where those programs keep theirs, existing or not.
    check_numbers: whether the torch backend looks behind every layer for what is no number.
    check_rows: whether it holds every row of n-gram tables against a second, plain computation.
    """

    data: Path
    state: Path
    cache: Path
    config_file: Path
    hub_cache: Path
    hub_endpoint: str
    hub_token: str | None
    offline: bool
    no_color: bool
    ollama_models: Path = Path()
    lmstudio_models: tuple[Path, ...] = ()
    check_numbers: bool = False
    check_rows: bool = False


def settings(env: Mapping[str, str] | None = None) -> Settings:
    """Resolve directories and hub settings.

    ``LOCALRUN_HOME`` puts everything of ours under one directory. ``LOCALRUN_DEBUG_NAN=1`` checks
    the numbers behind every layer, ``LOCALRUN_DEBUG_ENGRAM=1`` every row of n-gram tables.
    ``HF_HOME``, ``HF_HUB_CACHE``, ``HF_ENDPOINT``, ``HF_TOKEN``,
    ``HF_TOKEN_PATH`` and ``HF_HUB_OFFLINE`` mean what huggingface_hub says they mean
    (https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables).
    """
    env = os.environ if env is None else env
    home = env.get(ENV_PREFIX + "HOME")
    if home:
        root = Path(home).expanduser().absolute()
        data, state, cache, config = root / "data", root / "state", root / "cache", root
    else:
        import platformdirs

        dirs = platformdirs.PlatformDirs("localrun", appauthor=False)
        data, state = Path(dirs.user_data_dir), Path(dirs.user_state_dir)
        cache, config = Path(dirs.user_cache_dir), Path(dirs.user_config_dir)
    hf_home = _hf_home(env)
    hub_cache = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or str(hf_home / "hub")
    return Settings(
        data=data,
        state=state,
        cache=cache,
        config_file=config / CONFIG_NAME,
        hub_cache=Path(hub_cache).expanduser().absolute(),
        hub_endpoint=env.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/"),
        hub_token=_hub_token(env, hf_home),
        offline=_truthy(env.get("HF_HUB_OFFLINE", "")),
        no_color=bool(env.get("NO_COLOR")),
        ollama_models=Path(env.get("OLLAMA_MODELS") or "~/.ollama/models").expanduser().absolute(),
        lmstudio_models=tuple(
            Path(place).expanduser().absolute()
            for place in ("~/.lmstudio/models", "~/.cache/lm-studio/models")
        ),
        check_numbers=_truthy(env.get(ENV_PREFIX + "DEBUG_NAN", "")),
        check_rows=_truthy(env.get(ENV_PREFIX + "DEBUG_ENGRAM", "")),
    )


def _hf_home(env: Mapping[str, str]) -> Path:
    cache = env.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(env.get("HF_HOME") or f"{cache}/huggingface").expanduser().absolute()


def _hub_token(env: Mapping[str, str], hf_home: Path) -> str | None:
    token = env.get("HF_TOKEN") or env.get("HUGGING_FACE_HUB_TOKEN")
    if token:
        return token.strip()
    path = Path(env.get("HF_TOKEN_PATH") or hf_home / "token").expanduser()
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _truthy(text: str) -> bool:
    return text.strip().upper() in {"1", "ON", "YES", "TRUE"}


def defaults(config_file: Path, known: frozenset[str]) -> dict[str, ConfigValue]:
    """Read config.toml: one key per flag, same name, ``-`` and ``_`` alike.

    Raises:
        ConfigError: not TOML, a key that no flag has, or a table where a value belongs.
    """
    import tomllib

    try:
        document = tomllib.loads(config_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{config_file}: {error}") from error
    values: dict[str, ConfigValue] = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        if name in values:
            raise ConfigError(f"{config_file}: {key!r} is set twice, with '-' and with '_'")
        if name not in known:
            raise ConfigError(
                f"{config_file}: no flag is called {key!r}", hint=_nearest(key, known)
            )
        if isinstance(value, list):
            value = [str(item) for item in value]
        if not isinstance(value, str | int | float | bool | list):
            raise ConfigError(f"{config_file}: {key!r} is a {type(value).__name__}, not a value")
        values[name] = value
    return values


def _nearest(key: str, known: frozenset[str]) -> str:
    import difflib

    near = difflib.get_close_matches(key.replace("-", "_"), sorted(known), n=3)
    return f"did you mean {', '.join(near)}?" if near else "see --help for the flags"


def child_environment() -> dict[str, str]:
    """The environment for the engine's child: this one, without secrets it has no use for."""
    secrets = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", ENV_PREFIX + "API_KEY"}
    return {key: value for key, value in os.environ.items() if key not in secrets}


def environment() -> dict[str, str]:
    """The environment of a program that the user starts through us: all of this one."""
    return dict(os.environ)
