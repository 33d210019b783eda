"""Knows no model and no screen: conversations in one SQLite file.

Any thread may use a ``History``: its calls are serialised. Any process may open the same file:
writers wait for one another, up to five seconds. Every change is one transaction; an answer is
saved while it streams, so a crash keeps what had arrived (a power cut may lose the last moments:
the write-ahead log is not synced at each commit).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from localrun.chat.conversation import (
    Conversation,
    Summary,
    columns,
    storable,
    stored_message,
    title_of,
)
from localrun.chat.messages import Message
from localrun.errors import DiskFullError, LocalrunError, SourceError, UsageError
from localrun.store.disk import make_private

BUSY_S = 5.0
_PAGE_BYTES = 4096

# One entry per version of the file; a released entry never changes.
_MIGRATIONS = (
    """
    CREATE TABLE conversation (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        title TEXT NOT NULL,
        model TEXT NOT NULL,
        created REAL NOT NULL,
        updated REAL NOT NULL
    );
    CREATE INDEX conversation_updated ON conversation (updated);
    CREATE TABLE message (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        conversation INTEGER NOT NULL REFERENCES conversation (id) ON DELETE CASCADE,
        role TEXT NOT NULL,
        content TEXT NOT NULL,
        reasoning TEXT,
        tool_calls TEXT NOT NULL,
        tool_call_id TEXT,
        name TEXT,
        complete INTEGER NOT NULL,
        created REAL NOT NULL
    );
    CREATE INDEX message_conversation ON message (conversation, id);
    CREATE TABLE draft (
        conversation INTEGER UNIQUE REFERENCES conversation (id) ON DELETE CASCADE,
        text TEXT NOT NULL
    );
    """,
)


class History:
    """The conversations of one file, made on first use, readable by its owner alone."""

    def __init__(self, path: Path) -> None:
        """Open and bring to the present version.

        Raises:
            SourceError: the file is damaged, no database, or of a later version. It is left as is.
            LocalrunError: it cannot be opened.
        """
        self._path = path
        self._lock = threading.RLock()
        with self._errors():
            make_private(path.parent)
            # SQLite gives the log files beside it the same mode.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            path.chmod(0o600)
        self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        with self._errors():
            db = sqlite3.connect(
                self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            try:
                db.row_factory = sqlite3.Row
                db.create_function("folded", 1, _folded, deterministic=True)
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = NORMAL")
                db.execute("PRAGMA foreign_keys = ON")
                self._migrate(db)
            except BaseException:
                db.close()
                raise
        return db

    def _migrate(self, db: sqlite3.Connection) -> None:
        if self._version(db) == len(_MIGRATIONS):
            return
        db.execute("BEGIN IMMEDIATE")
        try:
            # Another process may have done it while this one waited.
            for script in _MIGRATIONS[self._version(db) :]:
                for statement in script.split(";"):
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _version(self, db: sqlite3.Connection) -> int:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version > len(_MIGRATIONS):
            raise SourceError(
                f"{self._path}: written by a later localrun (version {version})",
                hint="update localrun",
            )
        return version

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Closing twice does nothing."""
        with self._lock:
            self._db.close()

    def create(self, model: str, title: str = "") -> int:
        """A new, empty conversation; its id. Without a title the first user line becomes it."""
        now = time.time()
        with self._change() as db:
            row = db.execute(
                "INSERT INTO conversation (title, model, created, updated) VALUES (?, ?, ?, ?)",
                (title_of(title), storable(model), now, now),
            )
            return int(row.lastrowid or 0)

    def append(self, conversation: int, message: Message, *, complete: bool = True) -> int:
        """Add a message; its id. ``complete`` False for an answer that is still streaming."""
        with self._change() as db:
            self._touch(db, conversation)
            row = db.execute(
                "INSERT INTO message (conversation, role, content, reasoning, tool_calls,"
                " tool_call_id, name, complete, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (conversation, *columns(message), complete, time.time()),
            )
            if message.role == "user":
                db.execute(
                    "UPDATE conversation SET title = ? WHERE id = ? AND title = ''",
                    (title_of(message.content), conversation),
                )
            return int(row.lastrowid or 0)

    def replace(self, message_id: int, message: Message, *, complete: bool) -> None:
        """Put a message in the place of another: the answer so far, or the whole of it."""
        with self._change() as db:
            row = db.execute(
                "UPDATE message SET role = ?, content = ?, reasoning = ?, tool_calls = ?,"
                " tool_call_id = ?, name = ?, complete = ? WHERE id = ? RETURNING conversation",
                (*columns(message), complete, message_id),
            ).fetchone()
            if row is None:
                raise UsageError(f"{self._path}: no message {message_id}", hint="it was deleted")
            self._touch(db, row["conversation"])

    def rename(self, conversation: int, title: str) -> None:
        """Give a conversation a title of the user's."""
        with self._change() as db:
            self._require(
                db.execute(
                    "UPDATE conversation SET title = ? WHERE id = ?",
                    (title_of(title), conversation),
                ),
                conversation,
            )

    def delete(self, conversation: int) -> None:
        """Delete a conversation with its messages and draft."""
        with self._change() as db:
            self._require(
                db.execute("DELETE FROM conversation WHERE id = ?", (conversation,)), conversation
            )

    def save_draft(self, conversation: int | None, text: str) -> None:
        """Keep what is being typed; None is the conversation not yet begun. Empty forgets it."""
        with self._change() as db:
            db.execute("DELETE FROM draft WHERE conversation IS ?", (conversation,))
            if not text:
                return
            if conversation is not None:
                present = "SELECT 1 FROM conversation WHERE id = ?"
                if db.execute(present, (conversation,)).fetchone() is None:
                    raise _absent(self._path, conversation)
            db.execute("INSERT INTO draft VALUES (?, ?)", (conversation, storable(text)))

    def draft(self, conversation: int | None) -> str:
        """What was being typed there, or an empty text."""
        rows = self._read("SELECT text FROM draft WHERE conversation IS ?", (conversation,))
        return str(rows[0]["text"]) if rows else ""

    def conversations(self, query: str = "", *, limit: int = 1000) -> list[Summary]:
        """The newest first; with ``query``, those whose title or any text holds it, in any case."""
        rows = self._read(
            "SELECT c.*, (SELECT count(*) FROM message m WHERE m.conversation = c.id) AS messages"
            " FROM conversation c WHERE ?1 = '' OR instr(folded(c.title), ?1) OR EXISTS"
            " (SELECT 1 FROM message m WHERE m.conversation = c.id"
            "  AND instr(folded(m.content), ?1))"
            " ORDER BY c.updated DESC, c.id DESC LIMIT ?2",
            (_folded(storable(query.strip())), limit),
        )
        return [_summary(row) for row in rows]

    def load(self, conversation: int) -> Conversation:
        """A whole conversation. Raises UsageError where it is not there."""
        with self._lock:
            rows = self._read(
                "SELECT *, 0 AS messages FROM conversation WHERE id = ?", (conversation,)
            )
            if not rows:
                raise _absent(self._path, conversation)
            stored = self._read(
                "SELECT * FROM message WHERE conversation = ? ORDER BY id", (conversation,)
            )
            draft = self.draft(conversation)
        try:
            messages = tuple(stored_message(dict(row)) for row in stored)
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from error
        row = {**dict(rows[0]), "messages": len(messages)}
        return Conversation(Summary(**row), messages, draft)

    def _touch(self, db: sqlite3.Connection, conversation: int) -> None:
        self._require(
            db.execute(
                "UPDATE conversation SET updated = ? WHERE id = ?", (time.time(), conversation)
            ),
            conversation,
        )

    def _require(self, changed: sqlite3.Cursor, conversation: int) -> None:
        if changed.rowcount == 0:
            raise _absent(self._path, conversation)

    def _read(self, query: str, values: tuple[object, ...]) -> list[sqlite3.Row]:
        with self._lock, self._errors():
            return self._db.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One transaction, taken for writing from its start so that two processes queue."""
        with self._lock, self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._typed(error) from error
        except OSError as error:
            raise LocalrunError(
                f"{self._path}: {error}", hint="check that the directory is there and yours"
            ) from error

    def _damaged(self, error: Exception) -> SourceError:
        return SourceError(
            f"{self._path}: the conversations cannot be read: {error}",
            hint=f"move {self._path} away and a new one is begun; nothing was deleted",
        )

    def _typed(self, error: sqlite3.DatabaseError) -> LocalrunError:
        # The low byte is the primary code, the rest its refinement.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return self._damaged(error)
        if code == sqlite3.SQLITE_FULL:
            return DiskFullError(str(self._path.parent), _PAGE_BYTES)
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return LocalrunError(
                f"{self._path}: another localrun has been writing for {BUSY_S:g} s",
                hint="try again when it is done",
            )
        return LocalrunError(f"{self._path}: {error}", hint="check the file's permissions")


def _absent(path: Path, conversation: int) -> UsageError:
    return UsageError(
        f"{path}: no conversation {conversation}",
        hint="it was deleted, perhaps from another window",
    )


def _folded(text: object) -> str:
    return str(text).casefold()


def _summary(row: sqlite3.Row) -> Summary:
    return Summary(**dict(row))
