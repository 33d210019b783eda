"""Pulling through the port: once whoever asks, told as it goes, ended with the last who waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx2
import pytest

from localrun.errors import BusyError, DownloadError, LocalrunError, ModelNotFoundError
from localrun.ref import CatalogueRef, ModelRef
from localrun.server.app import create_app
from localrun.server.models import PullProgress
from localrun.server.pulls import MAX_PULLS, Pulls
from localrun.store.progress import Progress
from tests.fake_chat import FakeModels
from tests.unit.test_server_ollama import client_of, lines_of

HALF = PullProgress("smollm2", 100, 50)
WHOLE = PullProgress("smollm2", 100, 100)


async def pulled(models: FakeModels, **body: Any) -> httpx2.Response:
    async with client_of(create_app(models)) as client:
        return await client.post("/api/pull", json={"model": "smollm2:latest"} | body)


async def test_progress_is_told_in_lines_that_end_in_success() -> None:
    models = FakeModels()
    models.pulling = (HALF, WHOLE)

    first, half, whole, *rest = lines_of(await pulled(models))

    assert first == {"status": "pulling manifest"}
    assert half["digest"] == whole["digest"]
    assert half["digest"].startswith("sha256:")
    assert len(half["digest"]) == len("sha256:") + 64
    assert (half["status"], half["total"], half["completed"]) == ("pulling smollm2", 100, 50)
    assert whole["completed"] == 100
    assert [each["status"] for each in rest] == [
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]
    assert models.pulled == ["smollm2"]


async def test_what_is_here_already_is_a_success() -> None:
    assert [line["status"] for line in lines_of(await pulled(FakeModels()))] == [
        "pulling manifest",
        "success",
    ]


@pytest.mark.parametrize("steps", [(), (HALF, WHOLE)])
async def test_a_pull_asked_for_whole_is_one_object(steps: tuple[PullProgress, ...]) -> None:
    models = FakeModels()
    models.pulling = steps

    response = await pulled(models, stream=False)

    assert response.json() == {"status": "success"}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_model_that_is_not_there_has_its_own_status(stream: bool) -> None:
    models = FakeModels()
    models.pulling = (ModelNotFoundError("no model is called 'smollm2'"),)

    response = await pulled(models, stream=stream)

    assert response.status_code == 404
    assert "'smollm2'" in response.json()["error"]


async def test_a_download_that_fails_ends_in_a_line() -> None:
    models = FakeModels()
    models.pulling = (HALF, DownloadError("the network went away"))

    *_, last = lines_of(await pulled(models))
    whole = await pulled(models, stream=False)

    assert list(last) == ["error"]
    assert "the network went away" in last["error"]
    assert whole.status_code == 502


class Transfer:
    """A fetch that goes on when it is told to, and counts how often it was begun."""

    def __init__(self, error: LocalrunError | None = None) -> None:
        self.refs: list[ModelRef] = []
        self.begun = threading.Semaphore(0)
        self.further = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)
        self.stopped = False
        self._error = error

    def __call__(self, ref: ModelRef, progress: Progress) -> None:
        self.refs.append(ref)
        progress.start(str(ref), 100)
        self.begun.release()
        try:
            for _ in range(2):
                assert self.further.acquire(timeout=30)
                progress.advance(50)
            if self._error is not None:
                raise self._error
        except LocalrunError as error:
            self.stopped = error is not self._error
            raise
        finally:
            progress.finish()
            self.ended.release()

    def go_on(self, steps: int = 2) -> None:
        for _ in range(steps):
            self.further.release()


async def reached(semaphore: threading.Semaphore) -> None:
    assert await asyncio.to_thread(semaphore.acquire, timeout=30)


async def collected(progress: AsyncGenerator[PullProgress]) -> list[PullProgress]:
    async with aclosing(progress):
        return [each async for each in progress]


@asynccontextmanager
async def pulls_of(fetch: Callable[[ModelRef, Progress], None]) -> AsyncGenerator[Pulls]:
    pulls = Pulls(fetch)
    try:
        yield pulls
    finally:
        await pulls.close()


async def test_a_model_is_fetched_once_for_all_who_ask() -> None:
    transfer = Transfer()
    async with pulls_of(transfer) as pulls:
        asked = [asyncio.create_task(collected(pulls.watch(name))) for name in ("A", "a", "a")]
        await reached(transfer.begun)
        transfer.go_on()
        told = await asyncio.gather(*asked)
        again = asyncio.create_task(collected(pulls.watch("a")))
        transfer.go_on()
        await again

    assert transfer.refs == [CatalogueRef("a")] * 2
    assert [each[-1] for each in told] == [PullProgress("a", 100, 100)] * 3
    assert all(each == sorted(each, key=lambda one: one.completed) for each in told)


async def test_a_fetch_ends_with_the_last_who_waits_for_it() -> None:
    transfer = Transfer()
    async with pulls_of(transfer) as pulls:
        first, second = pulls.watch("a"), pulls.watch("a")
        assert await anext(first) == await anext(second) == PullProgress("a", 100, 0)
        await first.aclose()
        transfer.go_on(1)
        while (await anext(second)).completed < 50:
            pass
        await second.aclose()
        transfer.go_on(1)
        await reached(transfer.ended)

    assert transfer.stopped


async def test_a_failed_fetch_tells_all_who_wait_and_is_tried_anew() -> None:
    transfer = Transfer(DownloadError("the network went away"))
    async with pulls_of(transfer) as pulls:
        for _ in range(2):
            asked = [asyncio.create_task(collected(pulls.watch("a"))) for _ in range(2)]
            await reached(transfer.begun)
            transfer.go_on()
            for each in asked:
                with pytest.raises(DownloadError, match="went away"):
                    await each

    assert len(transfer.refs) == 2
    assert not transfer.stopped


async def test_a_server_that_ends_ends_its_fetches() -> None:
    transfer = Transfer()
    async with pulls_of(transfer) as pulls:
        watching = asyncio.create_task(collected(pulls.watch("a")))
        await reached(transfer.begun)
        closing = asyncio.create_task(pulls.close())
        await asyncio.sleep(0)
        transfer.go_on(1)
        with pytest.raises(LocalrunError, match="stopped"):
            await watching
        await closing

    assert transfer.stopped


async def test_only_so_many_are_fetched_at_once() -> None:
    transfer = Transfer()
    async with pulls_of(transfer) as pulls:
        watched = [pulls.watch(f"m{number}") for number in range(MAX_PULLS)]
        for each in watched:
            await anext(each)
        with pytest.raises(BusyError, match=f"{MAX_PULLS} models"):
            await anext(pulls.watch("another"))
        joined = pulls.watch("m0")
        assert (await anext(joined)).label == "m0"
        await joined.aclose()
        for each in watched:
            await each.aclose()
        transfer.go_on(MAX_PULLS)
        for _ in watched:
            await reached(transfer.ended)


REFUSED = {
    "a path": "/etc/passwd",
    "a path of a file": "./model.gguf",
    "an import": "local:me/mine",
    "an address": "http://169.254.169.254/x",
    "a file's address": "file:///etc/passwd",
    "a way out": "hf:org/../../x",
    "nothing": "",
}


@pytest.mark.parametrize("name", REFUSED.values(), ids=REFUSED.keys())
async def test_only_what_a_source_has_can_be_pulled(name: str) -> None:
    transfer = Transfer()
    async with pulls_of(transfer) as pulls:
        with pytest.raises(LocalrunError) as caught:
            await anext(pulls.watch(name))

    assert caught.value.http_status in (400, 404)
    assert transfer.refs == []
