"""Knows no route: kinds of JSON values that requests of Ollama's API hold, and their limits.

https://docs.ollama.com/api, https://docs.ollama.com/modelfile#valid-parameters-and-values
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from localrun.engine import limits
from localrun.server.fields import MAX_TOKENS, Body, StopText, list_of, refuse
from localrun.server.images import why_no_bare_image
from localrun.server.ollama.names import plain
from localrun.server.sampling import SamplingFields
from localrun.server.thinking import thinking_variables

Effort = Literal["low", "medium", "high", "max"]
FOREVER_S: Final = -1.0
# Whoever asks for more than thirty years means for ever.
_LONGEST_S: Final = 1e9
_SECONDS: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    # Go knows no days; Zed's documents promise them.
    "d": 86400.0,
}
_DURATION: Final = re.compile(
    r"(?P<sign>[+-]?)(?P<parts>(?:[0-9]{1,15}(?:\.[0-9]{0,9})?(?:ns|us|µs|μs|ms|s|m|h|d))+)\Z"
)
_PART: Final = re.compile(r"([0-9.]+)([a-zµμ]+)")
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,15}(?:\.[0-9]{0,9})?\Z")


def seconds_of(keep_alive: object) -> object:
    """How long to keep a model: a number of seconds, or a duration as Go writes it (``1h30m``).

    Negative is for ever.
    """
    if isinstance(keep_alive, str):
        keep_alive = _duration(keep_alive)
    if isinstance(keep_alive, bool) or not isinstance(keep_alive, int | float):
        return keep_alive
    return FOREVER_S if not 0 <= keep_alive <= _LONGEST_S else float(keep_alive)


def _duration(text: str) -> float:
    if _NUMBER.match(text):
        return float(text)
    found = _DURATION.match(text)
    if found is None:
        raise refuse("no duration such as 300, '5m', '1h30m' or -1")
    total = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(found["parts"]))
    return -total if found["sign"] == "-" and total else total


def whole(number: object) -> object:
    """Go's clients write whole numbers with a fraction of zero."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def format_of(value: object) -> object:
    """``json``, or a JSON schema. Clients send the empty string where they want none."""
    if value == "":
        return None
    if value is None or value == "json" or isinstance(value, dict):
        return value
    raise refuse("neither 'json' nor a JSON schema")


def think_of(value: object) -> object:
    """Whether to reason, or how much."""
    if value is None or isinstance(value, bool) or value in get_args(Effort):
        return value
    raise refuse(f"neither true nor false nor one of {', '.join(get_args(Effort))}")


def no_images(images: list[Any] | None) -> list[Any] | None:
    if images:
        raise refuse(why_no_bare_image(images[0]))
    return images


ModelName = Annotated[str, Field(min_length=1, max_length=4096)]
KeepAlive = Annotated[
    float | None, BeforeValidator(seconds_of, json_schema_input_type=float | str | None)
]
Format = Annotated[
    Literal["json"] | dict[str, Any] | None,
    BeforeValidator(format_of, json_schema_input_type=Literal["", "json"] | dict[str, Any] | None),
]
Images = Annotated[list[Any] | None, AfterValidator(no_images)]
Think = Annotated[
    bool | Effort | None, BeforeValidator(think_of, json_schema_input_type=bool | Effort | None)
]
Count = Annotated[int, BeforeValidator(whole, json_schema_input_type=float)]
# Editors send the marks of every model family there is: more than OpenAI's clients may.
Stops = Annotated[
    Annotated[list[StopText], Field(max_length=limits.MAX_STOPS)] | None,
    BeforeValidator(list_of, json_schema_input_type=str | list[str] | None),
]


def random_where_negative(seed: int | None) -> int | None:
    return None if seed == -1 else seed


def all_where_negative(top_k: int | None) -> int | None:
    return None if top_k is None else max(top_k, 0)


class Options(SamplingFields):
    """How to draw, and when to stop. None is the engine's default.

    Others of Ollama's say how a model is loaded (``num_gpu``, ``num_batch``, ``num_thread``, …):
    its plan decides that. ``mirostat`` and ``tfs_z``, which Ollama has given up, are ignored too.
    """

    seed: Annotated[
        Annotated[Count, Field(ge=-(2**63), le=2**63 - 1)] | None,
        AfterValidator(random_where_negative),
    ] = None
    top_k: Annotated[
        Annotated[Count, Field(ge=-1, le=MAX_TOKENS)] | None, AfterValidator(all_where_negative)
    ] = None
    repeat_last_n: Annotated[Count, Field(ge=-1, le=MAX_TOKENS)] | None = None
    num_ctx: Annotated[Count, Field(ge=0, le=MAX_TOKENS)] | None = None
    # -1: as many as come; -2: until the context is full, which is the same here.
    num_predict: Annotated[Count, Field(ge=-2, le=MAX_TOKENS)] | None = None
    stop: Stops = None

    @property
    def max_tokens(self) -> int | None:
        return self.num_predict if self.num_predict and self.num_predict > 0 else None


class ModelBody(Body):
    """A body that names a model. ``keep_alive``: how long it is kept after this request."""

    model: ModelName
    keep_alive: KeepAlive = None

    @property
    def model_id(self) -> str:
        """The model's name as it is known here."""
        return plain(self.model)


class GeneratingBody(ModelBody):
    """What ``/api/chat`` and ``/api/generate`` have in common. ``stream`` is true unless told."""

    stream: bool | None = None
    format: Format = None
    options: Options | None = None
    think: Think = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Count, Field(ge=0, le=limits.MAX_LOGPROBS)] | None = None

    @property
    def streams(self) -> bool:
        return self.stream is not False

    @property
    def alternatives(self) -> int | None:
        """How many tokens beside each are told with their chances; None tells none at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def variables(self) -> Mapping[str, Any]:
        """What ``think`` says to a template."""
        return thinking_variables(
            thinks=None if self.think is None else self.think is not False,
            effort=self.think if isinstance(self.think, str) else None,
        )
