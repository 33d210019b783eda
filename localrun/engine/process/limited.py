"""Knows no work: processes that do what a stranger's text asks for, and may be killed for it.

The parent starts them, gives each exchange a deadline, and ends them; they themselves renew the
limit on their processor time, which holds where no parent is left to watch.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


def spawn(module: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """``python -P -m module`` with pipes for its input and output and nothing else of ours."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(environment),
        # A console window would open beside a full-screen program on Windows.
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def end(child: subprocess.Popen[bytes]) -> None:
    """Kill it; no process and no descriptor of it is left."""
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except OSError:
            continue  # what was still buffered has no reader any more


@dataclass(slots=True)
class Deadline:
    """Kills a process after a while; ``expired`` is settled once ``end`` has returned."""

    process: subprocess.Popen[bytes]
    seconds: float
    expired: bool = False
    _timer: threading.Timer = field(init=False)

    def __post_init__(self) -> None:
        self._timer = threading.Timer(self.seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def _expire(self) -> None:
        self.expired = True
        self.process.kill()

    def end(self) -> bool:
        """Stop the clock; True where it had run out."""
        self._timer.cancel()
        self._timer.join()
        return self.expired


def renew_cpu_limit(seconds: int) -> None:
    """In the child, before each piece of work: the limit counts over a process's whole life."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + 1 + seconds
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard == resource.RLIM_INFINITY or soft < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
