"""Parameters of 30 tools as agents' harnesses and their servers describe them.

They hold what such schemas hold in practice: keywords that no grammar can enforce, formats that are
only notes, titles and defaults as code generators leave them, and limits of 65,536 characters.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def _tool(properties: Schema, required: list[str] | None = None, /, **more: Any) -> Schema:
    """An object's schema; ``required`` None is every property."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        **more,
    }


def _text(description: str = "", /, **more: Any) -> Schema:
    return {"type": "string", **({"description": description} if description else {}), **more}


def _optional(schema: Schema, title: str) -> Schema:
    """As pydantic writes ``T | None = None``."""
    return {"anyOf": [schema, {"type": "null"}], "default": None, "title": title}


_CLOSED = {"additionalProperties": False}
_DATE_TIME = _text(format="date-time")

AGENT_SCHEMAS: dict[str, Schema] = {
    "shell": _tool(
        {
            "command": {"type": "array", "items": _text(), "minItems": 1, "maxItems": 64},
            "workdir": _text("The directory to run the command in"),
            "timeout_ms": {"type": "number", "minimum": 1, "maximum": 600_000},
            "with_escalated_permissions": {"type": "boolean"},
        },
        ["command"],
        **_CLOSED,
    ),
    "bash": _tool(
        {
            "command": _text("The command to execute", maxLength=65_536),
            "description": _text("What it does, in 5 to 10 words", maxLength=200),
            "run_in_background": {"type": "boolean", "default": False},
        },
        ["command"],
        **{"$schema": "http://json-schema.org/draft-07/schema#"},
    ),
    "read_file": _tool(
        {
            "path": _text("An absolute path", pattern="^/"),
            "offset": {"type": "integer", "minimum": 0},
            "limit": {"type": "integer", "exclusiveMinimum": 0, "maximum": 2000},
        },
        ["path"],
    ),
    "write_file": _tool(
        {"path": _text(minLength=1, maxLength=4096), "content": _text(maxLength=65_536)}, **_CLOSED
    ),
    "edit_file": _tool(
        {
            "path": _text(),
            "edits": {
                "type": "array",
                "minItems": 1,
                "items": _tool(
                    {
                        "old_string": _text(maxLength=65_536),
                        "new_string": _text(maxLength=65_536),
                        "replace_all": {"type": "boolean", "default": False},
                    },
                    ["old_string", "new_string"],
                    **_CLOSED,
                ),
            },
        },
        **_CLOSED,
    ),
    "apply_patch": _tool(
        {
            "operations": {
                "type": "array",
                "items": {
                    "oneOf": [
                        _tool({"op": {"const": "add"}, "path": _text(), "content": _text()}),
                        _tool({"op": {"const": "delete"}, "path": _text()}),
                        _tool(
                            {
                                "op": {"const": "update"},
                                "path": _text(),
                                "move_to": _text(),
                                "hunks": {"type": "array", "items": {"$ref": "#/$defs/hunk"}},
                            },
                            ["op", "path", "hunks"],
                        ),
                    ],
                    "discriminator": {"propertyName": "op"},
                },
            }
        },
        **{
            "$defs": {
                "hunk": _tool(
                    {
                        "context": _text(),
                        "removed": {"type": "array", "items": _text()},
                        "added": {"type": "array", "items": _text()},
                    }
                )
            }
        },
    ),
    "glob": _tool(
        {
            "pattern": _text(),
            "path": _optional(_text(), "Path"),
            "respect_ignore": {"default": True},
        },
        ["pattern"],
    ),
    "grep": _tool(
        {
            "pattern": _text("A regular expression"),
            "glob": {"type": ["string", "null"]},
            "output_mode": {"enum": ["content", "files_with_matches", "count"]},
            "-A": {"type": "integer", "minimum": 0},
            "-i": {"type": "boolean"},
            "head_limit": {"type": "integer"},
        },
        ["pattern"],
        **_CLOSED,
    ),
    "todo_write": _tool(
        {
            "todos": {
                "type": "array",
                "maxItems": 50,
                "items": _tool(
                    {
                        "id": _text(pattern="^[a-z0-9-]{1,16}$"),
                        "content": _text(minLength=1),
                        "status": {
                            "type": "string",
                            "enum": ["pending", "in_progress", "completed"],
                        },
                        "priority": {"enum": [1, 2, 3, None]},
                    },
                    ["id", "content", "status"],
                ),
            }
        }
    ),
    "web_search": _tool(
        {
            "query": _text(minLength=2, maxLength=400),
            "allowed_domains": {
                "type": "array",
                "items": _text(format="hostname"),
                "uniqueItems": True,
            },
            "recency_days": {"type": "integer", "minimum": 1, "maximum": 3650},
            "country": _text(pattern="^[A-Z]{2}$"),
        },
        ["query"],
        **_CLOSED,
    ),
    "web_fetch": _tool(
        {
            "url": _text(format="uri"),
            "method": {"type": "string", "enum": ["GET", "POST", "HEAD"], "default": "GET"},
            "headers": {"type": "object", "additionalProperties": _text()},
            "body": _optional(_text(contentMediaType="application/json"), "Body"),
        },
        ["url"],
    ),
    "browser_navigate": _tool(
        {"url": _text(format="uri-reference"), "tab": {"type": "integer"}}, ["url"]
    ),
    "browser_act": _tool(
        {
            "action": {
                "anyOf": [
                    _tool(
                        {"kind": {"const": "click"}, "ref": _text(), "double": {"type": "boolean"}},
                        ["kind", "ref"],
                    ),
                    _tool({"kind": {"const": "type"}, "ref": _text(), "text": _text()}),
                    _tool(
                        {
                            "kind": {"const": "scroll"},
                            "dx": {"type": "number"},
                            "dy": {"type": "number", "multipleOf": 0.5},
                        }
                    ),
                    _tool({"kind": {"const": "key"}, "keys": {"type": "array", "items": _text()}}),
                ]
            },
            "reason": _text(maxLength=280),
        }
    ),
    "screenshot": _tool(
        {
            "region": {
                "type": "array",
                "prefixItems": [{"type": "integer", "minimum": 0, "maximum": 8192}] * 4,
                "items": False,
                "minItems": 4,
            },
            "full_page": {"type": "boolean"},
        },
        [],
    ),
    "calendar_create": _tool(
        {
            "title": _text(minLength=1, maxLength=256),
            "start": _DATE_TIME,
            "end": _DATE_TIME,
            "attendees": {
                "type": "array",
                "items": _tool(
                    {"email": _text(format="email"), "optional": {"type": "boolean"}}, ["email"]
                ),
            },
            "recurrence": _optional(
                _tool(
                    {
                        "every": {"enum": ["day", "week", "month"]},
                        "until": _text(format="date"),
                        "weekdays": {
                            "type": "array",
                            "items": {"type": "integer", "minimum": 0, "maximum": 6},
                            "maxItems": 7,
                        },
                    },
                    ["every"],
                ),
                "Recurrence",
            ),
            "reminder": _text(format="duration"),
        },
        ["title", "start", "end"],
    ),
    "send_mail": _tool(
        {
            "to": {"type": "array", "items": _text(format="email"), "minItems": 1},
            "subject": _text(maxLength=998),
            "body": _text(maxLength=65_536),
            "attachments": {
                "type": "array",
                "items": _tool(
                    {"name": _text(), "data": _text(contentEncoding="base64", maxLength=65_536)}
                ),
            },
        },
        ["to", "subject", "body"],
    ),
    "get_weather": _tool(
        {
            "location": _text("City and country"),
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            "latitude": {"type": "number", "minimum": -90, "maximum": 90},
            "longitude": {"type": "number", "minimum": -180, "exclusiveMaximum": 180},
        },
        ["location"],
    ),
    "sql_query": _tool(
        {
            "sql": _text(maxLength=65_536),
            "parameters": {
                "type": "array",
                "items": {"type": ["string", "number", "boolean", "null"]},
            },
            "read_only": {"const": True},
        },
        ["sql", "read_only"],
        **_CLOSED,
    ),
    "filter_rows": _tool(
        {"where": {"$ref": "#/$defs/Condition"}},
        **{
            "$defs": {
                "Condition": {
                    "anyOf": [
                        _tool(
                            {
                                "field": _text(),
                                "op": {"enum": ["=", "!=", "<", ">", "in"]},
                                "value": {
                                    "anyOf": [
                                        _text(),
                                        {"type": "number"},
                                        {"type": "array", "items": _text()},
                                    ]
                                },
                            },
                            **_CLOSED,
                        ),
                        _tool(
                            {"all": {"type": "array", "items": {"$ref": "#/$defs/Condition"}}},
                            **_CLOSED,
                        ),
                        _tool({"not": {"$ref": "#/$defs/Condition"}}, **_CLOSED),
                    ]
                }
            }
        },
    ),
    "render_tree": {
        "$ref": "#/definitions/Node",
        "definitions": {
            "Node": _tool(
                {
                    "tag": _text(pattern="^[a-z][a-z0-9]*$"),
                    "attributes": {
                        "type": "object",
                        "patternProperties": {"^data-[a-z]+$": _text()},
                        "additionalProperties": False,
                    },
                    "children": {"type": "array", "items": {"$ref": "#/definitions/Node"}},
                },
                ["tag"],
                **_CLOSED,
            )
        },
    },
    "create_issue": _tool(
        {
            "repository": _text(pattern="^[\\w.-]+/[\\w.-]+$"),
            "title": _text(),
            "body": _text(maxLength=65_536),
            "labels": {"type": "array", "items": _text(maxLength=50), "uniqueItems": True},
            "assignees": {"type": "array", "items": _text(), "maxItems": 10},
            "milestone": {"type": ["integer", "null"], "minimum": 1},
        },
        ["repository", "title"],
    ),
    "review_comment": _tool(
        {
            "path": _text(),
            "line": {"type": "integer", "minimum": 1},
            "side": {"enum": ["LEFT", "RIGHT"]},
            "severity": {"enum": ["nit", "warning", "error"]},
            "suggestion": _optional(_text(), "Suggestion"),
        },
        ["path", "line", "side", "severity"],
        **_CLOSED,
    ),
    "run_python": _tool(
        {
            "code": _text(maxLength=65_536),
            "requirements": {"type": "array", "items": _text(pattern="^[A-Za-z0-9_.=<>~-]+$")},
            "timeout": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 300},
        },
        ["code"],
    ),
    "memory_store": _tool(
        {
            "key": _text(format="uuid"),
            "value": True,
            "expires": _optional(_DATE_TIME, "Expires"),
            "tags": {
                "type": "object",
                "additionalProperties": {"type": "integer"},
                "maxProperties": 8,
            },
        },
        ["key", "value"],
    ),
    "delegate": _tool(
        {
            "agents": {
                "type": "array",
                "minItems": 1,
                "maxItems": 8,
                "items": _tool(
                    {
                        "role": {"enum": ["planner", "coder", "reviewer"]},
                        "brief": _text(minLength=20, maxLength=65_536),
                        "budget": _tool(
                            {
                                "tokens": {"type": "integer", "minimum": 0},
                                "minutes": {"type": "number", "exclusiveMinimum": 0},
                            },
                            [],
                            minProperties=1,
                        ),
                    },
                    ["role", "brief"],
                ),
            }
        }
    ),
    "final_answer": _tool(
        {
            "answer": _text(),
            "confidence": {"type": "number", "minimum": 0, "maximum": 1},
            "citations": {
                "type": "array",
                "items": _tool({"url": _text(format="uri"), "quote": _text(maxLength=500)}),
            },
        },
        **{"title": "FinalAnswer", **_CLOSED},
    ),
    "extract_invoice": _tool(
        {
            "number": _text(pattern="^INV-[0-9]{4,8}$"),
            "issued": _text(format="date"),
            "currency": {"enum": ["EUR", "USD", "GBP"]},
            "lines": {
                "type": "array",
                "items": _tool(
                    {
                        "description": _text(),
                        "quantity": {"type": "integer", "minimum": 1},
                        "price": {"type": "number", "minimum": 0, "multipleOf": 0.01},
                    }
                ),
            },
            "total": {"type": "number", "multipleOf": 0.01},
        },
        **_CLOSED,
    ),
    "classify": _tool(
        {
            "label": {"enum": [f"category/{number:03d}" for number in range(300)]},
            "rationale": _text(maxLength=1000),
        },
        **_CLOSED,
    ),
    "configure": {
        "allOf": [
            {"$ref": "#/$defs/Base"},
            _tool({"mode": {"enum": ["fast", "exact"]}}),
        ],
        "if": {"properties": {"mode": {"const": "fast"}}},
        "then": {"required": ["budget"]},
        "$defs": {
            "Base": _tool(
                {
                    "name": _text(minLength=1, maxLength=40),
                    "address": {"anyOf": [_text(format="ipv4"), _text(format="ipv6")]},
                    "port": {"type": "integer", "minimum": 1, "maximum": 65_535},
                },
                ["name"],
            )
        },
    },
    "any_json": {"type": "object"},
}
