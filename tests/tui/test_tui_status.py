"""The status line, its figures, and what carries its meaning."""

from __future__ import annotations

import pytest

from localrun.chat.messages import ReplyEvent
from localrun.errors import UsageError
from localrun.tui.app import ChatApp
from localrun.tui.draft import Draft
from localrun.tui.pace import Pace
from localrun.tui.status import MARKS, Status, bar, status_line
from tests.tui.conftest import Running
from tests.tui.driving import screen_text
from tests.tui.scripted import END

READY = Status("ready", "SmolLM2-135M", "llama.cpp", n_ctx=8192)
LINES = {
    "loading": (Status("loading", "smollm2"), 80, "◌ loading │ smollm2"),
    "ready": (READY, 80, "● ready │ SmolLM2-135M │ llama.cpp │ ctx 8,192"),
    "reading": (
        Status("reading", "m", "cpu", 8192, 1400, 700, 1400, rough=True),
        80,
        "◐ reading │ m │ cpu │ ▰▰▰▰▱▱▱▱ 700/1,400 50% │ ctx ≈1,400/8,192 17%",
    ),
    "answering": (
        Status("answering", "m", "cpu", 8192, 100, now_tps=51.2, mean_tps=48.7, rough=True),
        90,
        "◑ answering │ m │ cpu │ ctx ≈100/8,192 1% │ ≈51 tok/s now ≈49 mean",
    ),
    "exact at the end": (
        Status("ready", "m", "cpu", 8192, 100, mean_tps=48.66),
        80,
        "● ready │ m │ cpu │ ctx 100/8,192 1% │ 48.7 tok/s",
    ),
    "a server that does not tell its context": (
        Status("ready", "m", "cpu", 0, 58, mean_tps=15),
        80,
        "● ready │ m │ cpu │ ctx 58 │ 15.0 tok/s",
    ),
    "and before the first answer": (Status("ready", "m", n_ctx=0), 80, "● ready │ m"),
    "narrow": (READY, 40, "● ready │ SmolLM2-135M │ ctx 8,192"),
    "very narrow": (READY, 24, "● ready │ ctx 8,192"),
}


@pytest.mark.parametrize(("status", "width", "expected"), LINES.values(), ids=list(LINES))
def test_the_line_says_what_fits(status: Status, width: int, expected: str) -> None:
    line = status_line(status, width)
    assert line.plain == expected
    assert line.cell_length <= width


def test_every_state_has_a_word_beside_its_mark() -> None:
    for state in MARKS:
        assert state in status_line(Status(state), 80).plain


def test_a_bar_is_never_over_full() -> None:
    assert bar(5, 4) == "▰" * 8
    assert bar(0, 0) == "▱" * 8


def test_pace_forgets_what_is_older_than_two_seconds() -> None:
    pace = Pace()
    assert (pace.now_tps(0.0), pace.mean_tps) == (None, None)
    for number in range(11):
        pace.piece(number / 10)  # ten a second for one second
    assert pace.mean_tps == pytest.approx(10)
    assert pace.now_tps(1.0) == pytest.approx(11)
    assert pace.now_tps(3.5) == 0


def test_figures_are_marked_rough_until_the_exact_ones_come() -> None:
    draft = Draft()
    draft.take(ReplyEvent(prefilled=20, prompt_tokens=20), 0.0)
    for number in range(5):
        draft.take(ReplyEvent(text="x"), 1.0 + number)
    rough = draft.status(READY, 5.0)
    assert (rough.state, rough.used, rough.rough) == ("answering", 25, True)
    draft.take(END, 6.0)
    exact = draft.status(READY, 6.0)
    assert (exact.used, exact.rough, exact.mean_tps) == (31, False, pytest.approx(50))


@pytest.mark.parametrize(
    ("theme", "size"), [("dark", (100, 30)), ("light", (80, 24)), ("nord", (30, 10))], ids=str
)
async def test_the_first_screen_fits(running: Running, theme: str, size: tuple[int, int]) -> None:
    async with running(theme=theme, size=size) as (app, _pilot):
        shown = screen_text(app)
        assert "Write a message" in shown
        assert "ready" in shown


def test_an_unknown_theme_is_refused_by_name(running: Running) -> None:
    with pytest.raises(UsageError, match="no theme is called 'neon'"):
        ChatApp(None, "m", None, None, theme="neon")  # type: ignore[arg-type]


async def test_no_color_leaves_no_colour(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with running() as (app, _pilot):
        assert app.no_color
        assert "● ready" in screen_text(app)
