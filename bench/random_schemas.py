"""JSON schemas made from a seed, and whether a text is an instance of one.

Every keyword here is one that llguidance enforces, and every string and list has an end, so that a
text that follows the schema has one.
"""

from __future__ import annotations

import json
import random
import string
from decimal import Decimal
from typing import Any

from jsonschema import Draft202012Validator

Schema = dict[str, Any]

LEVELS = 3
_UNENFORCED = ("if", "then", "uniqueItems", "minProperties")
_FORMATS = ("date", "date-time", "time", "email", "ipv4", "uuid", "hostname")
_PATTERNS = (
    "^[a-z]{1,8}$",
    "^[A-Z][a-z]{0,6}$",
    "^(yes|no|maybe)$",
    "^[0-9]{2}-[0-9]{3}$",
    "^x+y?$",
)


def random_schema(seed: int, depth: int = 3) -> Schema:
    """An object's schema, at most ``depth`` objects and lists deep; the same for the same seed."""
    return _Maker(random.Random(seed)).object(depth)


class _Maker:
    def __init__(self, source: random.Random) -> None:
        self._random = source

    def value(self, depth: int) -> Schema:
        makers = [self.string, self.number, self.integer, self.choice, self.simple]
        if depth > 0 and self._random.random() < 0.5:
            return self._random.choice([self.object, self.array, self.union])(depth - 1)
        return self._random.choice(makers)()

    def object(self, depth: int) -> Schema:
        names = {self._name() for _ in range(self._random.randint(1, 5))}
        properties = {name: self.value(depth) for name in sorted(names)}
        required = [name for name in properties if self._random.random() < 0.7]
        made = {"type": "object", "properties": properties, "required": required}
        return {**made, "additionalProperties": False}

    def array(self, depth: int) -> Schema:
        least = self._random.randint(0, 2)
        most = least + self._random.randint(0, 3)
        return {"type": "array", "items": self.value(depth), "minItems": least, "maxItems": most}

    def union(self, depth: int) -> Schema:
        return {"anyOf": [self.value(depth) for _ in range(self._random.randint(2, 3))]}

    def string(self) -> Schema:
        kind = self._random.random()
        if kind < 0.2:
            return {"type": "string", "format": self._random.choice(_FORMATS), "maxLength": 40}
        if kind < 0.4:
            return {"type": "string", "pattern": self._random.choice(_PATTERNS), "maxLength": 12}
        least = self._random.randint(0, 3)
        return {
            "type": "string",
            "minLength": least,
            "maxLength": least + self._random.randint(0, 12),
        }

    def integer(self) -> Schema:
        low = self._random.randint(-1000, 1000)
        made: Schema = {
            "type": "integer",
            "minimum": low,
            "maximum": low + self._random.randint(0, 5000),
        }
        if made["maximum"] - low > 20 and self._random.random() < 0.2:
            made["multipleOf"] = self._random.choice([2, 5, 10])
        return made

    def number(self) -> Schema:
        low = self._random.randint(-50, 50)
        high = low + self._random.randint(1, 99)
        # A fraction has no other end.
        return {"type": "number", "minimum": low, "maximum": high, "multipleOf": 0.01}

    def choice(self) -> Schema:
        options: list[Any] = [self._name() for _ in range(self._random.randint(1, 4))]
        if self._random.random() < 0.3:
            options += [self._random.randint(0, 99), None, True]
        return {"enum": options}

    def simple(self) -> Schema:
        return self._random.choice(
            [
                {"type": "boolean"},
                {"type": "null"},
                {"type": ["boolean", "null"]},
                {"const": {self._name(): [1, "é\n"]}},
            ]
        )

    def _name(self) -> str:
        letters = string.ascii_lowercase + '_- äß"\\'
        return "".join(self._random.choices(letters, k=self._random.randint(1, 8)))


def bounded(schema: Any, *, closed: bool = True) -> Any:
    """The schema with an end for what it leaves open, as small models rarely find one: strings of
    40 characters, lists of 2, integers below 1,000, 2 decimals, no properties but the named (where
    an ``allOf`` does not bring others), definitions within themselves ``LEVELS`` deep. Without the
    keywords that no mask enforces."""
    if schema is True:
        return {"type": "boolean"}
    if not isinstance(schema, dict):
        return schema
    for place in ("$defs", "definitions"):
        if place in schema:
            schema = _unrolled(schema, place)
    closed = closed and "allOf" not in schema
    made = {
        key: _bounded_part(key, value, closed)
        for key, value in schema.items()
        if key not in _UNENFORCED
    }
    kinds = schema.get("type", ())
    if "string" in kinds and not {"enum", "const"} & schema.keys():
        made["maxLength"] = max(schema.get("minLength", 0), min(schema.get("maxLength", 40), 40))
    if "array" in kinds and "prefixItems" not in schema:
        made["maxItems"] = max(schema.get("minItems", 0), min(schema.get("maxItems", 2), 2))
    if "integer" in kinds or "number" in kinds:
        made = {"minimum": 0, "maximum": 999, **made}
    if "number" in kinds:
        made = {"multipleOf": 0.01, **made}
    if "object" in kinds and "properties" in schema:
        made = {"additionalProperties": False, **made} if closed else made
    elif "object" in kinds:
        made = {"additionalProperties": {"type": "boolean"}, "maxProperties": 2, **made}
    return made


def _unrolled(schema: Schema, place: str) -> Schema:
    """Each definition once a level, where it refers to those of the next; null follows the last."""
    levels = {
        f"{name}-{level}": _referring(definition, level + 1)
        for name, definition in schema[place].items()
        for level in range(LEVELS)
    }
    return {**_referring({key: schema[key] for key in schema if key != place}, 0), place: levels}


def _referring(part: Any, level: int) -> Any:
    if isinstance(part, list):
        return [_referring(item, level) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return {"$ref": f"{part['$ref']}-{level}"} if level < LEVELS else {"type": "null"}
    return {key: _referring(value, level) for key, value in part.items()}


def _bounded_part(key: str, value: Any, closed: bool) -> Any:
    if key in ("properties", "patternProperties", "$defs", "definitions"):
        return {name: bounded(part, closed=closed) for name, part in value.items()}
    if key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        return [bounded(part, closed=closed) for part in value]
    if key in ("items", "additionalProperties"):
        return bounded(value, closed=closed)
    return value


def problem(text: str, schema: Schema) -> str | None:
    """Why ``text`` is no instance of ``schema``; None where it is. Formats are not looked at."""
    try:
        # Decimals, because 0.07 is no multiple of 0.01 in binary.
        instance = json.loads(text, parse_float=Decimal)
    except ValueError as error:
        return f"not JSON: {error}: {text[:200]!r}"
    exact = json.loads(json.dumps(schema), parse_float=Decimal)
    found = next(Draft202012Validator(exact).iter_errors(instance), None)
    return None if found is None else f"{found.message[:200]} ({found.json_path})"
