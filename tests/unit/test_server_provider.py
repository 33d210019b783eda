"""Models are loaded when asked for, once, and closed in the end."""

from __future__ import annotations

import asyncio

import pytest

from localrun.chat.messages import ChatModel
from localrun.errors import DoesNotFitError, ModelNotFoundError, ServerError
from localrun.server.app import ModelCard
from localrun.server.provider import LoadingProvider
from tests.fake_chat import FakeChat


class Factory:
    """Opens fakes; waits at ``gate`` first, fails while ``error`` is set."""

    def __init__(self) -> None:
        self.opened: list[FakeChat] = []
        self.names: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: DoesNotFitError | None = None

    async def __call__(self, name: str) -> ChatModel:
        self.names.append(name)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        chat = FakeChat(name=name)
        self.opened.append(chat)
        return chat


def _canonical(name: str) -> str:
    if name == "nothing":
        raise ModelNotFoundError("no model is called 'nothing'")
    return name.lower()


def _provider(factory: Factory) -> LoadingProvider:
    cards = [ModelCard("m", 0)]
    return LoadingProvider(factory, cards=lambda: cards, canonical=_canonical)


async def test_a_model_asked_for_at_once_by_many_is_loaded_once() -> None:
    factory = Factory()
    factory.gate.clear()
    provider = _provider(factory)
    asking = [asyncio.ensure_future(provider.get(name)) for name in ("m", "M", "m")]
    while not factory.names:
        await asyncio.sleep(0)
    factory.gate.set()
    models = await asyncio.gather(*asking)
    await provider.close()

    assert factory.names == ["m"]
    assert all(model is factory.opened[0] for model in models)
    assert factory.opened[0].closed


async def test_two_models_load_beside_each_other_and_both_are_kept() -> None:
    factory = Factory()
    provider = _provider(factory)
    first, second = await provider.get("a"), await provider.get("b")

    assert first is not second
    assert await provider.get("a") is first
    await provider.close()
    assert [chat.closed for chat in factory.opened] == [True, True]


async def test_a_load_that_failed_is_tried_again() -> None:
    factory = Factory()
    factory.error = DoesNotFitError("10 GB of 8 GB")
    provider = _provider(factory)
    with pytest.raises(DoesNotFitError):
        await provider.get("m")
    factory.error = None

    assert (await provider.get("m")).name == "m"
    await provider.close()


async def test_a_client_that_leaves_does_not_undo_the_load_another_waits_for() -> None:
    factory = Factory()
    factory.gate.clear()
    provider = _provider(factory)
    leaving, staying = (asyncio.ensure_future(provider.get("m")) for _ in range(2))
    while not factory.names:
        await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    factory.gate.set()

    assert (await staying).name == "m"
    await provider.close()


async def test_an_unknown_name_loads_nothing() -> None:
    factory = Factory()
    provider = _provider(factory)
    with pytest.raises(ModelNotFoundError):
        await provider.get("nothing")

    assert factory.names == []
    await provider.close()


async def test_closing_ends_a_load_under_way_and_refuses_new_ones() -> None:
    factory = Factory()
    factory.gate.clear()
    provider = _provider(factory)
    asking = asyncio.ensure_future(provider.get("m"))
    while not factory.names:
        await asyncio.sleep(0)
    await provider.close()

    assert isinstance((await asyncio.gather(asking, return_exceptions=True))[0], BaseException)
    assert factory.opened == []
    with pytest.raises(ServerError):
        await provider.get("m")


def test_cards_are_read_anew_each_time() -> None:
    cards = [ModelCard("m", 0)]
    provider = LoadingProvider(Factory(), cards=lambda: tuple(cards))
    assert provider.names() == (ModelCard("m", 0),)
    cards.clear()

    assert provider.names() == ()
