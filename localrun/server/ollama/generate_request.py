"""Knows no engine: what a client of ``POST /api/generate`` may send, and its limits.

https://docs.ollama.com/api/generate
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from localrun.server.fields import MAX_TOKENS, refuse
from localrun.server.ollama.fields import GeneratingBody, Images


def no_template(template: str | None) -> str | None:
    if template:
        raise refuse("the model's own is used: send raw true and a whole prompt for another")
    return template


class GenerateRequest(GeneratingBody):
    """The body of ``POST /api/generate``. Without a prompt the model is loaded, or unloaded.

    A ``suffix`` that is not empty asks for what stands between; ``raw`` sends the prompt as it is.
    """

    prompt: str | None = None
    suffix: str | None = None
    # Before those that do not go with it: their validators look at it.
    raw: bool | None = None
    system: str | None = None
    template: Annotated[str | None, AfterValidator(no_template)] = None
    context: list[Annotated[int, Field(ge=0, le=MAX_TOKENS)]] | None = None
    images: Images = None

    @field_validator("system", "context")
    @classmethod
    def _with_template(cls, value: object, info: ValidationInfo) -> object:
        if value and info.data.get("raw"):
            raise refuse("raw mode takes the prompt as it is, without it")
        if value and info.data.get("suffix"):
            raise refuse("a text between prompt and suffix is filled in without it")
        return value
