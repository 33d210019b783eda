"""Models are loaded when asked for, once, give way to others within the memory, and idle away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from localrun.errors import DoesNotFitError, MemoryInUseError, ModelNotFoundError, ServerError
from localrun.server.models import ModelCard
from localrun.server.provider import LoadingProvider
from tests.loads import FakeMemory


class FakeTime:
    """Calls what is due when it is told that time has passed."""

    class Timer:
        def __init__(self, due: float, call: Callable[[], None]) -> None:
            self.due, self.call = due, call

        def cancel(self) -> None:
            self.due = float("inf")

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[FakeTime.Timer] = []

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        self.timers.append(self.Timer(self.now + seconds, call))
        return self.timers[-1]

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.timers if timer.due <= self.now]
        self.timers = [timer for timer in self.timers if self.now < timer.due < float("inf")]
        for timer in due:
            timer.call()


def _canonical(name: str) -> str:
    if name == "nothing":
        raise ModelNotFoundError("no model is called 'nothing'")
    return name.lower()


def provider_of(memory: FakeMemory, **options: Any) -> LoadingProvider:
    cards = [ModelCard("m", 0)]
    given: dict[str, Any] = {"keep_alive_s": None, "wait_s": 0.0, "canonical": _canonical}
    return LoadingProvider(memory, cards=lambda: cards, **given | options)


async def ask(provider: LoadingProvider, name: str) -> str:
    async with provider.lease(name) as model:
        return model.name


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


# Steps: `a` asks and ends; `+a` asks and holds; `-a` ends that; `@60` lets time pass; `a!` is told
# to wait, `a?` that it never fits. Then the models that are loaded.
SIZES = {"a": 6, "b": 6, "c": 3, "d": 3, "e": 11}
SCENARIOS: dict[str, tuple[str, str]] = {
    "one": ("a", "a"),
    "two that fit": ("a c", "ac"),
    "the same again": ("a a A", "a"),
    "two that do not": ("a b", "b"),
    "the longest unused goes": ("c d a", "da"),
    "a use counts as of its end": ("+c d -c a", "ca"),
    "asking again renews": ("c d c a", "ca"),
    "only as many go as must": ("c d b", "db"),
    "all go if they must": ("c d a b", "b"),
    "one that never fits unloads nothing": ("a c e?", "ac"),
    "one under way stays": ("+a b!", "a"),
    "an idle one goes and a busy one stays": ("c +d a", "da"),
    "a refusal unloads nothing": ("c +a b!", "ca"),
    "it is tried again": ("+a b! -a b", "b"),
    "two requests hold": ("+a +a -a b!", "a"),
    "idle": ("a @59", "a"),
    "idle for too long": ("a @60", ""),
    "each by its own time": ("a @30 c @30", "c"),
    "asking starts anew": ("a @40 a @40", "a"),
    "one under way never idles": ("+a @600", "a"),
    "idle since its end": ("+a @600 -a @59", "a"),
    "idle long since its end": ("+a @600 -a @60", ""),
    "loaded again afterwards": ("a @60 a", "a"),
}


@pytest.mark.parametrize("mapped", [0, 2, 6], ids=["taken", "part mapped", "mapped"])
@pytest.mark.parametrize(("steps", "loaded"), SCENARIOS.values(), ids=SCENARIOS.keys())
async def test_what_is_loaded_after(steps: str, loaded: str, mapped: int) -> None:
    memory, time = FakeMemory(10, SIZES, mapped=mapped), FakeTime()
    provider = provider_of(memory, keep_alive_s=60.0, later=time.later)
    held: dict[str, list[AsyncExitStack]] = {}
    for step in steps.split():
        name = step.strip("+-!?")
        if step[0] == "@":
            time.pass_(float(step[1:]))
        elif step[0] == "+":
            stack = AsyncExitStack()
            await stack.enter_async_context(provider.lease(name))
            held.setdefault(name, []).append(stack)
        elif step[0] == "-":
            await held[name].pop().aclose()
        elif step[-1] in "!?":
            with pytest.raises(DoesNotFitError) as refused:
                await ask(provider, name)
            assert isinstance(refused.value, MemoryInUseError) == (step[-1] == "!")
        else:
            assert await ask(provider, name) == name.lower()
    await until(lambda: set(memory.open) == set(loaded))

    assert memory.peak <= memory.capacity
    for stacks in held.values():
        for stack in stacks:
            await stack.aclose()
    await provider.close()
    assert memory.open == {}


async def test_a_model_asked_for_at_once_by_many_is_loaded_once() -> None:
    memory = FakeMemory(10, {"m": 1})
    memory.gate.clear()
    provider = provider_of(memory)
    asking = [asyncio.ensure_future(ask(provider, name)) for name in ("m", "M", "m")]
    await until(lambda: memory.opened)
    memory.gate.set()

    assert await asyncio.gather(*asking) == ["m"] * 3
    assert memory.opened == ["m"]
    await provider.close()


async def test_models_asked_for_at_once_load_one_after_the_other_within_the_memory() -> None:
    memory = FakeMemory(10, SIZES)
    provider = provider_of(memory, wait_s=60.0)

    names = ["a", "b", "c", "d", "a", "b"] * 3
    assert await asyncio.gather(*(ask(provider, name) for name in names)) == names
    assert memory.peak <= memory.capacity
    await provider.close()


async def test_a_model_waits_for_a_busy_one_to_become_idle() -> None:
    memory = FakeMemory(10, SIZES)
    provider = provider_of(memory, wait_s=60.0)
    async with provider.lease("a"):
        waiting = asyncio.ensure_future(ask(provider, "b"))
        await until(lambda: "b" in memory.looked)
        async with provider.lease("a"):
            pass
        assert not waiting.done()

    assert await waiting == "b"
    assert list(memory.open) == ["b"]
    await provider.close()


async def test_the_bill_names_who_holds_what_and_what_is_missing() -> None:
    memory = FakeMemory(10 << 30, {"a": 6 << 30, "b": 6 << 30})
    provider = provider_of(memory, wait_s=0.01)
    async with provider.lease("a"), provider.lease("a"):
        with pytest.raises(MemoryInUseError) as refused:
            await ask(provider, "b")

    message = refused.value.message
    assert f"ram lacks {2 << 30}" in message
    assert "a holds 6.00 GiB of ram for 2 under way" in message
    assert refused.value.shortfall == {"ram": 2 << 30}
    assert refused.value.http_status == 503
    await provider.close()


async def test_beside_busy_models_a_model_takes_less_rather_than_wait() -> None:
    memory = FakeMemory(10, SIZES, least={"b": 4})
    provider = provider_of(memory)
    async with provider.lease("a"):
        assert await ask(provider, "b") == "b"
        assert set(memory.open) == {"a", "b"}
    await provider.close()


async def test_an_idle_model_goes_rather_than_that_another_takes_less() -> None:
    memory = FakeMemory(10, SIZES, least={"b": 4})
    provider = provider_of(memory)
    await ask(provider, "a")
    await ask(provider, "b")

    assert set(memory.open) == {"b"}
    await provider.close()


async def test_a_load_that_failed_leaves_its_memory_to_others_and_is_tried_again() -> None:
    memory = FakeMemory(10, SIZES)
    memory.error = DoesNotFitError("the library got none")
    provider = provider_of(memory)
    with pytest.raises(DoesNotFitError, match="got none"):
        await ask(provider, "a")
    memory.error = None

    async with provider.lease("b"):
        pass
    assert await ask(provider, "a") == "a"
    await provider.close()


async def test_a_client_that_leaves_does_not_undo_the_load_another_waits_for() -> None:
    memory = FakeMemory(10, SIZES)
    memory.gate.clear()
    provider = provider_of(memory)
    leaving, staying = (asyncio.ensure_future(ask(provider, "a")) for _ in range(2))
    await until(lambda: memory.opened)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    memory.gate.set()

    assert await staying == "a"
    await provider.close()


async def test_a_load_that_began_is_kept_when_all_have_left_and_then_idles_away() -> None:
    memory, time = FakeMemory(10, SIZES), FakeTime()
    memory.gate.clear()
    provider = provider_of(memory, keep_alive_s=60.0, later=time.later)
    leaving = asyncio.ensure_future(ask(provider, "a"))
    await until(lambda: memory.opened)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    memory.gate.set()
    await until(lambda: time.timers)

    assert set(memory.open) == {"a"}
    time.pass_(60)
    await until(lambda: not memory.open)
    await provider.close()


async def test_nothing_is_unloaded_for_a_client_that_left_while_it_waited() -> None:
    memory = FakeMemory(10, SIZES)
    provider = provider_of(memory, wait_s=60.0)
    async with provider.lease("a"):
        waiting = asyncio.ensure_future(ask(provider, "b"))
        await until(lambda: "b" in memory.looked)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    assert await ask(provider, "c") == "c"
    assert set(memory.open) == {"a", "c"}
    assert memory.opened == ["a", "c"]
    await provider.close()


async def test_a_model_that_is_asked_for_while_it_unloads_is_loaded_anew() -> None:
    memory, time = FakeMemory(10, SIZES), FakeTime()
    provider = provider_of(memory, keep_alive_s=60.0, later=time.later)
    await ask(provider, "a")
    time.pass_(60)

    assert await ask(provider, "a") == "a"
    assert memory.opened == ["a", "a"]
    await provider.close()


async def test_kept_alive_for_no_time_a_model_goes_with_its_last_request() -> None:
    memory = FakeMemory(10, SIZES)
    provider = provider_of(memory, keep_alive_s=0.0)
    async with provider.lease("a"):
        await ask(provider, "a")
        assert set(memory.open) == {"a"}
    await until(lambda: not memory.open)
    await provider.close()


async def test_whoever_lists_the_models_is_told_what_is_loaded() -> None:
    told: list[tuple[str, ...]] = []
    provider = provider_of(FakeMemory(10, SIZES), changed=told.append)
    for name in ("a", "c", "b"):
        await ask(provider, name)
    await provider.close()

    assert told == [("a",), ("a", "c"), ("c",), ("c", "b")]


async def test_a_loaded_model_is_found_without_looking_at_the_disk() -> None:
    looked: list[str] = []

    def canonical(name: str) -> str:
        looked.append(name)
        return name

    provider = provider_of(FakeMemory(10, SIZES), canonical=canonical)
    for _ in range(3):
        await ask(provider, "a")
    await provider.close()

    assert looked == ["a"]


async def test_an_unknown_name_loads_nothing() -> None:
    memory = FakeMemory(10, SIZES)
    provider = provider_of(memory)
    with pytest.raises(ModelNotFoundError):
        await ask(provider, "nothing")

    assert memory.opened == []
    await provider.close()


@pytest.mark.parametrize("name", ["a", "b"], ids=["while it opens", "while it waits"])
async def test_closing_ends_a_load_under_way_and_refuses_new_ones(name: str) -> None:
    memory = FakeMemory(10, SIZES)
    memory.gate.clear()
    provider = provider_of(memory)
    asking: list[Awaitable[str]] = [asyncio.ensure_future(ask(provider, "a"))]
    await until(lambda: memory.opened)
    asking.append(asyncio.ensure_future(ask(provider, name)))
    await asyncio.sleep(0)
    await provider.close()

    ended = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(each, BaseException) for each in ended)
    assert memory.open == {}
    with pytest.raises(ServerError):
        await ask(provider, "a")


def test_cards_are_read_anew_each_time() -> None:
    cards = [ModelCard("m", 0)]
    provider = LoadingProvider(FakeMemory(1, {}), cards=lambda: tuple(cards))
    assert provider.names() == (ModelCard("m", 0),)
    cards.clear()

    assert provider.names() == ()
