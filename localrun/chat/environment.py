"""Knows no process and no limit of time: the sandbox in which a model's chat template is compiled.

Renders as ``apply_chat_template`` of transformers does, byte for byte
(https://huggingface.co/docs/transformers/chat_templating_writing): the same block trimming,
``tojson``, ``raise_exception``, ``strftime_now``, loop controls and ``{% generation %}``.
Only the render child imports this module (``render_child.py``), which bounds time and memory.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from typing import Any

# The render child imports jinja2 and nothing else: it is the reason this process exists.
from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from localrun.chat.render_frames import OUTPUT_BYTES_MAX, SOURCE_BYTES_MAX

INTEGER_BITS_MAX = 4096
_WIDE_FIELD = re.compile(r"%[^a-zA-Z%]*(?:\*|\d{5})")


class RaisedError(TemplateError):
    """The template itself refused the conversation through ``raise_exception``."""


class LimitError(TemplateError):
    """The template asked for more than a template may have."""


class _Generation(Extension):
    """``{% generation %}`` marks what the assistant wrote, for training; rendering sees through.

    The body is a call block, as in transformers: variables set in it stay in it.
    """

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it on the instance

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        text: str = caller()
        return text


class _PlainNamespace(Namespace):
    """``namespace(...)`` without names that begin with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:  # `self` may be a value's name
        self, *rest = args
        attributes = dict(*rest, **values)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


class _DictFactory:
    """``dict(...)`` without the type behind it."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox. Operators whose result can dwarf their operands are checked beforehand."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension]
        )
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["dict"] = _DictFactory()
        self.globals["namespace"] = _PlainNamespace
        self._compiled: tuple[str, Template] | None = None

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_operands(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """Render one conversation.

        Raises:
            RaisedError, LimitError: as their docstrings say.
            Exception: whatever else a template can make Python raise.
        """
        if len(source.encode("utf-8", "replace")) > SOURCE_BYTES_MAX:
            raise LimitError(f"the template is longer than {SOURCE_BYTES_MAX} bytes")
        # A conversation renders the same template again and again.
        if self._compiled is None or self._compiled[0] != source:
            self._compiled = (source, self.from_string(source))
        pieces: list[str] = []
        size = 0
        for piece in self._compiled[1].generate(variables):
            size += len(piece)
            if size > OUTPUT_BYTES_MAX:
                raise LimitError(f"the rendered text is longer than {OUTPUT_BYTES_MAX} bytes")
            pieces.append(piece)
        return "".join(pieces)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace holds no name like {name!r}")


def _raise_exception(message: object) -> None:
    raise RaisedError(str(message))


def _strftime_now(form: str) -> str:
    # The user's own clock and zone, as transformers has it.
    return datetime.datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _check_operands(operator: str, left: Any, right: Any) -> None:
    if operator == "%":
        if isinstance(left, str) and _WIDE_FIELD.search(left):
            raise LimitError("a format field wider than 9999 characters")
    elif isinstance(left, int) and isinstance(right, int):
        if _integer_bits(operator, left, right) > INTEGER_BITS_MAX:
            raise LimitError(f"an integer of more than {INTEGER_BITS_MAX} bits")
    elif _length(operator, left, right) > OUTPUT_BYTES_MAX:
        raise LimitError(f"a value longer than {OUTPUT_BYTES_MAX} elements")


def _integer_bits(operator: str, left: int, right: int) -> int:
    if operator == "**":
        return left.bit_length() * max(right, 0) if abs(left) > 1 else 1
    if operator == "*":
        return left.bit_length() + right.bit_length()
    return max(left.bit_length(), right.bit_length()) + 1


def _length(operator: str, left: Any, right: Any) -> int:
    sequences = (str, bytes, list, tuple)
    if operator == "+" and isinstance(left, sequences) and isinstance(right, sequences):
        return len(left) + len(right)
    if operator == "*" and isinstance(left, sequences) and isinstance(right, int):
        return len(left) * right
    if operator == "*" and isinstance(right, sequences) and isinstance(left, int):
        return len(right) * left
    return 0
