"""Knows no route: what a model's header says, as clients of the port ask for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from localrun.chat.reasoning import thinks
from localrun.chat.tools.families import takes_tools
from localrun.cli.lookup import Found, described
from localrun.models.spec import ModelSpec
from localrun.server.models import Capability, ModelFacts

if TYPE_CHECKING:
    from localrun.store.files import ModelFiles

_REMEMBERED: Final = 1024
# Path, size and time of change of each file with weights.
_State = tuple[tuple[str, int, int], ...]


class KnownFacts:
    """Facts by a model's name; a header is read again only where its files have changed.

    Clients ask for those of all models at once, and often; reading one takes a tenth of a second.
    ``find`` says where the files are and raises where they are not.
    """

    def __init__(self, find: Callable[[str], ModelFiles]) -> None:
        self._find = find
        self._known: dict[str, tuple[_State, ModelFacts]] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str) -> ModelFacts:
        """May read the disk.

        Raises:
            ModelNotFoundError: none is called that. HeaderError: its header is malformed.
        """
        files = self._find(name)
        state = _state(files)
        with self._lock:
            known = self._known.get(name)
        if known is not None and known[0] == state:
            return replace(known[1], id=name)
        facts = facts_of(name, described(files))
        with self._lock:
            self._known.pop(name, None)
            while len(self._known) >= _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[name] = state, facts
        return facts


def _state(files: ModelFiles) -> _State:
    seen = []
    for file in files.weights:
        if file.path is not None and file.path.exists():
            found = file.path.stat()
            seen.append((str(file.path), found.st_size, found.st_mtime_ns))
    return tuple(seen)


def facts_of(name: str, found: Found) -> ModelFacts:
    """``name`` is what it is served as."""
    spec = found.spec
    template = found.chat_template or spec.chat_template
    weights = found.files.weights if found.files else ()
    digests = [file.digest for file in weights if file.digest is not None]
    sums = [digest.value for digest in digests if digest.kind == "sha256"]
    licence = found.files.licence if found.files else None
    return ModelFacts(
        id=name,
        architecture=spec.architecture,
        format=found.format,
        quantization=spec.quantization,
        parameters=spec.parameters,
        bytes=sum(file.bytes for file in weights),
        sha256=sums[0] if sums else "",
        n_ctx_train=spec.n_ctx_train,
        width=spec.width,
        chat_template=template,
        capabilities=frozenset(_capabilities(spec, template)),
        fields=_fields(spec),
        licence=licence or spec.licence or "",
    )


def _capabilities(spec: ModelSpec, template: str | None) -> list[Capability]:
    if spec.encoder:
        return ["embedding"]
    found: list[Capability] = ["completion"]
    if takes_tools(template):
        found.append("tools")
    if spec.tokenizer is not None and spec.tokenizer.fills_gaps:
        found.append("insert")
    if thinks(template):
        found.append("thinking")
    return found


def _fields(spec: ModelSpec) -> dict[str, str | int | float | bool]:
    """By the names that GGUF files have for them, whatever the format is."""
    name = spec.architecture
    fields: dict[str, str | int | float | bool] = {
        "general.architecture": name,
        "general.name": spec.name,
        "general.parameter_count": spec.parameters,
        f"{name}.context_length": spec.n_ctx_train,
        f"{name}.embedding_length": spec.width,
        f"{name}.block_count": spec.layers,
        f"{name}.attention.head_count": spec.heads,
        f"{name}.feed_forward_length": spec.ffn_width,
        f"{name}.vocab_size": spec.vocabulary,
    }
    if spec.experts:
        fields[f"{name}.expert_count"] = spec.experts
        fields[f"{name}.expert_used_count"] = spec.experts_used
    if spec.tokenizer is not None:
        fields["tokenizer.ggml.model"] = spec.tokenizer.model
        fields["tokenizer.ggml.pre"] = spec.tokenizer.pre
    return {key: value for key, value in fields.items() if value not in (0, "")}
