"""A long command that is asked to end does so as by Ctrl-C, and says how to go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from localrun.cli.ending import resumable, stoppable
from localrun.errors import DiskFullError, LocalrunError, UsageError
from localrun.quantize.part import part_of


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without asking it")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_end_is_an_interrupt_and_only_inside(name: str) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)

    def asked_to_end() -> None:
        with stoppable():
            os.kill(os.getpid(), number)
            signal.pause()

    with pytest.raises(KeyboardInterrupt):
        asked_to_end()
    assert signal.getsignal(number) == before


@pytest.mark.skipif(os.name == "nt", reason="there is no such signal")
def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("error", "left", "told"),
    [
        (KeyboardInterrupt(), True, True),
        (LocalrunError("the disk"), True, True),
        (LocalrunError("the disk"), False, False),
        (UsageError("other settings"), True, False),
    ],
    ids=["interrupt", "failure", "nothing is left", "a message that says it itself"],
)
def test_what_is_left_is_said(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    left: bool,
    told: bool,
) -> None:
    out = tmp_path / "out.gguf"
    if left:
        part_of(out).write_bytes(b"half")
    with pytest.raises(type(error)), resumable(out):
        raise error
    noted = capsys.readouterr().err
    assert ("--resume" in noted, str(part_of(out)) in noted) == (told, told)


@pytest.mark.parametrize("left", [True, False])
def test_a_full_disk_is_answered_with_the_flag_that_goes_on(tmp_path: Path, left: bool) -> None:
    out = tmp_path / "out.gguf"
    if left:
        part_of(out).write_bytes(b"half")
    with pytest.raises(DiskFullError) as info, resumable(out):
        raise DiskFullError(str(out), 1)
    assert info.value.hint.endswith("--resume") == left
