"""Knows no widget: the open conversation, kept on disk as it goes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from localrun.chat.conversation import Conversation
from localrun.chat.history import History
from localrun.chat.messages import Message, Role
from localrun.tui.plain import model_label, one_line, plain

TITLE_MAX = 60


@dataclass(frozen=True, slots=True)
class Turn:
    """A message and whether all of it is there; ``id`` is its row in the history."""

    id: int
    message: Message
    complete: bool = True


class Record:
    """One conversation. It gets its row and its title with its first message.

    A question that nobody has answered is ``unanswered``, not a turn: the next message takes its
    row. An answer made anew takes the row of the one before. So nothing is kept that is not shown.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self.id: int | None = None
        self.title = ""
        self.model = ""
        self.turns: list[Turn] = []
        self.unanswered: Turn | None = None
        self._answer_row: int | None = None

    @classmethod
    def resume(cls, history: History, id: int) -> Record:
        """The conversation as it was left.

        Raises:
            UsageError: it is gone.
        """
        record = cls(history)
        kept = history.load(id)
        record.id, record.title = id, one_line(kept.summary.title, TITLE_MAX)
        record.model = model_label(kept.summary.model)
        record.turns = [Turn(m.id, _plain(m.message), m.complete) for m in kept.messages]
        if record.turns and record.turns[-1].message.role == "user":
            record.unanswered = record.turns.pop()
        return record

    def say(self, text: str, model: str) -> None:
        """Keep what the person wrote."""
        message = Message("user", text)
        if self.id is None:
            self.id, self.model = self._history.create(model), model_label(model)
            self.title = one_line(text.strip().partition("\n")[0], TITLE_MAX)
        if self.unanswered is None:
            row = self._history.append(self.id, message)
        else:
            row = self.unanswered.id
            self._history.replace(row, message, complete=True)
        self.unanswered = None
        self.turns.append(Turn(row, message))
        self._answer_row = None

    def keep_answer(self, text: str, reasoning: str | None, *, complete: bool) -> None:
        """Keep the answer to the last message as far as it has come; again for every update."""
        assert self.id is not None
        message = Message("assistant", text, reasoning)
        if self._answer_row is None:
            self._answer_row = self._history.append(self.id, message, complete=complete)
        else:
            self._history.replace(self._answer_row, message, complete=complete)
        if self.turns[-1].message.role == "assistant":
            self.turns.pop()
        self.turns.append(Turn(self._answer_row, message, complete))

    def withdraw(self) -> str | None:
        """Take back the last message if it got no answer; returns its text."""
        if not self.turns or self.turns[-1].message.role != "user":
            return None
        self.unanswered = self.turns.pop()
        return self.unanswered.message.content

    def drop_answer(self) -> Turn | None:
        """Forget the last answer, so that its question can be answered anew; its row is reused."""
        if len(self.turns) < 2 or self.turns[-1].message.role != "assistant":
            return None
        dropped = self.turns.pop()
        self._answer_row = dropped.id
        return dropped

    def restore(self, answer: Turn) -> None:
        """Undo ``drop_answer``: nothing came in its place."""
        self.turns.append(answer)

    def rename(self, title: str) -> None:
        self.title = one_line(title, TITLE_MAX)
        if self.id is not None:
            self._history.rename(self.id, self.title)

    def delete(self) -> None:
        """Forget the conversation."""
        if self.id is not None:
            self._history.delete(self.id)

    def whole(self) -> Conversation | None:
        """The conversation as it is kept; None before its first message."""
        return None if self.id is None else self._history.load(self.id)

    @property
    def prompts(self) -> list[str]:
        """What the person wrote, oldest first."""
        turns = [*self.turns, self.unanswered] if self.unanswered else self.turns
        return [turn.message.content for turn in turns if turn.message.role == "user"]

    def messages(self, system: str | None) -> list[Message]:
        """What the model gets. Reasoning of past answers is not sent back."""
        first = [Message("system", system)] if system else []
        return [*first, *(replace(turn.message, reasoning=None) for turn in self.turns)]

    def last(self, role: Role) -> str | None:
        """The text of the last message of ``role``."""
        found = (t.message.content for t in reversed(self.turns) if t.message.role == role)
        return next(found, None)


def _plain(message: Message) -> Message:
    reasoning = None if message.reasoning is None else plain(message.reasoning)
    return replace(message, content=plain(message.content), reasoning=reasoning)
