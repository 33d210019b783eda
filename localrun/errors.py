"""Knows no other module: the one tree of errors a user can meet.

Each class carries the exit code of the command line, the status of the HTTP port and a hint: one
line that says what to do next. The message says what happened and to which file, flag or field.

LocalrunError                     1 · 500
├── UsageError                    2 · 400   a flag, field or file of the user's cannot be meant
│   ├── RefError                  2 · 400   a model reference does not parse
│   ├── ConfigError               2 · 500   config.toml or an environment variable
│   └── RequestError              2 · 400   a generation request that cannot be served as asked
│       ├── ContextLengthError    2 · 400   prompt and context, both numbers
│       └── GrammarError          2 · 400   a grammar that cannot be compiled or followed
├── ModelNotFoundError            3 · 404   nothing by that name, with the nearest names
├── PlanError                     2 · 400   no plan can be made
│   ├── PlanRequestError          2 · 400   constraints that contradict each other or the machine
│   └── DoesNotFitError           4 · 503   the plan needs more than the machine has
│       └── MemoryInUseError      4 · 503   models with requests under way hold it
├── SourceError                   5 · 502   what a download, a file or a store holds
│   ├── DownloadError             5 · 502   the network or the hub
│   │   └── AccessError           5 · 502   gated or private: a token is needed
│   ├── VerificationError         5 · 502   bytes differ from their published digest
│   ├── HeaderError               5 · 422   a header field, with its offset
│   └── UnsafeFormatError         5 · 422   pickles and archives: refused unread
├── DiskFullError                 1 · 507   with the bytes that were needed
├── BackendMissingError           6 · 503   a library is absent, with the command that installs it
├── EngineError                   1 · 500   generation failed
│   ├── OutOfMemoryError          4 · 503   a runner's library got no memory, with the bytes
│   ├── DiskReadError             1 · 503   weights that stream could not be read: file and offset
│   ├── EngineCrashedError        1 · 503   the engine's process ended under a request
│   ├── BusyError                 1 · 429   the queue is full
│   └── TemplateError             1 · 500   a chat template failed or broke its limits
│       └── ConversationRefusedError  1 · 400   it takes no such conversation
└── ServerError                   1 · 500   the port: in use, not running
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class LocalrunError(Exception):
    """Root of the tree. ``hint`` may be replaced for one instance by keyword."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    hint: str = "run the same command with --verbose and look at the last lines"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if hint is not None:
            self.hint = hint


class UsageError(LocalrunError):
    """A flag, field or file of the user's cannot be meant."""

    exit_code = 2
    http_status = 400
    hint = "see --help for what is accepted"


class RefError(UsageError):
    """A model reference does not parse."""

    hint = (
        "a reference is NAME, ORG/REPO[:QUANT], hf:ORG/REPO[:QUANT], ORG/REPO/FILE.gguf, "
        "pip:PACKAGE or a path"
    )


class ConfigError(UsageError):
    """config.toml or an environment variable holds what no setting accepts."""

    http_status = 500
    hint = "correct or remove that line; a key is the name of a flag"


class RequestError(UsageError):
    """A generation request cannot be served as asked. ``field`` is at fault, where known."""

    hint = "change the named field"

    def __init__(self, message: str, *, hint: str | None = None, field: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.field = field


class ContextLengthError(RequestError):
    """The prompt does not fit the context. It is never cut silently."""

    hint = "shorten the prompt or raise --ctx"

    def __init__(self, prompt_tokens: int, n_ctx: int, *, at_least: bool = False) -> None:
        """``at_least``: nobody counted further, as this is too many already."""
        count = f"at least {prompt_tokens}" if at_least else f"{prompt_tokens}"
        # The last words are llama.cpp's: clients know by them that a shorter prompt would do.
        super().__init__(
            f"the prompt has {count} tokens, the context holds {n_ctx}: "
            "it exceeds the available context size"
        )
        self.prompt_tokens = prompt_tokens
        self.n_ctx = n_ctx


class GrammarError(RequestError):
    """A grammar, schema or pattern that cannot be compiled, or not followed further."""

    hint = "correct or simplify it"

    def __init__(self, kind: str, problem: str, *, hint: str | None = None) -> None:
        super().__init__(f"{kind}: {problem}", hint=hint)


class ModelNotFoundError(LocalrunError):
    """No model by that name, here or at its source. ``nearest`` holds up to three names."""

    exit_code = 3
    http_status = 404
    hint = "`localrun list` shows what is on disk"

    def __init__(
        self, message: str, *, nearest: tuple[str, ...] = (), hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.nearest = nearest


class PlanError(LocalrunError):
    """No plan can be made."""

    exit_code = 2
    http_status = 400
    hint = "`localrun plan --help` lists what can be asked for"


class PlanRequestError(PlanError):
    """What was asked for contradicts itself or the machine. Names the flag."""

    hint = "leave the flag out, or change it"


class DoesNotFitError(PlanError):
    """The plan needs more memory than the machine has.

    ``shortfall`` maps a tier to the bytes it lacks.
    """

    exit_code = 4
    http_status = 503
    hint = "lower --ctx or choose a smaller quantization"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        shortfall: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.shortfall = dict(shortfall or {})


class MemoryInUseError(DoesNotFitError):
    """Models with requests under way hold the memory that one more would need. Names them."""

    hint = "send the request again when theirs have ended"


class SourceError(LocalrunError):
    """What a download, a model file or a store holds cannot be used."""

    exit_code = 5
    http_status = 502
    hint = "pull the model again"


class DownloadError(SourceError):
    """The network or the hub failed; what has arrived is kept for the next try."""

    hint = "run the same pull again: it continues where it stopped"


class AccessError(DownloadError):
    """The repository is gated or private."""

    hint = "accept the model's terms on its page and set HF_TOKEN"


class VerificationError(SourceError):
    """Bytes differ from their published digest; they were discarded."""

    hint = "pull again; if it repeats, the source or a proxy on the way serves wrong bytes"


class HeaderError(SourceError):
    """A model file's header is malformed. Names the field and the byte offset."""

    http_status = 422
    hint = "damaged or hostile: get the GGUF or safetensors files again from a source you trust"

    def __init__(self, field: str, offset: int, problem: str, *, file: str = "") -> None:
        where = f"{file}: " if file else ""
        super().__init__(f"{where}{field} at byte {offset}: {problem}")
        self.field = field
        self.offset = offset
        self.problem = problem
        self.file = file

    def in_file(self, file: str) -> HeaderError:
        """The same finding, with the file's name in front."""
        return HeaderError(self.field, self.offset, self.problem, file=file)


class UnsafeFormatError(SourceError):
    """A pickle, an archive or remote code: refused without being read."""

    http_status = 422
    hint = "use the model's GGUF or safetensors files"


class DiskFullError(LocalrunError):
    """A write failed for want of space; nothing was published."""

    http_status = 507
    hint = "free some space and run the same command again: it continues where it stopped"

    def __init__(self, place: str, needed_bytes: int) -> None:
        super().__init__(f"no space left in {place}: {needed_bytes} more bytes are needed")
        self.place = place
        self.needed_bytes = needed_bytes


class BackendMissingError(LocalrunError):
    """A runner's library is not installed. The hint is the command that installs it."""

    exit_code = 6
    http_status = 503
    hint = "`localrun doctor` prints the command that installs it"


class EngineError(LocalrunError):
    """Generation failed."""

    hint = "try again; `localrun doctor` checks the installation"


class OutOfMemoryError(EngineError):
    """A runner's library asked for memory and got none.

    ``needed_bytes`` is what the allocation that failed on ``tier`` asked for, 0 where the library
    did not say; ``held_bytes`` is what the load had taken there before.
    """

    exit_code = 4
    http_status = 503
    hint = "close other programs, lower --ctx or choose a smaller quantization"

    def __init__(
        self,
        message: str,
        *,
        tier: str = "ram",
        needed_bytes: int = 0,
        held_bytes: int = 0,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.tier = tier
        self.needed_bytes = needed_bytes
        self.held_bytes = held_bytes


class DiskReadError(EngineError):
    """A read of weights failed, ended early or took too long while the model ran. ``file`` is the
    path, ``offset`` where the read began; whoever knows adds the tensor."""

    http_status = 503
    hint = "look after the disk and the file; the next request tries again"

    def __init__(self, file: str, offset: int, problem: str, *, tensor: str = "") -> None:
        named = f"{tensor}: " if tensor else ""
        super().__init__(f"{named}{file}, offset {offset}: {problem}")
        self.file, self.offset, self.problem, self.tensor = file, offset, problem, tensor

    def of(self, tensor: str) -> DiskReadError:
        """The same, naming what was read."""
        return DiskReadError(self.file, self.offset, self.problem, tensor=tensor)


class EngineCrashedError(EngineError):
    """The engine's process ended under a request; it is started again for the next one."""

    http_status = 503
    hint = "send the request again: the engine restarts"


class BusyError(EngineError):
    """The queue is full."""

    http_status = 429
    hint = "wait for a running request to finish"


class TemplateError(EngineError):
    """The model's chat template failed or broke its limits."""

    hint = "the model's chat template is at fault; another conversion may carry a good one"


class ConversationRefusedError(TemplateError):
    """The model's chat template takes no conversation of this shape, and says why."""

    http_status = 400
    hint = "change the conversation, or use a model whose template takes it"


class ServerError(LocalrunError):
    """The port could not be opened, or no server answers."""

    hint = "choose another port with --port, or see `localrun ps`"
