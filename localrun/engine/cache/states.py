"""Knows no runner: states of sequences on disk, where they outlive their process.

A state holds what was said, so it is as private as a conversation: files of mode 0600 in a folder
of mode 0700, the owner as a keyed digest. An engine without a ``StateStore`` writes none.

Several processes may share a folder. Whatever one of them finds missing, damaged, or of another
version or model counts as absent; no reader ever sees half a file (``AtomicFile``).
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from localrun.engine.cache.common import SHORT, common
from localrun.engine.cache.state_file import (
    DamagedStateError,
    StateHeader,
    compact,
    read,
    read_header,
)
from localrun.engine.cache.state_writer import SUFFIX, StateJob, StateWriter

QUEUE_BYTES: Final = 512 << 20
# Loading the state of a token costs this part of computing one.
_SHARE: Final = 16
_LOG: Final = logging.getLogger(__name__)


class StateStore:
    """The states of one model in ``folder``; ``budget_bytes`` bounds those of all models there.

    ``key`` tells the model, its numerics and the runner's library. A thread of its own writes, at
    most ``queue_bytes`` behind; everything is called on the engine's thread. No method raises for
    what a disk answers: a state that cannot be kept is a state that is not there.

    ``whole``, in all methods, is for runners that cannot cut a state: it serves only prompts that
    begin with all of it.
    """

    def __init__(
        self, folder: Path, *, key: str, budget_bytes: int, queue_bytes: int = QUEUE_BYTES
    ) -> None:
        self._folder = folder
        self._key = hashlib.blake2b(key.encode(), digest_size=32).digest()
        self._prefix = self._key[:8].hex() + "-"
        self._budget = budget_bytes
        self._most = min(budget_bytes, queue_bytes)
        self._writer = StateWriter(folder, budget_bytes, queue_bytes)
        self._index: dict[str, StateHeader] = {}
        self._ignored: set[str] = set()
        self._seen = (-1, -1)

    @property
    def most_bytes(self) -> int:
        """The largest state that ``put`` takes."""
        return self._most

    def find(
        self, prompt: Sequence[int], owner: str, *, whole: bool = False
    ) -> tuple[str, int] | None:
        """The state that spares most of ``prompt``: its name, and how many tokens they share."""
        self._refresh()
        digest, wanted = self._owner(owner), compact(prompt)
        best, best_worth = None, 0
        for name, header in self._index.items():
            if header.owner != digest:
                continue
            length = common(header.tokens, wanted)
            worth = length - self.cost(name)
            if worth > best_worth and (not whole or length == len(header.tokens)):
                best, best_worth = (name, length), worth
        return best

    def cost(self, name: str) -> int:
        """What loading ``name`` costs, in tokens that could be computed meanwhile."""
        return SHORT + len(self._index[name].tokens) // _SHARE

    def load(self, name: str) -> tuple[list[int], bytes] | None:
        """The tokens and the state of ``name``; None where it is gone or damaged."""
        known = self._index.get(name)
        if known is None:
            return None
        try:
            found = read(self._folder / name, self._budget)
        except DamagedStateError as error:
            self._damaged(name, error)
            return None
        except OSError:  # another process has made room
            found = None
        if found is None or found[0] != known:
            self._index.pop(name, None)
            return None
        return known.tokens.tolist(), found[1]

    def discard(self, name: str) -> None:
        """Remove a state that turned out to be of no use."""
        self._index.pop(name, None)
        with suppress(OSError):
            (self._folder / name).unlink()

    def wants(
        self,
        owner: str,
        tokens: Sequence[int],
        size: int,
        *,
        whole: bool = False,
        wait_s: float = 0,
    ) -> bool:
        """Whether a state of about ``size`` bytes would be kept: it is not too large, none here
        does the same service already, and the writer is not too far behind after ``wait_s``."""
        if size > self._most or not tokens:
            return False
        self._refresh()
        digest, wanted = self._owner(owner), compact(tokens)
        for held in self._index.values():
            serves = held.owner == digest and common(held.tokens, wanted) == len(wanted)
            if serves and (not whole or len(held.tokens) == len(wanted)):
                return False
        return self._writer.has_room(size, wait_s)

    def put(self, owner: str, tokens: Sequence[int], state: bytes, *, whole: bool = False) -> bool:
        """Queue a state for writing; False where it is too large or too many wait.

        But with ``whole`` it replaces the owner's states that it extends.
        """
        header = StateHeader(self._key, self._owner(owner), compact(tokens), len(state))
        if header.file_size > self._budget:
            return False
        content = hashlib.blake2b(header.tokens.tobytes(), key=header.owner, digest_size=16)
        name = f"{self._prefix}{content.hexdigest()}{SUFFIX}"
        replaces = (
            ()
            if whole
            else tuple(
                each
                for each, held in self._index.items()
                if each != name
                and held.owner == header.owner
                and common(held.tokens, header.tokens) == len(held.tokens)
            )
        )
        return self._writer.put(StateJob(name, header, state, replaces))

    def flush(self, seconds: float) -> bool:
        """Wait until everything that was put is written; False when that takes longer."""
        return self._writer.flush(seconds)

    def close(self, seconds: float = 5.0) -> bool:
        """As ``flush``, then take nothing more."""
        return self._writer.close(seconds)

    def _owner(self, owner: str) -> bytes:
        text = owner.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, key=self._key, digest_size=32).digest()

    def _refresh(self) -> None:
        """Take in what this or another process has written or removed since."""
        try:
            found = self._folder.lstat()
            # The clock of a disk may be too coarse to tell our own last write from the one before.
            seen = (found.st_mtime_ns, self._writer.written)
            if seen == self._seen:
                return
            names = self._names() if stat.S_ISDIR(found.st_mode) else set()
        except OSError:
            seen, names = (-1, -1), set()
        self._seen = seen
        self._ignored &= names
        for gone in self._index.keys() - names:
            del self._index[gone]
        for name in names - self._index.keys() - self._ignored:
            self._take_in(name)

    def _names(self) -> set[str]:
        return {
            name
            for name in os.listdir(self._folder)
            if name.startswith(self._prefix) and name.endswith(SUFFIX)
        }

    def _take_in(self, name: str) -> None:
        try:
            header = read_header(self._folder / name, self._budget)
        except DamagedStateError as error:
            self._damaged(name, error)
        except OSError:
            self._ignored.add(name)
        else:
            if header is None or header.key != self._key:
                self._ignored.add(name)
            else:
                self._index[name] = header

    def _damaged(self, name: str, error: DamagedStateError) -> None:
        _LOG.warning("%s is damaged and was removed: %s", self._folder / name, error)
        self.discard(name)
