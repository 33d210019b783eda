"""Which models there are, what is known of each, their vectors, and what only the owner may do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from localrun.chat.messages import CallDelta, Gap, Prompt, ReplyEvent, ToolCall
from localrun.errors import ContextLengthError, HeaderError
from localrun.server.app import create_app
from localrun.server.models import LoadedModel, ModelCard, ModelFacts
from localrun.server.ollama.models import size_of
from tests.fake_chat import FACTS, FakeChat, FakeModels, ending
from tests.unit.test_server_ollama import client_of, lines_of

CLIENTS = Path(__file__).parent.parent / "clients"
DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "134M",
    "quantization_level": "Q4_K",
}


async def get(path: str, models: FakeModels | None = None) -> Any:
    async with client_of(create_app(models or FakeModels(fake=FakeChat()))) as client:
        response = await client.get(path)
        assert response.status_code == 200, response.text
        return response.json()


async def post(path: str, models: FakeModels | None = None, **body: Any) -> httpx2.Response:
    async with client_of(create_app(models or FakeModels(fake=FakeChat()))) as client:
        return await client.post(path, json=body)


async def test_the_port_says_that_it_runs() -> None:
    async with client_of(create_app(FakeModels())) as client:
        told, asked = await client.get("/"), await client.head("/")

    assert (told.status_code, told.text) == (200, "Ollama is running")
    assert (asked.status_code, asked.text) == (200, "")


async def test_models_are_listed_by_a_name_with_a_tag() -> None:
    models = FakeModels(**{"fake": FakeChat(), "hf:org/repo:Q8_0": FakeChat()})

    document = await get("/api/tags", models)

    assert document["models"][0] == {
        "name": "fake:latest",
        "model": "fake:latest",
        "modified_at": "2023-11-14T22:13:20Z",
        "size": 98,
        "digest": "0" * 64,
        "details": DETAILS,
    }
    assert document["models"][1]["name"] == "hf:org/repo:Q8_0"


async def test_a_damaged_model_hides_no_other() -> None:
    class Damaged(FakeModels):
        def facts(self, name: str) -> ModelFacts:
            if name == "bad":
                raise HeaderError("tensor_count", 8, "is absurd")
            return super().facts(name)

        def names(self) -> Sequence[ModelCard]:
            return [ModelCard("bad", 0), ModelCard("fake", 0)]

    bad, fake = (await get("/api/tags", Damaged(fake=FakeChat())))["models"]

    assert bad["details"]["format"] == ""
    assert len(bad["digest"]) == 64
    # Ours had no size on its card.
    assert fake["size"] == FACTS.bytes


async def test_what_is_loaded_says_how_much_it_holds_and_for_how_long() -> None:
    class Loaded(FakeModels):
        def loaded(self) -> Sequence[LoadedModel]:
            held = {"vram:0": 5, "ram": 2}
            return [
                LoadedModel("fake", 4096, held, 0, 300.0, 60.0),
                LoadedModel("fake", 100, {"unified": 7}, 1, None, None),
            ]

    before = datetime.now(UTC)
    soon, never = (await get("/api/ps", Loaded(fake=FakeChat())))["models"]

    until = datetime.fromisoformat(soon.pop("expires_at"))
    assert timedelta(seconds=59) < until - before < timedelta(seconds=90)
    assert soon == {
        "name": "fake:latest",
        "model": "fake:latest",
        "digest": "0" * 64,
        "details": DETAILS,
        "size": 7,
        "size_vram": 5,
        "context_length": 4096,
    }
    assert (never["size_vram"], never["expires_at"][:4]) == (7, "9999")


class Unloaded(FakeModels):
    """Of a model that only its header is known of."""

    told = FACTS

    def facts(self, name: str) -> ModelFacts:
        return replace(self.told, id=name)

    def loaded(self) -> Sequence[LoadedModel]:
        return []


@pytest.mark.parametrize("field", ["model", "name"])
async def test_a_model_is_shown_by_its_header(field: str) -> None:
    response = await post("/api/show", Unloaded(), **{field: "fake:latest", "verbose": True})

    assert response.json() == {
        "license": "",
        "modelfile": "FROM fake\n",
        "parameters": "",
        "template": "{{- /* .Prompt and .Suffix: filled in by tokens of the model's own */ -}}\n"
        "{{ messages }}{{ tools }}",
        "details": DETAILS,
        "model_info": {
            "general.basename": "fake",
            "general.architecture": "llama",
            "llama.context_length": 8192,
        },
        "capabilities": ["completion", "tools", "insert"],
    }


async def test_a_loaded_model_shows_the_context_that_it_has() -> None:
    document = (await post("/api/show", model="fake")).json()

    assert document["parameters"] == "num_ctx 100"
    assert document["model_info"]["llama.context_length"] == 100


async def test_a_template_speaks_of_a_suffix_only_where_gaps_are_filled() -> None:
    models = Unloaded()
    models.told = replace(FACTS, capabilities=frozenset({"completion"}), licence="MIT")

    document = (await post("/api/show", models, model="x")).json()

    assert ".Suffix" not in document["template"]
    assert document["license"] == "MIT"
    assert document["model_info"]["general.basename"] == "x"


def test_sizes_are_told_as_people_tell_them() -> None:
    sizes = (22_700_000, 134_515_008, 999_400_000, 999_600_000, 7_615_616_512, 671e9, 5000)

    assert [size_of(int(size)) for size in sizes] == [
        "23M",
        "135M",
        "999M",
        "1B",
        "7.6B",
        "671B",
        "5K",
    ]


async def test_texts_become_vectors() -> None:
    chat = FakeChat()
    models = FakeModels(fake=chat)

    several = (
        await post(
            "/api/embed", models, model="fake", input=["ab", "dd"], dimensions=2, truncate=False
        )
    ).json()
    one = (await post("/api/embed", models, model="fake:latest", input="abc", keep_alive=1)).json()
    older = (await post("/api/embeddings", models, model="fake", prompt="cc")).json()

    assert several.pop("total_duration") >= several.pop("load_duration")
    assert several == {"model": "fake", "embeddings": [[1, 1], [0, 0]], "prompt_eval_count": 4}
    assert one["embeddings"] == [[1, 1, 1, 0]]
    assert older == {"embedding": [0, 0, 2, 0]}
    assert [(dimensions, cut) for _, dimensions, cut in chat.embedded] == [
        (2, False),
        (None, True),
        (None, True),
    ]
    assert [keep for _, keep in models.kept] == [None, 1, None]


@pytest.mark.parametrize("given", ["", []])
async def test_no_text_loads_the_model_and_makes_no_vector(given: object) -> None:
    models = FakeModels(fake=FakeChat())

    vectors = (await post("/api/embed", models, model="fake", input=given)).json()
    vector = (await post("/api/embeddings", models, model="fake", prompt="")).json()

    assert vectors["embeddings"] == vector["embedding"] == []
    assert len(models.kept) == 2


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no model is shown": ("/api/show", {}, "model"),
    "a model that is a number": ("/api/show", {"model": 1}, "model"),
    "an empty name": ("/api/show", {"model": "", "name": ""}, "model"),
    "no input": ("/api/embed", {"model": "fake"}, "input"),
    "an input that is a number": ("/api/embed", {"model": "fake", "input": 1}, "input"),
    "a text that is a number": ("/api/embed", {"model": "fake", "input": ["a", 1]}, "input[1]"),
    "2049 texts": ("/api/embed", {"model": "fake", "input": ["a"] * 2049}, "input"),
    "no dimensions": ("/api/embed", {"model": "fake", "input": "a", "dimensions": 0}, "dimensions"),
    "truncate a word": (
        "/api/embed",
        {"model": "fake", "input": "a", "truncate": "no"},
        "truncate",
    ),
    "a prompt that is a list": ("/api/embeddings", {"model": "fake", "prompt": ["a"]}, "prompt"),
    "no model to pull": ("/api/pull", {"stream": False}, "model"),
    "a pull of a number": ("/api/pull", {"name": 7}, "name"),
}


@pytest.mark.parametrize(("path", "body", "name"), BAD.values(), ids=BAD.keys())
async def test_what_cannot_be_meant_is_refused_by_name(
    path: str, body: dict[str, Any], name: str
) -> None:
    response = await post(path, **body)

    assert response.status_code == 400, response.text
    assert list(response.json()) == ["error"]
    assert response.json()["error"].startswith(f"{name}: "), response.text


async def test_a_text_that_does_not_fit_is_refused_with_both_numbers() -> None:
    models = FakeModels(fake=FakeChat(error=ContextLengthError(600, 512)))

    response = await post("/api/embed", models, model="fake", input="long", truncate=False)

    assert response.status_code == 400
    assert "600 tokens, the context holds 512" in response.json()["error"]


OWNERS = {
    "delete": ("DELETE", "/api/delete", "localrun rm"),
    "copy": ("POST", "/api/copy", "localrun import"),
    "create": ("POST", "/api/create", "localrun quantize"),
    "push": ("POST", "/api/push", "publishes nothing"),
}


@pytest.mark.parametrize(("method", "path", "command"), OWNERS.values(), ids=OWNERS.keys())
async def test_nobody_changes_models_through_the_port(method: str, path: str, command: str) -> None:
    async with client_of(create_app(FakeModels(fake=FakeChat()))) as client:
        response = await client.request(method, path, json={"model": "fake"})

    assert response.status_code == 403
    assert command in response.json()["error"]


def recorded(client: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CLIENTS / f"{client}.json").read_text("utf-8"))
    requests: dict[str, Any] = found["requests"]
    return requests


class Replay:
    """Sends what a client was seen to send."""

    def __init__(self, client: str, chat: FakeChat) -> None:
        self.models = FakeModels(fake=chat)
        self._requests = recorded(client)

    async def send(self, name: str) -> httpx2.Response:
        request = self._requests[name]
        async with client_of(create_app(self.models)) as client:
            response = await client.request(
                request["method"], request["path"], json=request.get("body")
            )
        assert response.status_code == 200, response.text
        return response


async def test_vs_code_finds_a_model_that_calls_tools_and_talks_to_it() -> None:
    chat = FakeChat()
    replay = Replay("vscode_ollama", chat)

    version = (await replay.send("version")).json()["version"]
    listed = (await replay.send("tags")).json()["models"]
    shown = (await replay.send("show")).json()
    answer = await replay.send("chat")

    # As it reads them: numbers between dots, and a context by the architecture's name.
    assert [int(part) for part in version.split(".")] >= [0, 6, 4]
    assert [model["model"] for model in listed] == ["fake:latest"]
    info = shown["model_info"]
    assert info[f"{info['general.architecture']}.context_length"] == 100
    assert info["general.basename"]
    assert "tools" in shown["capabilities"]
    assert answer.text.endswith("data: [DONE]\n\n")
    assert len(chat.asked[0][1].tools) == 1


async def test_continue_fills_gaps_and_keeps_the_model_half_an_hour() -> None:
    chat = FakeChat()
    replay = Replay("continue_ollama", chat)

    shown = (await replay.send("show")).json()
    filled = lines_of(await replay.send("fim"))
    raw = lines_of(await replay.send("raw"))
    called = (await replay.send("chat with tools")).json()

    assert ".Suffix" in shown["template"]
    # Each line of the parameters has to be a name and a value.
    assert [len(line.split()) for line in shown["parameters"].split("\n")] == [2]
    assert "".join(line["response"] for line in filled) == "Hello"
    assert "".join(line["response"] for line in raw) == "Hello"
    assert called["message"]["role"] == "assistant"
    (gap,), options = chat.filled[0]
    assert gap == Gap("def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n")
    assert (options.max_tokens, len(options.stop)) == (256, 18)
    assert isinstance(chat.completed[0][0][0], Prompt)
    assert [keep for _, keep in replay.models.kept] == [1800] * 3


async def test_zed_lists_talks_and_gets_calls_with_their_ids() -> None:
    call = ReplyEvent(call=CallDelta(0, "c1", "list_directory", '{"path":"src"}'))
    chat = FakeChat((ReplyEvent(text="So"), call, ending()))
    replay = Replay("zed_ollama", chat)

    (listed,) = (await replay.send("tags")).json()["models"]
    shown = (await replay.send("show")).json()
    answer = await replay.send("chat")
    predicted = (await replay.send("edit prediction")).json()

    assert {"name", "modified_at", "size", "digest", "details"} <= set(listed)
    assert "tools" in shown["capabilities"]
    text, calls, last = lines_of(answer)
    assert text["message"] == {"role": "assistant", "content": "So"}
    (told,) = calls["message"]["tool_calls"]
    assert (told["id"], told["function"]["arguments"]) == ("c1", {"path": "src"})
    assert (last["prompt_eval_count"], last["eval_count"]) == (10, 3)
    assert answer.headers["localrun-context-length"] == "100"
    assert predicted["response"] == "So"
    messages, _ = chat.asked[0]
    assert messages[2].tool_calls == (
        ToolCall("list_directory-1", "list_directory", {"path": "."}),
    )
    assert messages[3].tool_call_id == "list_directory-1"
    assert replay.models.kept == [("fake", -1), ("fake", None)]
