"""Knows no model and no file: the process that renders templates nobody here wrote.

    python -P -m localrun.chat.render_child

Reads requests on stdin and answers on stdout (``render_frames.py``).

The walls, where the operating system has them: 256 MiB of address space, no file can be opened,
none can grow, no process started, and two seconds of processor time a frame for a child whose
parent is gone. The wall-clock deadline is the parent's. macOS does not hold RLIMIT_AS; Windows
has none of these limits: there the deadline, the sandbox and the empty environment remain.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

from localrun.chat.environment import LimitError, RaisedError, TemplateEnvironment
from localrun.chat.render_frames import (
    ADDRESS_SPACE_BYTES,
    CPU_SECONDS,
    MESSAGE_MAX,
    OUTPUT_BYTES_MAX,
    encode,
    read_frame,
    write_frame,
)
from localrun.engine.process.limited import renew_cpu_limit

# What Python raises for a template's mistakes. Anything else ends this process, and the parent
# reports that.
_TEMPLATE_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    StopIteration,
    SyntaxError,
    TypeError,
    ValueError,
)


def main() -> None:
    """Serve frames until stdin ends."""
    # Ctrl-C in the terminal reaches the whole group; the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reader, writer = sys.stdin.buffer, sys.stdout.buffer
    environment = TemplateEnvironment()
    _load_what_rendering_loads_late(environment)
    set_limits()
    write_frame(writer, encode({"ready": True}))
    while (frame := read_frame(reader)) is not None:
        renew_cpu_limit(CPU_SECONDS)
        write_frame(writer, encode(answer(environment, frame)))


def _load_what_rendering_loads_late(environment: TemplateEnvironment) -> None:
    """Once no file can be opened, neither can a module."""
    import pprint  # noqa: F401 - the filter of that name

    import jinja2.debug  # noqa: F401 - imported by jinja2 when a template raises

    environment.render("{{ strftime_now('%c') }}{{ [1]|tojson(indent=1) }}{{ 'a'|urlencode }}", {})


def set_limits() -> None:
    """Take from this process what a template has no use for, for good."""
    try:
        import resource
    except ImportError:
        return
    # Above the descriptors open now, none can be opened; a process counts against its user.
    limits = {"AS": ADDRESS_SPACE_BYTES, "NOFILE": 3, "FSIZE": 0, "NPROC": 0, "CORE": 0}
    for name, value in limits.items():
        kind: int | None = getattr(resource, f"RLIMIT_{name}", None)
        if kind is None:
            continue
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            continue  # the system names the limit without having it


def answer(environment: TemplateEnvironment, frame: bytes) -> dict[str, Any]:
    """Render one frame; a template's fault is an answer, not an end."""
    from jinja2.exceptions import TemplateError

    try:
        request = json.loads(frame)
        text = environment.render(request["template"], request["variables"])
        if len(text.encode("utf-8", "replace")) > OUTPUT_BYTES_MAX:
            raise LimitError(f"the rendered text is longer than {OUTPUT_BYTES_MAX} bytes")
    except RaisedError as error:
        return _error("raised", str(error))
    except LimitError as error:
        return _error("limit", str(error))
    except MemoryError:
        return _error("limit", f"more than {ADDRESS_SPACE_BYTES} bytes of memory")
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        where = f" (line {line})" if line else ""
        return _error("failed", f"{error.message or type(error).__name__}{where}")
    except _TEMPLATE_FAULTS as error:
        return _error("failed", f"{type(error).__name__}: {error}")
    return {"text": text}


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"error": kind, "message": message[:MESSAGE_MAX]}


if __name__ == "__main__":
    main()
