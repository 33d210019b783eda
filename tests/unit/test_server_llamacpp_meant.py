"""Which model a request to llama.cpp's routes means, and what is told of it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from localrun.errors import ModelNotFoundError
from localrun.server.models import LoadedModel, ModelFacts
from tests.fake_chat import FACTS, INFO, FakeChat, FakeModels
from tests.unit.test_server_llamacpp import INFILL, get, post


class Cold(FakeModels):
    """None of them is loaded, and none may be."""

    def loaded(self) -> list[LoadedModel]:
        return []

    @asynccontextmanager
    async def lease(self, name: str, *, keep_s: float | None = None) -> Any:
        raise AssertionError(f"{name} is loaded")
        yield


class Listed(FakeModels):
    """Nothing is loaded yet; only ``fills`` are known to fill in text."""

    fills: tuple[str, ...] = ()

    def loaded(self) -> list[LoadedModel]:
        return []

    def facts(self, name: str) -> ModelFacts:
        if name == "broken":
            raise ModelNotFoundError("its header cannot be read")
        able = {"completion", "insert"} if name in self.fills else {"completion"}
        return replace(FACTS, id=name, capabilities=frozenset(able))


async def test_a_name_is_what_is_meant() -> None:
    models = FakeModels(one=FakeChat(), two=FakeChat())

    assert (await post(models, "/completion", {"prompt": "a", "model": "two"})).status_code == 200
    assert [name for name, _ in models.kept] == ["two"]
    assert (await post(models, "/completion", {"prompt": "a", "model": "x"})).status_code == 404


async def test_of_several_loaded_models_none_is_guessed() -> None:
    models = FakeModels(one=FakeChat(), two=FakeChat())

    for path, body in (("/completion", {"prompt": "a"}), ("/infill", INFILL), ("/tokenize", {})):
        response = await post(models, path, body | {"model": ""})
        error = response.json()["error"]
        assert response.status_code == 400
        assert "one, two" in error["message"]
        assert error["param"] == "model"


async def test_of_several_loaded_models_the_one_that_fills_gaps_is_meant_by_infill() -> None:
    talking, filling = FakeChat(info=replace(INFO, fim=None)), FakeChat()

    assert (await post(FakeModels(a=talking, b=filling), "/infill", INFILL)).status_code == 200
    assert len(filling.filled) == 1


async def test_where_none_is_loaded_the_first_that_is_served_is_meant() -> None:
    models = Listed(one=FakeChat(), two=FakeChat())

    assert (await post(models, "/completion", {"prompt": "a"})).json()["model"] == "one"


async def test_where_none_is_loaded_infill_means_the_first_that_fills_gaps() -> None:
    models = Listed(broken=FakeChat(), one=FakeChat(), two=FakeChat(), three=FakeChat())
    models.fills = ("two", "three")

    assert (await post(models, "/infill", INFILL)).json()["model"] == "two"
    models.fills = ()
    assert (await post(models, "/infill", INFILL)).json()["model"] == "broken"


async def test_where_none_is_served_none_is_found() -> None:
    for path, body in (("/completion", {"prompt": "a"}), ("/infill", INFILL)):
        assert (await post(FakeModels(), path, body)).status_code == 404
    assert (await get(FakeModels(), "/props")).status_code == 404


async def test_a_model_that_is_loaded_is_known_by_its_other_names_too() -> None:
    class Named(FakeModels):
        def facts(self, name: str) -> ModelFacts:
            return super().facts("fake" if name == "other" else name)

    document = (await get(Named(fake=FakeChat()), "/props?model=other")).json()

    assert document["model_alias"] == "fake"
    assert not document["is_sleeping"]
    assert document["default_generation_settings"]["n_ctx"] == 100


async def test_the_properties_of_a_loaded_model_are_those_it_runs_with() -> None:
    document = (await get(FakeModels(fake=FakeChat()), "/props")).json()

    settings = document["default_generation_settings"]
    assert settings["n_ctx"] == 100
    assert settings["params"]["temperature"] == 0.8
    assert document["total_slots"] == 1
    assert document["model_alias"] == document["model_path"] == "fake"
    assert document["chat_template"] == FACTS.chat_template
    assert (document["bos_token"], document["eos_token"]) == ("<s>", "</s>")
    assert document["modalities"] == {"vision": False, "audio": False, "video": False}
    assert document["chat_template_caps"] == {"supports_tools": True, "supports_tool_calls": True}
    assert document["build_info"].startswith("localrun ")
    assert document["is_sleeping"] is False


async def test_properties_are_told_without_loading_anything() -> None:
    document = (await get(Cold(fake=FakeChat()), "/props")).json()

    assert document["default_generation_settings"]["n_ctx"] == FACTS.n_ctx_train
    assert document["is_sleeping"] is True
    assert document["model_alias"] == "fake"


async def test_properties_of_a_named_model_are_asked_in_the_query() -> None:
    models = FakeModels(one=FakeChat(), two=FakeChat(n_ctx=77))

    assert (await get(models, "/props?model=two")).json()["model_alias"] == "two"
    assert (await get(models, "/props")).json()["model_alias"] == "one"
    assert (await get(models, "/props?model=nobody")).status_code == 404


async def test_slots_are_the_requests_under_way_and_one_where_there_is_none() -> None:
    busy = FakeChat()
    busy.running = 2
    slots = (await get(FakeModels(busy=busy, free=FakeChat()), "/slots")).json()

    assert [(slot["id"], slot["model"], slot["is_processing"]) for slot in slots] == [
        (0, "busy", True),
        (1, "busy", True),
        (2, "free", False),
    ]
    assert (await get(Cold(fake=FakeChat()), "/slots")).json() == []
