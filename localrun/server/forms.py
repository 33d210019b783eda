"""Knows no dialect: the fields that say what form an answer has, and the grammar they ask for.

https://platform.openai.com/docs/guides/structured-outputs, and what llama.cpp and vLLM have beside.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

from pydantic import Field, ValidationInfo, field_validator

from localrun.engine.request import Grammar
from localrun.server.fields import MAX_NAME_CHARS, GrammarText, GuidedChoices, Strict, refuse

# What may say of what form the answer is, in the order of the class: one of them at most.
_FORMS: Final = ("response_format", "grammar", "json_schema", "guided_json", "guided_regex")


class JsonSchema(Strict):
    """``strict`` false is held as if it were true: what is asked for is always what comes."""

    name: str = Field(default="", max_length=MAX_NAME_CHARS)
    strict: bool | None = None
    json_schema: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Strict):
    """``schema`` beside ``json_object`` is llama.cpp's."""

    type: Literal["text", "json_object", "json_schema"]
    # First of the two: the other's validator looks at it.
    object_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    json_schema: JsonSchema | None = Field(default=None, validate_default=True)

    @field_validator("json_schema")
    @classmethod
    def _given(cls, value: JsonSchema | None, info: ValidationInfo) -> JsonSchema | None:
        if value is None and info.data.get("type") == "json_schema":
            raise refuse("missing: the schema that the answer is to have")
        return value


class FormFields(Strict):
    """Part of a request's body."""

    response_format: ResponseFormat | None = None

    # llama.cpp's.
    grammar: GrammarText | None = None
    json_schema: dict[str, Any] | None = None

    # vLLM's: https://docs.vllm.ai/en/latest/features/structured_outputs.html
    guided_json: dict[str, Any] | None = None
    guided_regex: GrammarText | None = None
    guided_choice: GuidedChoices | None = None

    @field_validator("grammar", "json_schema", "guided_json", "guided_regex", "guided_choice")
    @classmethod
    def _one_form(cls, value: object, info: ValidationInfo) -> object:
        # The fields before this one are what is known yet.
        before = [name for name in _FORMS if _held(info.data.get(name))]
        if value is not None and before:
            raise refuse(f"the answer has its form by {before[0]} already")
        return value


def _held(value: object) -> bool:
    return value is not None and not (isinstance(value, ResponseFormat) and value.type == "text")


def schema_grammar(schema: dict[str, Any] | None) -> Grammar:
    """Of answers that a JSON schema holds for; None holds for any object."""
    return Grammar("json_schema", json.dumps({"type": "object"} if schema is None else schema))


def grammar_of(request: FormFields) -> tuple[str, Grammar] | None:
    """The one form that an answer is asked in, and the field that asks it."""
    form = request.response_format
    if form is not None and form.type == "json_schema" and form.json_schema is not None:
        return "response_format", schema_grammar(form.json_schema.json_schema)
    if form is not None and form.type == "json_object":
        return "response_format", schema_grammar(form.object_schema)
    if request.json_schema is not None:
        return "json_schema", schema_grammar(request.json_schema)
    if request.guided_json is not None:
        return "guided_json", schema_grammar(request.guided_json)
    if request.grammar is not None:
        return "grammar", Grammar("gbnf", request.grammar)
    if request.guided_regex is not None:
        return "guided_regex", Grammar("regex", request.guided_regex)
    if request.guided_choice is not None:
        return "guided_choice", Grammar("choice", json.dumps(request.guided_choice))
    return None
