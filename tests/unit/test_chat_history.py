"""Conversations outlive the program, other windows and damage."""

from __future__ import annotations

import json
import multiprocessing
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localrun.chat.export import to_json, to_markdown
from localrun.chat.history import History
from localrun.chat.messages import Message, ToolCall
from localrun.errors import LocalrunError, SourceError, UsageError

QUESTION = Message("user", "\n  What is the capital\x1b[2J of France?\nPlease.")
CALL = Message(
    "assistant", "", reasoning="hm", tool_calls=(ToolCall("c1", "look", {"at": ["é", 1]}),)
)
RESULT = Message("tool", "Paris", tool_call_id="c1", name="look")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "chats.db"


@pytest.fixture
def history(path: Path) -> Iterator[History]:
    with History(path) as opened:
        yield opened


def test_a_conversation_comes_back_as_it_was_after_a_restart(path: Path) -> None:
    with History(path) as history:
        conversation = history.create("smollm2")
        for message in (QUESTION, CALL, RESULT):
            history.append(conversation, message)

    with History(path) as history:
        loaded = history.load(conversation)

    assert [stored.message for stored in loaded.messages] == [QUESTION, CALL, RESULT]
    assert all(stored.complete for stored in loaded.messages)
    assert loaded.summary.model == "smollm2"
    assert loaded.summary.messages == 3


def test_the_title_is_the_first_line_the_user_wrote(history: History) -> None:
    conversation = history.create("m")
    history.append(conversation, Message("system", "Be brief."))
    history.append(conversation, QUESTION)
    history.append(conversation, Message("user", "Another line"))

    assert history.load(conversation).summary.title == "What is the capital [2J of France?"


def test_a_long_first_line_is_cut_and_a_given_title_stays(history: History) -> None:
    long, named = history.create("m"), history.create("m", "Mine")
    history.append(long, Message("user", "word " * 100))
    history.append(named, QUESTION)

    assert len(history.load(long).summary.title) == 80
    assert history.load(long).summary.title.endswith("…")
    assert history.load(named).summary.title == "Mine"


def test_the_list_has_the_newest_first(history: History) -> None:
    first, second, third = (history.create("m", title) for title in "abc")
    history.append(first, QUESTION)

    assert [summary.id for summary in history.conversations()] == [first, third, second]
    assert [summary.id for summary in history.conversations(limit=1)] == [first]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("france", {"text"}),
        ("STRASSE", {"title"}),
        ("  ", {"text", "title", "%_"}),
        ("%", {"%_"}),
        ("' OR 1=1 --", set()),
        ("nowhere", set()),
    ],
)
def test_search_finds_titles_and_texts_in_any_case(
    history: History, query: str, found: set[str]
) -> None:
    names = {"text": history.create("m", "text"), "%_": history.create("m", "%_")}
    names["title"] = history.create("m", "Die Straße")
    history.append(names["text"], QUESTION)

    assert {s.id for s in history.conversations(query)} == {names[name] for name in found}


def test_rename_and_delete(history: History) -> None:
    conversation = history.create("m", "old")
    history.append(conversation, QUESTION)
    history.save_draft(conversation, "draft")
    history.rename(conversation, "new\nsecond line")
    assert history.load(conversation).summary.title == "new"

    history.delete(conversation)

    assert history.conversations() == []
    assert history.draft(conversation) == ""
    with pytest.raises(UsageError, match=str(conversation)):
        history.load(conversation)


ABSENT: dict[str, Callable[[History], object]] = {
    "load": lambda history: history.load(7),
    "append": lambda history: history.append(7, QUESTION),
    "replace": lambda history: history.replace(7, QUESTION, complete=True),
    "rename": lambda history: history.rename(7, "x"),
    "delete": lambda history: history.delete(7),
    "draft": lambda history: history.save_draft(7, "x"),
}


@pytest.mark.parametrize("act", ABSENT.values(), ids=ABSENT)
def test_what_is_not_there_is_a_typed_error(
    history: History, act: Callable[[History], object]
) -> None:
    with pytest.raises(UsageError, match="7"):
        act(history)


def test_ids_are_not_used_again(history: History) -> None:
    first = history.create("m")
    history.delete(first)

    assert history.create("m") != first


def test_drafts_are_kept_for_each_conversation_and_for_none(path: Path) -> None:
    with History(path) as history:
        conversation = history.create("m")
        history.save_draft(conversation, "here")
        history.save_draft(None, "first")
        history.save_draft(None, "elsewhere")

    with History(path) as history:
        assert history.load(conversation).draft == "here"
        assert history.draft(None) == "elsewhere"
        history.save_draft(None, "")
        assert history.draft(None) == ""


def test_an_answer_grows_in_place(history: History) -> None:
    conversation = history.create("m")
    message = history.append(conversation, Message("assistant", ""), complete=False)
    history.replace(message, Message("assistant", "Par"), complete=False)
    history.replace(message, Message("assistant", "Paris", reasoning="hm"), complete=True)

    (stored,) = history.load(conversation).messages
    assert stored.message == Message("assistant", "Paris", reasoning="hm")
    assert stored.complete


_CRASH = """
import os, signal, sys
from pathlib import Path
from localrun.chat.history import History
from localrun.chat.messages import Message
history = History(Path(sys.argv[1]))
conversation = history.create("m")
history.append(conversation, Message("user", "hi"))
message = history.append(conversation, Message("assistant", ""), complete=False)
history.replace(message, Message("assistant", "half an ans"), complete=False)
history._db.execute("BEGIN IMMEDIATE")
history._db.execute("DELETE FROM message")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills with a signal")
def test_a_crash_keeps_the_partial_answer_and_no_half_done_change(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _CRASH, str(path)], check=False, timeout=60)
    assert done.returncode < 0

    with History(path) as history:
        (summary,) = history.conversations()
        *_, last = history.load(summary.id).messages

    assert last.message.content == "half an ans"
    assert not last.complete


def _append_many(path: Path, conversation: int) -> None:
    with History(path) as history:
        for number in range(20):
            history.append(conversation, Message("user", str(number)))


def test_another_process_writes_the_same_file(path: Path) -> None:
    with History(path) as history:
        conversation = history.create("m")
        other = multiprocessing.get_context("spawn").Process(
            target=_append_many, args=(path, conversation)
        )
        other.start()
        for number in range(20):
            history.append(conversation, Message("user", str(number)))
        other.join()

        assert other.exitcode == 0
        assert len(history.load(conversation).messages) == 40


def test_any_thread_may_use_one_history(history: History) -> None:
    conversation = history.create("m")
    threads = [
        threading.Thread(target=history.append, args=(conversation, QUESTION)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(history.load(conversation).messages) == 8


def test_text_that_is_no_utf8_is_kept_as_far_as_it_goes(history: History) -> None:
    conversation = history.create("m", "t\ud800")
    history.append(conversation, Message("user", "a\ud800b\0c"))
    history.save_draft(conversation, "d\ud800")

    loaded = history.load(conversation)
    assert (loaded.summary.title, loaded.draft) == ("t", "d?")
    assert loaded.messages[0].message.content == "a?b\0c"


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_only_the_owner_can_read_the_file(path: Path, history: History) -> None:
    history.create("m")
    files = sorted(path.parent.iterdir())

    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(files) >= 2
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_file_of_a_later_version_is_refused_and_left(path: Path) -> None:
    History(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()

    with pytest.raises(SourceError, match="version 99"):
        History(path)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _garbage(path: Path) -> None:
    path.write_bytes(b"not a database at all, but long enough" * 200)


def _torn(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)


def _row(path: Path) -> None:
    db = sqlite3.connect(path)
    with db:
        db.execute("UPDATE message SET tool_calls = '{'")
    db.close()


@pytest.mark.parametrize("damage", [_cut, _garbage, _torn, _row])
def test_a_damaged_file_is_named_and_never_touched(
    path: Path, damage: Callable[[Path], None]
) -> None:
    with History(path) as history:
        conversation = history.create("m")
        history.append(conversation, QUESTION)
    damage(path)
    before = path.read_bytes()

    with pytest.raises(SourceError) as caught, History(path) as history:
        history.load(conversation)

    assert str(path) in caught.value.message
    assert str(path) in caught.value.hint
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(LocalrunError, match="file"):
        History(tmp_path / "file" / "chats.db")


def test_a_closed_history_refuses(path: Path) -> None:
    history = History(path)
    history.close()
    history.close()

    with pytest.raises(LocalrunError, match="closed"):
        history.conversations()


def test_a_conversation_exports_as_markdown(history: History) -> None:
    conversation = history.create("smollm2", "France")
    for message in (QUESTION, CALL, RESULT):
        history.append(conversation, message)
    history.append(conversation, Message("assistant", "It is **Pa"), complete=False)
    loaded = history.load(conversation)

    title, _, origin, *body = to_markdown(loaded).splitlines()

    assert title == "# France"
    assert origin.startswith("smollm2 · 20")
    assert body == [
        "", "## You", "", *QUESTION.content.splitlines(), "",
        "## Assistant", "", "> hm", "", 'Calls `look` with `{"at": ["é", 1]}`', "",
        "## Tool", "", "Paris", "",
        "## Assistant", "", "It is **Pa", "", "*(cut off)*",
    ]  # fmt: skip


def test_a_conversation_exports_as_json(history: History) -> None:
    conversation = history.create("smollm2", "France")
    history.append(conversation, CALL)

    document = json.loads(to_json(history.load(conversation)))

    assert (document["title"], document["model"]) == ("France", "smollm2")
    (message,) = document["messages"]
    assert message.pop("created") >= document["created"]
    assert message == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "look", "arguments": {"at": ["é", 1]}},
            }
        ],
        "complete": True,
    }
