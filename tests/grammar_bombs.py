"""Grammars that are small to send and, compiled without limits, costly: row N10 of the threats."""

from __future__ import annotations

import json

from localrun.engine.request import Grammar

MANY = 60_000
HUGE = 2**64 - 1


def schema(value: object) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def _doubling(levels: int) -> dict[str, object]:
    """Each definition has the one below twice: 2^levels once written out."""
    definitions: dict[str, object] = {"d0": {"type": "string", "maxLength": 3}}
    for level in range(1, levels + 1):
        below = {"$ref": f"#/$defs/d{level - 1}"}
        definitions[f"d{level}"] = {
            "allOf": [
                {"type": "object", "properties": {"a": below}, "required": ["a"]},
                {"type": "object", "properties": {"b": below}, "required": ["b"]},
            ]
        }
    return {"$ref": f"#/$defs/d{levels}", "$defs": definitions}


def _fan_out(groups: int, options: int) -> dict[str, object]:
    """One of ``options`` in each of ``groups``: options^groups ways to choose."""
    return {
        "allOf": [
            {
                "anyOf": [
                    {"type": "object", "properties": {f"p{group}_{option}": {"type": "string"}}}
                    for option in range(options)
                ]
            }
            for group in range(groups)
        ]
    }


def _nested_arrays(depth: int) -> str:
    return '{"type":"array","items":' * depth + "{}" + "}" * depth


def _gbnf_doubling(levels: int) -> str:
    rules = [f"r{level} ::= r{level - 1} r{level - 1}" for level in range(1, levels + 1)]
    return "\n".join([f"root ::= r{levels}", 'r0 ::= "a" | "b"', *rules])


BOMBS: dict[str, Grammar] = {
    "60k parentheses": Grammar("gbnf", "root ::= " + "(" * MANY + '"a"' + ")" * MANY),
    "60k parentheses, Lark": Grammar("lark", "start: " + "(" * MANY + '"a"' + ")" * MANY),
    "60k parentheses, regex": Grammar("regex", "(" * MANY + "a" + ")" * MANY),
    "a rule that is itself": Grammar("gbnf", "root ::= root"),
    "stars of stars": Grammar("gbnf", 'root ::= ("a"*)*'),
    "left recursion": Grammar("gbnf", 'root ::= root root root "a" | root | "a" | ""'),
    "a $ref cycle": schema(
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    ),
    "items by the 2^64": schema(
        {"type": "array", "items": {"type": "string"}, "minItems": HUGE, "maxItems": HUGE}
    ),
    "a length of 2^64": schema({"type": "string", "minLength": HUGE, "maxLength": HUGE}),
    "properties by the 2^64": schema({"type": "object", "minProperties": HUGE}),
    "(a+)+$": Grammar("regex", "(a+)+$"),
    "repetition of repetition": Grammar("regex", r"\d{9999}{9999}"),
    "repetition of repetition, GBNF": Grammar("gbnf", "root ::= " + "(" * 9 + '"a"' + "){99}" * 9),
    "a pattern of 60k (": schema({"type": "string", "pattern": "(" * MANY}),
    "an open pattern in a key": schema(
        {"type": "object", "patternProperties": {f"(a|b)*a(a|b){{{n}}}": {} for n in range(99)}}
    ),
    "anyOf fans out": schema(_fan_out(12, 8)),
    "nesting": Grammar("json_schema", _nested_arrays(20_000)),
    "60k values": schema({"enum": [f"value {n}" for n in range(60_000)]}),
    "definitions that double": schema(_doubling(40)),
    "rules that double": Grammar("gbnf", _gbnf_doubling(60)),
    "an intersection without a text": Grammar(
        "lark", "start: A\nA: /.*a.{16}.*/ & /.*b.{17}.*/ & ~/(.*c.{15}.*)/"
    ),
    "a remainder of a million": schema({"type": "integer", "multipleOf": 999_983}),
    "20k optional properties": schema(
        {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(20_000)}}
    ),
    "100k optional parts": Grammar("gbnf", "root ::= " + '"a"? ' * 100_000 + "root"),
}
