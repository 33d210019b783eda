"""Terminal injection: what models, files and people write is only ever text (P7)."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.events import Paste

from localrun.chat.history import History
from localrun.chat.messages import ChatModel, Message, ReplyEvent
from localrun.errors import EngineError
from localrun.tui.plain import model_label, one_line, plain
from localrun.tui.theme import DARK
from localrun.tui.turn import AssistantTurn, UserTurn
from tests.tui.conftest import Running
from tests.tui.driving import ask, screen_text, settled
from tests.tui.scripted import END, ScriptedModel

PAYLOADS = {
    "colour": "\x1b[31mred",
    "clear screen": "\x1b[2J\x1b[H",
    "title": "\x1b]0;owned\x07",
    "clipboard (OSC 52)": "\x1b]52;c;ZXZpbA==\x07",
    "hyperlink (OSC 8)": "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
    "device status": "\x1b[6n",
    "DCS": "\x1bP+q544e\x1b\\",
    "APC": "\x1b_Gf=100;AAAA\x1b\\",
    "8-bit CSI": "\x9b31mred",
    "8-bit OSC": "\x9d0;owned\x9c",
    "bell": "ding\x07dong",
    "backspaces": "safe\x08\x08\x08\x08evil",
    "carriage return": "safe\revil",
    "null": "a\x00b",
    "delete": "a\x7fb",
    "vertical tab and form feed": "a\x0bb\x0cc",
    "next line": "a\x85b",
    "line separators": "a\u2028b\u2029c",
    "direction override": "safe\u202eexe.txt",
    "isolates": "\u2066a\u2069",
    "lone surrogate": "a\ud800b",
    "Rich markup": "[bold red]x[/bold red] [/] [link=http://evil]y[/link]",
    "Textual action": "[@click=app.quit]press[/]",
    "unclosed markup": "[$error 50%][b",
    "HTML": "<script>x</script><b>y</b>",
    "table of markup": "| a |\n|---|\n| [@click=app.quit]z[/] [/x] |",
}
FORBIDDEN = {
    *(chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) != "\n"),
    *"\u2028\u2029\u202e\u2066\u2069\ud800",
}


def check(shown: str) -> None:
    assert not FORBIDDEN & set(shown)


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=list(PAYLOADS))
def test_plain_text_holds_no_control_character_and_stays_plain(payload: str) -> None:
    check(plain(payload))
    assert plain(plain(payload)) == plain(payload)
    assert "\n" not in one_line(payload)
    plain(payload).encode()


TALL = (110, 420)  # everything is on screen


async def test_payloads_in_kept_conversations_and_model_names_are_text(
    running: Running, history_file: Path
) -> None:
    payloads = [payload for payload in PAYLOADS.values() if "\ud800" not in payload]
    with History(history_file) as history:
        for payload in payloads:
            history.append(history.create(payload, payload), Message("user", payload))
        everything = history.create("all", "all")
        for payload in payloads:
            history.append(everything, Message("user", payload))
            history.append(everything, Message("assistant", payload, payload))
    async with running(models=tuple(PAYLOADS.values()), size=TALL) as (app, pilot):
        await pilot.press("ctrl+o")
        await pilot.pause()
        check(screen_text(app))
        await pilot.press("escape", "ctrl+s")
        await pilot.pause()
        check(screen_text(app))
        await pilot.press("enter")
        await settled(app, pilot)
        await pilot.press("ctrl+home", "ctrl+t")
        await settled(app, pilot)
        assert len(app.chat.query(UserTurn)) == len(payloads)
        shown = screen_text(app)
        check(shown)
        assert shown.count("[@click=app.quit]press[/]") == 3  # asked, thought, answered


async def test_payloads_in_prompts_answers_names_and_errors_are_text(running: Running) -> None:
    together = "\n\n".join(PAYLOADS.values())
    reasoning = [ReplyEvent(reasoning=payload) for payload in PAYLOADS.values()]
    answer = [ReplyEvent(text=f"{payload}\n\n") for payload in PAYLOADS.values()]
    error = EngineError(together, hint=together)
    model = ScriptedModel([*reasoning, *answer, error], name=together)
    async with running(model, size=TALL) as (app, pilot):
        app.chat.composer.post_message(Paste(together))
        await pilot.pause()
        check(app.chat.composer.text)
        await pilot.press("enter")
        await settled(app, pilot)
        app.chat.record.rename(together)
        app.chat.show_title()
        app.say(together)
        await pilot.press("ctrl+t")
        await pilot.pause()
        shown = screen_text(app)
        check(shown)
        assert shown.count("[@click=app.quit]press[/]") >= 5
        check(app.chat.query_one(AssistantTurn).body.source)
        check("".join(message.content for message in model.asked[0]))
        assert app.is_running
        assert app.clipboard == ""


async def test_markup_and_html_are_shown_as_they_were_written(running: Running) -> None:
    text = "[bold]x[/bold] <b>y</b> [@click=app.quit]z[/]"
    model = ScriptedModel([ReplyEvent(text=text), END], name="[red]name[/]")
    async with running(model) as (app, pilot):
        await ask(app, pilot, text)
        await settled(app, pilot)
        shown = screen_text(app)
        assert shown.count(text) == 3  # the title, the question, the answer
        assert "[red]name[/]" in shown


async def test_a_clicked_link_is_named_and_not_opened(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url, *rest: opened.append(url))
    model = ScriptedModel([ReplyEvent(text="[here](http://evil.example/[b]x)"), END])
    async with running(model) as (app, pilot):
        await ask(app, pilot, "link")
        await settled(app, pilot)
        await pilot.click("MarkdownParagraph", offset=(1, 0))
        await pilot.pause()
        (note,) = (notification.message for notification in app._notifications)
        assert note == "links are not opened: http://evil.example/[b]x"
        assert opened == []


async def test_an_error_of_a_model_file_is_shown_as_text(running: Running) -> None:
    async def failing(ref: str) -> ChatModel:
        raise EngineError("[red]\x1b[31mbad[/] field", hint="[@click=app.quit]hint[/]")

    async with running(open_model=failing) as (app, pilot):
        await settled(app, pilot)
        shown = screen_text(app)
        check(shown)
        assert "[red]␛[31mbad[/] field" in shown
        assert "hint: [@click=app.quit]hint[/]" in shown
        assert app.theme == DARK.name


@pytest.mark.parametrize(
    ("ref", "label"),
    [
        ("smollm2", "smollm2"),
        ("hf:org/repo:Q4_K_M", "hf:org/repo:Q4_K_M"),
        ("/a/long/way/to/model.gguf", "model.gguf"),
        ("./models/", "models"),
        ("/", "/"),
        ("~/m\x1b.gguf", "m␛.gguf"),
    ],
)
def test_a_path_is_labelled_by_its_last_part(ref: str, label: str) -> None:
    assert model_label(ref) == label
