"""What the tests of the chat do to it again and again."""

from __future__ import annotations

from textual.pilot import Pilot

from localrun.tui.app import ChatApp
from localrun.tui.turn import AssistantTurn


async def settled(app: ChatApp, pilot: Pilot[None]) -> None:
    """Wait until no answer is running and everything is drawn."""
    await app.workers.wait_for_complete()
    await pilot.pause()


async def ask(app: ChatApp, pilot: Pilot[None], text: str) -> None:
    app.chat.composer.put(text)
    await pilot.press("enter")
    await pilot.pause()


def answers(app: ChatApp) -> list[str]:
    return [turn.body.source for turn in app.chat.query(AssistantTurn)]


def notes(app: ChatApp) -> list[str]:
    return [notification.message for notification in app._notifications]


def foot(app: ChatApp) -> str:
    return str(app.chat.query(AssistantTurn).last().foot.content)


def screen_text(app: ChatApp) -> str:
    """Every character on screen, line by line."""
    return "\n".join(
        "".join(segment.text for segment in strip)
        for strip in app.screen._compositor.render_strips()
    )
