"""Knows no bytes: the items that an answer is made of, while its events come.

https://platform.openai.com/docs/api-reference/responses/object#responses-object-output
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, NamedTuple

from localrun.chat.messages import CallDelta, ReplyEvent
from localrun.engine.request import TokenLogprob
from localrun.server.calls import arguments_of
from localrun.server.logprobs import told_tokens
from localrun.server.openai.responses.asked import sealed
from localrun.server.openai.responses.freeform import FreeformInput
from localrun.server.openai.responses.tools import Tool, Toolbox

Status = Literal["in_progress", "completed", "incomplete"]
Told = tuple[str, dict[str, Any]]
"""An event's type, and its fields beside those that name the item."""


class Item(ABC):
    """One item. ``delta`` is the event that tells more of its text, ``place`` where it belongs."""

    prefix: ClassVar[str]
    delta: ClassVar[str | None] = None
    place: ClassVar[dict[str, int]] = {}

    def __init__(self, index: int) -> None:
        self.index = index
        self.id = f"{self.prefix}_{secrets.token_hex(12)}"
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def more(self, text: str) -> str:
        """Take some of the answer; what there is to tell of it."""
        self._texts.append(text)
        return text

    def rest(self, status: Status) -> str:
        """What there is to tell yet, at the item's end."""
        return ""

    def opening(self) -> Sequence[Told]:
        """What is told after the item is there."""
        return ()

    def closing(self) -> Sequence[Told]:
        """What is told before the item is done."""
        return ()

    @abstractmethod
    def document(self, status: Status) -> dict[str, Any]:
        """The item; without any text while it is in progress."""


class Thought(Item):
    """What the model thinks, as text of its own."""

    prefix = "rs"
    delta = "response.reasoning_text.delta"
    place: ClassVar[dict[str, int]] = {"content_index": 0}

    def __init__(self, index: int, *, seal: bool) -> None:
        super().__init__(index)
        self._seal = seal

    def opening(self) -> Sequence[Told]:
        return [("response.content_part.added", {**self.place, "part": self._part("")})]

    def closing(self) -> Sequence[Told]:
        return [
            ("response.reasoning_text.done", {**self.place, "text": self.text}),
            ("response.content_part.done", {**self.place, "part": self._part(self.text)}),
        ]

    def document(self, status: Status) -> dict[str, Any]:
        # OpenAI: no parts before they are told of.
        parts = [] if status == "in_progress" else [self._part(self.text)]
        return self._item(status) | {"summary": [], "content": parts}

    def _item(self, status: Status) -> dict[str, Any]:
        kept = sealed(self.text) if self._seal and status != "in_progress" else None
        return {"id": self.id, "type": "reasoning", "status": status, "encrypted_content": kept}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": text}


class Summary(Thought):
    """What the model thinks, to clients that show summaries: they ask for one."""

    delta = "response.reasoning_summary_text.delta"
    place: ClassVar[dict[str, int]] = {"summary_index": 0}

    def opening(self) -> Sequence[Told]:
        return [("response.reasoning_summary_part.added", {**self.place, "part": self._part("")})]

    def closing(self) -> Sequence[Told]:
        return [
            ("response.reasoning_summary_text.done", {**self.place, "text": self.text}),
            ("response.reasoning_summary_part.done", {**self.place, "part": self._part(self.text)}),
        ]

    def document(self, status: Status) -> dict[str, Any]:
        parts = [] if status == "in_progress" else [self._part(self.text)]
        return self._item(status) | {"summary": parts}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "summary_text", "text": text}


class Said(Item):
    """A message."""

    prefix = "msg"
    delta = "response.output_text.delta"
    place: ClassVar[dict[str, int]] = {"content_index": 0}

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.logprobs: list[TokenLogprob] = []

    def opening(self) -> Sequence[Told]:
        return [("response.content_part.added", {**self.place, "part": self._part("", ())})]

    def closing(self) -> Sequence[Told]:
        text = {**self.place, "text": self.text, "logprobs": told_tokens(self.logprobs)}
        return [
            ("response.output_text.done", text),
            ("response.content_part.done", {**self.place, "part": self._whole()}),
        ]

    def document(self, status: Status) -> dict[str, Any]:
        parts = [] if status == "in_progress" else [self._whole()]
        return {
            "id": self.id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": parts,
        }

    def _whole(self) -> dict[str, Any]:
        return self._part(self.text, self.logprobs)

    def _part(self, text: str, given: Sequence[TokenLogprob]) -> dict[str, Any]:
        told = {"type": "output_text", "text": text}
        return told | {"annotations": [], "logprobs": told_tokens(given)}


class Call(Item):
    """A call of a function."""

    prefix = "fc"
    delta: ClassVar[str | None] = "response.function_call_arguments.delta"

    def __init__(self, index: int, call: CallDelta, tool: Tool | None) -> None:
        super().__init__(index)
        self._call_id = call.id
        self._name = call.name if tool is None else tool.name
        self._namespace = None if tool is None else tool.namespace

    def rest(self, status: Status) -> str:
        return self.more("{}") if status == "completed" and not self.text else ""

    def closing(self) -> Sequence[Told]:
        return [("response.function_call_arguments.done", {"arguments": self.text})]

    def document(self, status: Status) -> dict[str, Any]:
        arguments = "" if status == "in_progress" else self.text
        return self._item("function_call", status) | {"arguments": arguments}

    def _item(self, kind: str, status: Status) -> dict[str, Any]:
        named = {"name": self._name}
        if self._namespace is not None:
            named["namespace"] = self._namespace
        head = {"id": self.id, "type": kind, "status": status, "call_id": self._call_id}
        return head | named


class FreeCall(Call):
    """A call of a custom tool, whose input is told without its quotes."""

    prefix = "ctc"
    delta = "response.custom_tool_call_input.delta"

    def __init__(self, index: int, call: CallDelta, tool: Tool | None) -> None:
        super().__init__(index, call, tool)
        self._reader = FreeformInput()

    def more(self, text: str) -> str:
        return super().more(self._reader.feed(text))

    def rest(self, status: Status) -> str:
        return super().more(self._reader.finish())

    def closing(self) -> Sequence[Told]:
        return [("response.custom_tool_call_input.done", {"input": self.text})]

    def document(self, status: Status) -> dict[str, Any]:
        told = "" if status == "in_progress" else self.text
        return self._item("custom_tool_call", status) | {"input": told}


class ShellCall(Call):
    """A call of the client's shell, told whole."""

    prefix = "lsh"
    delta = None

    def closing(self) -> Sequence[Told]:
        return ()

    def document(self, status: Status) -> dict[str, Any]:
        # One that was cut is told as incomplete.
        asked = arguments_of(self.text) or {}
        command = asked.get("command")
        action: dict[str, Any] = {
            "type": "exec",
            "command": [str(word) for word in command] if isinstance(command, list) else [],
            "env": {},
            "working_directory": asked.get("working_directory"),
            "timeout_ms": asked.get("timeout_ms"),
        }
        head = {"id": self.id, "type": "local_shell_call", "status": status}
        return head | {"call_id": self._call_id, "action": action}


class SearchCall(Call):
    """A search for tools that the client does, told whole."""

    prefix = "tsc"
    delta = None

    def closing(self) -> Sequence[Told]:
        return ()

    def document(self, status: Status) -> dict[str, Any]:
        head = {"id": self.id, "type": "tool_search_call", "status": status}
        arguments = arguments_of(self.text) or {}
        asked = {"call_id": self._call_id, "execution": "client", "arguments": arguments}
        return head | asked


_CALLS: Final[dict[str, type[Call]]] = {
    "function": Call,
    "custom": FreeCall,
    "local_shell": ShellCall,
    "tool_search": SearchCall,
}


class Step(NamedTuple):
    """What happened to an item: it was opened, has more text, or was closed with a status."""

    item: Item
    kind: Literal["opened", "more", "closed"]
    text: str = ""
    status: Status = "completed"
    logprobs: Sequence[TokenLogprob] = ()


@dataclass
class Output:
    """The items so far; at most one of them, the last, is open."""

    tools: Toolbox
    summary: bool = False
    seal: bool = False
    items: list[Item] = field(default_factory=list)
    done: list[dict[str, Any]] = field(default_factory=list)
    open: Item | None = None
    _call: int | None = None

    def goes_on(self, event: ReplyEvent) -> Item | None:
        """The open item, where all that an event does is to add to its text: nearly always."""
        if event.call is not None or event.logprobs or event.finish is not None:
            return None
        if event.text:
            return self.open if not event.reasoning and isinstance(self.open, Said) else None
        return self.open if event.reasoning and isinstance(self.open, Thought) else None

    def take(self, event: ReplyEvent) -> list[Step]:
        steps: list[Step] = []
        if event.reasoning:
            thinks = Summary if self.summary else Thought
            if not isinstance(self.open, thinks):
                steps += self._opened(thinks(len(self.items), seal=self.seal))
            steps += self._more(event.reasoning)
        if event.text:
            if not isinstance(self.open, Said):
                steps += self._opened(Said(len(self.items)))
            steps += self._more(event.text, event.logprobs)
        elif isinstance(self.open, Said) and not event.reasoning and event.call is None:
            # A token that has no text, as the one that ends it: told with the whole.
            self.open.logprobs += event.logprobs
        if event.call is not None:
            if event.call.index != self._call:
                steps += self._opened(self._called(event.call))
                self._call = event.call.index
            steps += self._more(event.call.arguments)
        return steps

    def close(self, status: Status) -> list[Step]:
        """The end of the open item."""
        item = self.open
        if item is None:
            return []
        steps = self._told(item, item.rest(status), ())
        self.open, self._call = None, None
        self.done.append(item.document(status))
        return [*steps, Step(item, "closed", status=status)]

    @property
    def thought_only(self) -> bool:
        return bool(self.items) and all(isinstance(item, Thought) for item in self.items)

    def _called(self, call: CallDelta) -> Call:
        tool = self.tools.by_name.get(call.name)
        kind = "function" if tool is None else tool.kind
        return _CALLS[kind](len(self.items), call, tool)

    def _opened(self, item: Item) -> list[Step]:
        steps = self.close("completed")
        self.open = item
        self.items.append(item)
        return [*steps, Step(item, "opened")]

    def _more(self, text: str, given: Sequence[TokenLogprob] = ()) -> list[Step]:
        assert self.open is not None
        if given and isinstance(self.open, Said):
            self.open.logprobs += given
        return self._told(self.open, self.open.more(text), given)

    def _told(self, item: Item, text: str, given: Sequence[TokenLogprob]) -> list[Step]:
        if not text or item.delta is None:
            return []
        return [Step(item, "more", text, logprobs=given)]
