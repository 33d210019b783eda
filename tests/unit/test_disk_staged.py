"""Bytes that were read ahead, for whoever reads their files."""

from __future__ import annotations

from threading import Thread

import numpy as np
import pytest

from localrun.disk.staged import Stage
from localrun.formats.extent import Extent
from localrun.formats.reader import BytesSource

FILE = bytes(range(200))
AHEAD = np.arange(100, dtype=np.uint8) ^ np.uint8(255)
WINDOW = (Extent(1, 50, 100), AHEAD)


@pytest.mark.parametrize(
    ("file", "offset", "length", "ahead"),
    [
        (1, 50, 100, True),
        (1, 149, 1, True),
        (1, 60, 0, True),
        (1, 49, 2, False),
        (1, 149, 2, False),
        (1, 0, 200, False),
        (0, 60, 10, False),
    ],
)
def test_only_what_a_window_holds_whole_comes_from_there(
    file: int, offset: int, length: int, ahead: bool
) -> None:
    stage = Stage()
    source = stage.source(file, BytesSource(FILE))

    with stage.holding([(Extent(1, 170, 10), AHEAD[:10]), WINDOW]):
        found = bytes(source.read(offset, length))

    expected = AHEAD.tobytes()[offset - 50 :] if ahead else FILE[offset:]
    assert found == expected[:length]
    assert bytes(source.read(offset, length)) == FILE[offset:][:length]


def test_windows_are_of_one_thread_and_end_with_an_error() -> None:
    stage, seen = Stage(), []
    source = stage.source(1, BytesSource(FILE))

    def failing() -> None:
        with stage.holding([WINDOW]):
            other = Thread(target=lambda: seen.append(bytes(source.read(60, 3))))
            other.start()
            other.join()
            with stage.holding([]):
                seen.append(bytes(source.read(60, 3)))
            seen.append(bytes(source.read(60, 3)))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()

    seen.append(bytes(source.read(60, 3)))
    assert seen == [FILE[60:63], FILE[60:63], AHEAD[10:13].tobytes(), FILE[60:63]]


def test_a_window_is_neither_copied_nor_written_to() -> None:
    stage = Stage()
    source = stage.source(1, BytesSource(FILE))

    with stage.holding([WINDOW]):
        found = np.frombuffer(source.read(60, 30), np.uint8)

    assert np.shares_memory(found, AHEAD)
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1
