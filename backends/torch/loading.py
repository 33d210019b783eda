"""Knows no sequence: a plan's files → a model with its weights where they are computed.

Experts that are kept singly stay in their files until somebody picks them; so do tables on disk.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from localrun.backends.files import files_of
from localrun.backends.texts import Texts
from localrun.backends.torch.architectures import architecture
from localrun.backends.torch.interrupt import Interrupt
from localrun.backends.torch.library import failures, give_back_memory, keep_freed_memory
from localrun.backends.torch.matrices.kernels import Kernels
from localrun.backends.torch.model import Model, Setup
from localrun.backends.torch.tensors import Tensors
from localrun.backends.torch.tiers.store import ExpertStore
from localrun.disk.opening import open_reader
from localrun.disk.staged import Stage
from localrun.errors import HeaderError
from localrun.hardware.pressure import Pressure
from localrun.models.bare import flat
from localrun.releases.checkpoint import Checkpoint
from localrun.releases.read import Source, open_source, release_of
from localrun.releases.stored.release import weights_of


@dataclass(frozen=True, slots=True)
class Singly:
    """Experts that are kept singly: ``slots`` of each layer, ``card_slots`` of them on the device,
    others read into ``staging_bytes`` on their way. ``mirrors`` are directories with copies of the
    files."""

    slots: int
    card_slots: int = 0
    staging_bytes: int = 0
    mirrors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, its tokenizer, what ends a step of it, the threads of its products, and its files,
    held open as long as rows and experts are read from them."""

    model: Model
    texts: Texts
    setup: Setup
    interrupt: Interrupt
    kernels: Kernels
    source: Source

    def close(self) -> None:
        """Give everything back. Again does nothing."""
        self.model.close()
        _close(self.setup)
        self.kernels.close()
        self.source.close()
        give_back_memory()


def _close(setup: Setup) -> None:
    if setup.experts is not None:
        setup.experts.close()
    if setup.reader is not None:
        setup.reader.close()


def read_model(paths: tuple[str, ...], setup: Setup, singly: Singly | None = None) -> Loaded:
    """The model of ``paths``, shards in order, with its config and tokenizer.

    Raises:
        HeaderError: a file is torn; a tensor is missing, is too many, or has another shape; a field
            of the config is not understood.
        UsageError: no such model here. SourceError: a weight that is no number.
        OutOfMemoryError, EngineError: torch's.
    """
    if setup.device.type == "cpu":
        keep_freed_memory()
    stage = Stage()
    source = open_source(files_of(paths), stage=stage)
    try:
        with torch.no_grad(), failures(setup.device, "the load"):
            return _built(source, setup, singly, stage)
    except HeaderError as error:
        source.close()
        raise (error if error.file else error.in_file(str(source.folder))) from None
    except BaseException:
        source.close()
        raise


def _built(source: Source, setup: Setup, singly: Singly | None, stage: Stage) -> Loaded:
    weights = weights_of(source) if isinstance(source, Checkpoint) else {}
    release = release_of(source, weights)
    config = flat(release.config)
    kind = config.text("model_type")
    if kind is None:
        raise config.absent("model_type")
    interrupt, kernels = Interrupt(), Kernels(setup.threads)
    with ExitStack() as undo:
        undo.callback(kernels.close)
        setup = replace(setup, kernels=kernels, interrupt=interrupt)
        if singly is not None or setup.engram == "disk":
            setup = _reading(source, setup, singly, stage)
        undo.callback(_close, setup)
        tensors = Tensors(release, setup)
        undo.callback(tensors.close)
        model = architecture(kind).build(config, tensors)
        texts = Texts(release.beside, config.values, model.vocabulary, str(source.folder))
        undo.pop_all()
    if setup.reader is not None:
        # What streams needs the memory that copies of what was loaded would take.
        source.forget()
    return Loaded(model, texts, setup, interrupt, kernels, source)


def _reading(source: Source, setup: Setup, singly: Singly | None, stage: Stage) -> Setup:
    """With what reads from disk while the model runs."""
    mirrors = tuple(map(Path, singly.mirrors)) if singly else ()
    reader = open_reader(source.paths, mirrors=mirrors)
    store = None
    if singly is not None:
        store = ExpertStore(
            reader,
            stage,
            slots=singly.slots,
            card_slots=singly.card_slots,
            staging_bytes=singly.staging_bytes,
            interrupt=setup.interrupt,
            pressure=Pressure().sample,
        )
    return replace(setup, reader=reader, experts=store)
