"""Old chats, commands, exports and the keys' own help."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from localrun.chat.history import History
from localrun.chat.messages import Message
from localrun.tui.commands import COMMANDS
from localrun.tui.conversations import Conversations, when
from localrun.tui.help import KEYS, HelpScreen, Welcome
from localrun.tui.prompts import Ask, Confirm
from localrun.tui.screen import ChatScreen
from localrun.tui.theme import DARK, LIGHT
from localrun.tui.transcript import RECENT
from localrun.tui.turn import AssistantTurn, Thinking, UserTurn
from tests.tui.conftest import Running
from tests.tui.driving import answers, ask, notes, screen_text, settled
from tests.tui.scripted import Gate, ScriptedModel, words


def keep(file: Path, *conversations: tuple[str, ...]) -> list[int]:
    """Write conversations as their turns: the person's, the model's, and so on."""
    ids = []
    with History(file) as history:
        for turns in conversations:
            ids.append(history.create("smollm2"))
            for number, text in enumerate(turns):
                role = "assistant" if number % 2 else "user"
                history.append(ids[-1], Message(role, text))  # type: ignore[arg-type]
    return ids


async def test_an_old_chat_is_found_by_its_words_and_goes_on(
    running: Running, history_file: Path
) -> None:
    keep(history_file, ("about cats", "meow"), ("about dogs", "woof"), ("about fish", "blub"))
    model = ScriptedModel(words("more"))
    async with running(model) as (app, pilot):
        await pilot.press("ctrl+s")
        await pilot.pause()
        assert isinstance(app.screen, Conversations)
        lines = [line for line in screen_text(app).splitlines() if "about" in line]
        assert [word in line for word, line in zip(("fish", "dogs", "cats"), lines, strict=True)]
        await pilot.press(*"woof", "enter")
        await settled(app, pilot)
        assert [turn.content for turn in app.chat.query(UserTurn)] == ["about dogs"]
        assert answers(app) == ["woof"]

        await ask(app, pilot, "and puppies")
        await settled(app, pilot)
        sent = [message.content for message in model.asked[0]]
        assert sent == ["about dogs", "woof", "and puppies"]
        assert app.chat.history.conversations()[0].title == "about dogs"


async def test_a_question_left_by_a_crash_comes_back_to_the_box(
    running: Running, history_file: Path
) -> None:
    keep(history_file, ("one", "answer", "unanswered"))
    async with running() as (app, pilot):
        await pilot.press("ctrl+s")
        await pilot.pause()
        await pilot.press("enter")
        await settled(app, pilot)
        assert app.chat.composer.text == "unanswered"
        assert [turn.content for turn in app.chat.query(UserTurn)] == ["one"]


async def test_deleting_in_the_list_asks_first(running: Running, history_file: Path) -> None:
    first, _second = keep(history_file, ("first", "a"), ("second", "b"))
    async with running() as (app, pilot):
        await pilot.press("ctrl+s")
        await pilot.pause()
        for answer in ("n", "escape", "enter"):  # Enter is on Keep
            await pilot.press("ctrl+d")
            await pilot.pause()
            assert isinstance(app.screen, Confirm)
            await pilot.press(answer)
            await pilot.pause()
            assert len(app.chat.history.conversations()) == 2
        await pilot.press("ctrl+d")
        await pilot.pause()
        await pilot.press("y")
        await pilot.pause()
        assert [kept.id for kept in app.chat.history.conversations()] == [first]


async def test_drafts_stay_with_their_conversation_and_outlive_the_app(
    running: Running, history_file: Path
) -> None:
    keep(history_file, ("old", "answer"))
    async with running() as (app, pilot):
        await pilot.press(*"new")
        await pilot.press("ctrl+s")
        await pilot.pause()
        await pilot.press("enter")
        await settled(app, pilot)
        assert app.chat.composer.text == ""
        await pilot.press(*"reply", "ctrl+n")
        await settled(app, pilot)
        assert app.chat.composer.text == "new"
        await pilot.press("ctrl+q")
    async with running() as (app, _pilot):
        assert app.chat.composer.text == "new"
        assert app.chat.history.draft(1) == "reply"


async def test_a_new_chat_stops_the_answer_and_starts_empty(running: Running) -> None:
    gate = Gate()
    model = ScriptedModel([*words("half")[:-1], gate])
    async with running(model) as (app, pilot):
        await ask(app, pilot, "first")
        await gate.reached.wait()
        await pilot.press("ctrl+n")
        await settled(app, pilot)
        assert model.cancelled == 1
        assert app.chat.query(Welcome)
        await ask(app, pilot, "second")
        await gate.reached.wait()
        assert [message.content for message in model.asked[1]] == ["second"]
        await pilot.press("escape")
        await settled(app, pilot)
        assert len(app.chat.history.conversations()) == 2


async def test_another_conversation_does_not_show_the_figures_of_the_last(
    running: Running,
) -> None:
    async with running(ScriptedModel(words("hello"))) as (app, pilot):
        await ask(app, pilot, "first")
        await settled(app, pilot)
        assert app.chat.status.used
        await pilot.press("ctrl+n")
        await settled(app, pilot)
        status = app.chat.status
        assert (status.state, status.used, status.mean_tps) == ("ready", None, None)


async def test_long_chats_show_the_latest_messages_and_the_others_on_demand(
    running: Running, history_file: Path
) -> None:
    keep(history_file, tuple(f"turn {number}" for number in range(40)))
    async with running() as (app, pilot):
        await pilot.press("ctrl+s")
        await pilot.pause()
        await pilot.press("enter")
        await settled(app, pilot)
        shown = app.chat.query("UserTurn, AssistantTurn")
        assert len(shown) == RECENT
        assert "28 earlier messages" in str(app.chat.query_one(".earlier").render())
        await pilot.press("ctrl+home")
        await settled(app, pilot)
        first = app.chat.query(UserTurn).first()
        assert (first.content, len(app.chat.query(UserTurn))) == ("turn 0", 20)
        assert not app.chat.query(".earlier")
        await ask(app, pilot, "again")
        await settled(app, pilot)
        assert len(app.chat.query("UserTurn, AssistantTurn")) == RECENT + 2


async def choose(pilot: object, app: object, name: str) -> None:
    from textual.pilot import Pilot

    assert isinstance(pilot, Pilot)
    await pilot.press("ctrl+p")
    await pilot.pause()
    await pilot.press(*name)
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()
    await pilot.press("enter")
    await pilot.pause()


async def test_palette_renames_exports_and_deletes(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with running(ScriptedModel(words("fine"))) as (app, pilot):
        await ask(app, pilot, "How are you?")
        await settled(app, pilot)

        await app.chat.run_action("rename")
        await pilot.pause()
        assert isinstance(app.screen, Ask)
        await pilot.press("end", "ctrl+u", *"Health", "enter")
        await settled(app, pilot)
        assert app.chat.history.conversations()[0].title == "Health"

        for kind in ("md", "json"):
            await app.chat.run_action(f"export('{kind}')")
            await pilot.pause()
            await pilot.press("enter")
            await settled(app, pilot)
        assert (tmp_path / "health.md").read_text().startswith("# Health\n")
        exported = json.loads((tmp_path / "health.json").read_text())
        assert [m["content"] for m in exported["messages"]] == ["How are you?", "fine"]

        (tmp_path / "health.md").write_text("mine")
        await app.chat.run_action("export('md')")
        await pilot.pause()
        await pilot.press("enter")
        await settled(app, pilot)
        assert (tmp_path / "health.md").read_text() == "mine"
        assert "exists already" in notes(app)[-1]

        await app.chat.run_action("delete")
        await pilot.pause()
        await pilot.press("y")
        await settled(app, pilot)
        assert app.chat.history.conversations() == []
        assert app.chat.query(Welcome)


async def test_every_palette_command_is_an_action_and_one_runs_from_the_palette(
    running: Running,
) -> None:
    async with running() as (app, pilot):
        for _name, action, _about in COMMANDS:
            name = action.partition("(")[0].removeprefix("app.")
            assert hasattr(app if "app." in action else app.chat, f"action_{name}"), action
        assert app.theme == DARK.name
        await choose(pilot, app, "theme")
        assert app.theme == LIGHT.name


async def test_copying_takes_the_last_answer_and_the_last_message(running: Running) -> None:
    async with running(ScriptedModel(words("an-answer"))) as (app, pilot):
        await pilot.press("ctrl+y")
        assert notes(app) == ["there is nothing to copy yet"]
        await ask(app, pilot, "a question")
        await settled(app, pilot)
        await pilot.press("ctrl+y")
        assert app.clipboard == "an-answer"
        await app.chat.run_action("copy_message")
        assert app.clipboard == "a question"


async def test_help_names_every_key_of_the_screen(running: Running) -> None:
    told = {
        key.strip().casefold().replace("pgup", "pageup").replace("pgdn", "pagedown")
        for _title, rows in KEYS
        for keys, _what in rows
        for key in keys.replace("Esc", "Escape").split(",")
    }
    bound = {binding.key for binding in ChatScreen.BINDINGS if not isinstance(binding, tuple)}
    assert bound <= told
    async with running() as (app, pilot):
        await pilot.press("f1")
        assert isinstance(app.screen, HelpScreen)
        await pilot.press("escape")
        assert app.screen is app.chat


async def test_resumed_reasoning_is_folded_and_a_cut_answer_is_marked(
    running: Running, history_file: Path
) -> None:
    with History(history_file) as history:
        kept = history.create("smollm2")
        history.append(kept, Message("user", "q"))
        history.append(kept, Message("assistant", "a", "because"), complete=False)
    async with running() as (app, pilot):
        await pilot.press("ctrl+s")
        await pilot.pause()
        await pilot.press("enter")
        await settled(app, pilot)
        assert app.chat.query_one(Thinking).folded
        assert "cut off" in str(app.chat.query_one(AssistantTurn).foot.content)


DATES = {
    "today": (datetime(2026, 5, 6, 9, 5), "09:05"),
    "yesterday": (datetime(2026, 5, 5, 23, 59), "Tue 23:59"),
    "last week": (datetime(2026, 4, 29, 12, 0), "2026-04-29"),
    "clock set back": (datetime(2026, 5, 7, 0, 0), "2026-05-07"),
}


@pytest.mark.parametrize(("then", "expected"), DATES.values(), ids=list(DATES))
def test_the_list_shows_near_times_and_far_dates(then: datetime, expected: str) -> None:
    assert when(then, datetime(2026, 5, 6, 12, 0)) == expected
