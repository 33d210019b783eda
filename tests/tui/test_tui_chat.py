"""A conversation through the keyboard: send, stream, cancel, answer again."""

from __future__ import annotations

import pytest
from textual.events import Key, Paste

from localrun.chat.history import History
from localrun.chat.messages import ChatModel, Message, ReplyEvent
from localrun.engine.request import FinishReason
from localrun.errors import (
    ContextLengthError,
    EngineCrashedError,
    EngineError,
    LocalrunError,
    ModelNotFoundError,
    TemplateError,
)
from localrun.tui.help import Welcome
from localrun.tui.markdown import ModelMarkdown
from localrun.tui.turn import AssistantTurn, ErrorTurn, Thinking, UserTurn
from tests.tui.conftest import Running
from tests.tui.driving import answers, ask, foot, notes, settled
from tests.tui.scripted import END, Gate, ScriptedModel, words


async def test_enter_sends_and_the_answer_is_shown_and_kept(running: Running) -> None:
    model = ScriptedModel(words("Paris is the capital."))
    async with running(model, system="be brief") as (app, pilot):
        assert app.chat.query(Welcome)
        await pilot.press(*"Capital", "enter")
        await settled(app, pilot)

        assert [turn.content for turn in app.chat.query(UserTurn)] == ["Capital"]
        assert answers(app) == ["Parisisthecapital."]
        assert model.asked == [[Message("system", "be brief"), Message("user", "Capital")]]
        kept = app.chat.history.load(app.chat.history.conversations()[0].id)
        assert [(m.message.role, m.message.content, m.complete) for m in kept.messages] == [
            ("user", "Capital", True),
            ("assistant", "Parisisthecapital.", True),
        ]
        assert not app.chat.query(Welcome)
        assert "11 tokens · 50.0 tok/s" in foot(app)


@pytest.mark.parametrize("key", ["shift+enter", "ctrl+j"])
async def test_newline_keys_break_the_line_and_do_not_send(running: Running, key: str) -> None:
    model = ScriptedModel()
    async with running(model) as (app, pilot):
        await pilot.press("a", key, "b")
        assert app.chat.composer.text == "a\nb"
        assert model.asked == []
        await pilot.press("enter")
        await settled(app, pilot)
        assert model.asked[0][-1].content == "a\nb"


async def test_keys_typed_faster_than_drawn_keep_their_order(running: Running) -> None:
    model = ScriptedModel()
    async with running(model) as (app, pilot):
        for key, character in (("a", "a"), ("ctrl+j", None), ("b", "b"), ("enter", "\r")):
            app.post_message(Key(key, character))
        await pilot.pause()
        await settled(app, pilot)
        assert model.asked[0][-1].content == "a\nb"


async def test_a_paste_of_many_lines_never_sends(running: Running) -> None:
    model = ScriptedModel()
    async with running(model) as (app, pilot):
        app.chat.composer.post_message(Paste("one\r\ntwo\n\nthree\x1b[31m\n"))
        await pilot.pause()
        assert app.chat.composer.text == "one\ntwo\n\nthree␛[31m\n"
        assert model.asked == []


async def test_enter_in_an_empty_box_sends_nothing(running: Running) -> None:
    model = ScriptedModel()
    async with running(model) as (app, pilot):
        await pilot.press("enter", "ctrl+j", "enter")
        await settled(app, pilot)
        assert model.asked == []


async def test_the_box_grows_to_ten_lines_and_no_further(running: Running) -> None:
    async with running() as (app, pilot):
        heights = []
        for lines in (1, 4, 10, 30):
            app.chat.composer.put("\n".join("x" * lines))
            await pilot.pause()
            heights.append(app.chat.composer.size.height)
        assert heights == [1, 4, 10, 10]


async def test_up_in_an_empty_box_recalls_earlier_messages(running: Running) -> None:
    async with running() as (app, pilot):
        for text in ("first", "second"):
            await ask(app, pilot, text)
            await settled(app, pilot)
        seen = []
        for key in ("up", "up", "up", "down", "down"):
            await pilot.press(key)
            seen.append(app.chat.composer.text)
        assert seen == ["second", "first", "first", "second", ""]


async def test_up_in_a_written_box_moves_the_cursor_and_keeps_the_text(running: Running) -> None:
    async with running() as (app, pilot):
        await ask(app, pilot, "earlier")
        await settled(app, pilot)
        await pilot.press("a", "ctrl+j", "b", "up", "up")
        assert app.chat.composer.text == "a\nb"
        assert app.chat.composer.cursor_location[0] == 0


async def test_escape_cancels_keeps_the_text_and_marks_it(running: Running) -> None:
    gate = Gate()
    model = ScriptedModel([ReplyEvent(text="Half an "), ReplyEvent(text="answer"), gate, END])
    async with running(model) as (app, pilot):
        await ask(app, pilot, "hello")
        await gate.reached.wait()
        await pilot.press("escape")
        await settled(app, pilot)

        assert answers(app) == ["Half an answer"]
        assert "cancelled" in foot(app)
        assert model.cancelled == 1
        stored = app.chat.history.load(1).messages[-1]
        assert (stored.message.content, stored.complete) == ("Half an answer", False)
        assert app.chat.status.state == "ready"


async def test_cancel_before_the_first_token_gives_the_message_back(running: Running) -> None:
    gate = Gate()
    model = ScriptedModel([gate, END], words("fine"))
    async with running(model) as (app, pilot):
        await ask(app, pilot, "too fast")
        await gate.reached.wait()
        await pilot.press("escape")
        await settled(app, pilot)
        assert app.chat.composer.text == "too fast"
        assert not app.chat.query(UserTurn)

        await pilot.press("!", "enter")
        await settled(app, pilot)
        assert model.asked[-1] == [Message("user", "too fast!")]
        contents = [m.message.content for m in app.chat.history.load(1).messages]
        assert contents == ["too fast!", "fine"]


async def test_a_message_written_during_an_answer_is_not_lost(running: Running) -> None:
    gate = Gate()
    model = ScriptedModel([ReplyEvent(text="one"), gate, END])
    async with running(model) as (app, pilot):
        await ask(app, pilot, "first")
        await gate.reached.wait()
        await ask(app, pilot, "second")
        assert app.chat.composer.text == "second"
        assert len(model.asked) == 1
        gate.open()
        await settled(app, pilot)
        await pilot.press("enter")
        await settled(app, pilot)
        assert model.asked[-1][-1].content == "second"


async def test_an_answer_is_on_disk_while_it_streams(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localrun.tui.screen.KEEP_S", 0.0)
    gate = Gate()
    model = ScriptedModel([ReplyEvent(text="so far"), gate, END])
    async with running(model) as (app, pilot):
        await ask(app, pilot, "hello")
        await gate.reached.wait()
        app.chat._tick()
        with History(app.chat.history._path) as other:
            stored = other.load(1).messages
        assert [(m.message.content, m.complete) for m in stored] == [
            ("hello", True),
            ("so far", False),
        ]
        gate.open()
        await settled(app, pilot)
        assert app.chat.history.load(1).messages[-1].complete


async def test_answering_again_replaces_the_last_answer(running: Running) -> None:
    model = ScriptedModel(words("bad"), words("good"))
    async with running(model) as (app, pilot):
        await ask(app, pilot, "hello")
        await settled(app, pilot)
        await pilot.press("ctrl+r")
        await settled(app, pilot)
        assert answers(app) == ["good"]
        assert model.asked[1] == [Message("user", "hello")]
        contents = [m.message.content for m in app.chat.history.load(1).messages]
        assert contents == ["hello", "good"]


async def test_the_old_answer_stays_when_its_replacement_never_begins(running: Running) -> None:
    model = ScriptedModel(words("good"), [EngineCrashedError("the engine ended")])
    async with running(model) as (app, pilot):
        await ask(app, pilot, "hello")
        await settled(app, pilot)
        await pilot.press("ctrl+r")
        await settled(app, pilot)
        assert answers(app) == ["good"]
        assert app.chat.query(ErrorTurn)
        assert app.chat.record.last("assistant") == "good"


async def test_reasoning_shows_while_it_streams_and_folds_for_the_answer(running: Running) -> None:
    thought, said = Gate(), Gate()
    model = ScriptedModel(
        [
            *(ReplyEvent(reasoning="hm, "), ReplyEvent(reasoning="well"), thought),
            *(ReplyEvent(text="Yes."), said, END),
        ]
    )
    async with running(model) as (app, pilot):
        await ask(app, pilot, "hello")
        await thought.reached.wait()
        await app.chat.query_one(AssistantTurn).flush()
        thinking = app.chat.query_one(Thinking)
        assert not thinking.folded
        assert app.chat._draft is not None
        assert app.chat._draft.state == "thinking"
        thought.open()
        await said.reached.wait()
        assert thinking.folded
        await pilot.press("ctrl+t")
        assert not thinking.folded
        said.open()
        await settled(app, pilot)
        assert thinking.body.source == "hm, well"
        assert answers(app) == ["Yes."]
        assert app.chat.history.load(1).messages[-1].message.reasoning == "hm, well"


async def test_past_reasoning_is_not_sent_back(running: Running) -> None:
    model = ScriptedModel([ReplyEvent(reasoning="secret"), ReplyEvent(text="Yes."), END])
    async with running(model) as (app, pilot):
        for text in ("one", "two"):
            await ask(app, pilot, text)
            await settled(app, pilot)
        assert [m.reasoning for m in model.asked[1]] == [None, None, None]


async def test_a_prompt_that_is_too_long_shows_both_numbers_and_comes_back(
    running: Running,
) -> None:
    model = ScriptedModel([ContextLengthError(5000, 4096)])
    async with running(model) as (app, pilot):
        await ask(app, pilot, "very long")
        await settled(app, pilot)
        error = app.chat.query_one(ErrorTurn)
        assert "5000" in error.message
        assert "4096" in error.message
        assert error.hint == "shorten the prompt or raise --ctx"
        assert app.chat.composer.text == "very long"


@pytest.mark.parametrize(
    "error",
    [TemplateError("bad template"), EngineCrashedError("gone")],
    ids=["template", "crash"],
)
async def test_an_error_under_an_answer_keeps_what_was_said(
    running: Running, error: LocalrunError
) -> None:
    model = ScriptedModel([ReplyEvent(text="partly"), error], words("again"))
    async with running(model) as (app, pilot):
        await ask(app, pilot, "hello")
        await settled(app, pilot)
        assert answers(app) == ["partly"]
        shown = app.chat.query_one(ErrorTurn)
        assert (shown.message, shown.hint) == (error.message, error.hint)
        assert not app.chat.history.load(1).messages[-1].complete
        await ask(app, pilot, "more")
        await settled(app, pilot)
        assert answers(app)[-1] == "again"


BROKEN_STREAMS = {
    "error event": ReplyEvent(finish=FinishReason.ERROR, error=EngineError("the engine fell over")),
    "no last event": ReplyEvent(text=" more"),
}


@pytest.mark.parametrize("last", BROKEN_STREAMS.values(), ids=list(BROKEN_STREAMS))
async def test_a_stream_that_breaks_off_is_an_error(running: Running, last: ReplyEvent) -> None:
    async with running(ScriptedModel([ReplyEvent(text="partly"), last])) as (app, pilot):
        await ask(app, pilot, "hello")
        await settled(app, pilot)
        message = app.chat.query_one(ErrorTurn).message
        assert message == str(last.error or "the model broke the answer off")
        assert "broken off" in foot(app)


async def test_the_screen_is_there_while_the_model_loads(running: Running) -> None:
    gate = Gate()
    model = ScriptedModel(words("late"))

    async def slow(ref: str) -> ChatModel:
        await gate.wait()
        return model

    async with running(open_model=slow) as (app, pilot):
        assert app.chat.status.state == "loading"
        await ask(app, pilot, "early")
        assert [turn.content for turn in app.chat.query(UserTurn)] == ["early"]
        gate.open()
        await settled(app, pilot)
        assert answers(app) == ["late"]
        assert app.chat.status.state == "ready"


async def test_a_model_that_does_not_load_says_why_and_another_can_be_chosen(
    running: Running,
) -> None:
    good = ScriptedModel(words("here"))

    async def open_model(ref: str) -> ChatModel:
        if ref == "smollm2":
            raise ModelNotFoundError("no model smollm2", hint="`localrun pull smollm2`")
        return good

    async with running(open_model=open_model, models=("smollm2", "qwen3-8b")) as (app, pilot):
        await pilot.pause()
        error = app.chat.query_one(ErrorTurn)
        assert (error.message, error.hint) == ("no model smollm2", "`localrun pull smollm2`")
        assert app.chat.status.state == "failed"
        await ask(app, pilot, "hello")
        await settled(app, pilot)
        assert app.chat.composer.text == "hello"

        await pilot.press("ctrl+o")
        await pilot.pause()
        await pilot.press("down", "enter")
        await settled(app, pilot)
        assert app.model_ref == "qwen3-8b"
        await pilot.press("enter")
        await settled(app, pilot)
        assert answers(app) == ["here"]
    assert good.closed


async def test_switching_models_closes_the_one_before(running: Running) -> None:
    one, two = ScriptedModel(name="one"), ScriptedModel(name="two")
    left = [one, two]

    async def open_model(ref: str) -> ChatModel:
        return left.pop(0)

    async with running(open_model=open_model, models=("smollm2", "other")) as (app, pilot):
        await pilot.press("ctrl+o")
        await pilot.pause()
        await pilot.press("down", "enter")
        await settled(app, pilot)
        assert (one.closed, two.closed) == (True, False)
        assert app.chat.status.model == "two"
    assert two.closed


async def test_ctrl_c_cancels_an_answer_first_and_quits_the_second_time(running: Running) -> None:
    gate = Gate()
    model = ScriptedModel([ReplyEvent(text="half"), gate, END])
    async with running(model) as (app, pilot):
        await ask(app, pilot, "hello")
        await gate.reached.wait()
        await pilot.press("ctrl+c")
        await settled(app, pilot)
        assert model.cancelled == 1
        assert app.is_running
        await pilot.press("ctrl+c")
        await pilot.pause()
        assert app._exit
    assert model.closed


async def test_ctrl_c_without_an_answer_asks_for_a_second_press(running: Running) -> None:
    async with running() as (app, pilot):
        await pilot.press("ctrl+c")
        assert notes(app) == ["press Ctrl+C again to quit"]
        assert not app._exit


async def test_quitting_during_an_answer_keeps_it(running: Running) -> None:
    gate = Gate()
    model = ScriptedModel([ReplyEvent(text="half"), gate, END])
    async with running(model) as (app, pilot):
        await ask(app, pilot, "hello")
        await gate.reached.wait()
        await pilot.press("ctrl+q")
        await pilot.pause()
    with History(app.chat.history._path) as other:
        stored = other.load(1).messages[-1]
    assert (stored.message.content, stored.complete) == ("half", False)
    assert (model.cancelled, model.closed) == (1, True)


async def test_a_fast_stream_is_drawn_in_few_updates(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = [f"w{i} " if i % 40 else f"w{i}\n\n" for i in range(5000)]
    appended: list[str] = []
    append = ModelMarkdown.append

    def counting(self: ModelMarkdown, markdown: str) -> object:
        appended.append(markdown)
        return append(self, markdown)

    monkeypatch.setattr(ModelMarkdown, "append", counting)
    model = ScriptedModel([*(ReplyEvent(text=piece) for piece in pieces), END])
    async with running(model) as (app, pilot):
        await ask(app, pilot, "go")
        await settled(app, pilot)
        assert "".join(appended) == "".join(pieces)
        assert answers(app) == ["".join(pieces)]
        assert len(appended) <= len(pieces) / 20


async def test_reading_back_is_not_disturbed_by_a_growing_answer(running: Running) -> None:
    gate, later = Gate(), Gate()
    lines = [ReplyEvent(text=f"line {i}\n\n") for i in range(60)]
    model = ScriptedModel([*lines, gate, *lines, later, END])
    async with running(model) as (app, pilot):
        await ask(app, pilot, "go")
        await gate.reached.wait()
        turn = app.chat.query_one(AssistantTurn)
        await turn.finish("")
        await pilot.pause()
        transcript = app.chat.transcript
        assert transcript.scroll_y == transcript.max_scroll_y > 0
        await pilot.press("ctrl+home")
        await pilot.pause()
        gate.open()
        await later.reached.wait()
        await turn.finish("")
        await pilot.pause()
        assert transcript.scroll_y == 0
        await pilot.press("ctrl+end")
        await pilot.pause()
        assert transcript.scroll_y == transcript.max_scroll_y
        later.open()
        await settled(app, pilot)
