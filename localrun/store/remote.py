"""Knows no weights: what a hub model's files say of themselves, read without downloading them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from localrun.config import Settings
from localrun.errors import DownloadError, HeaderError, ModelNotFoundError, UnsafeFormatError
from localrun.formats.header import Header
from localrun.formats.read import join, read_source, require_shards
from localrun.formats.reader import BytesSource, FileSource
from localrun.formats.strict_json import parse_object, read_config
from localrun.ref import HubRef
from localrun.store import hub
from localrun.store.download_stream import Patience, Source
from localrun.store.files import ModelFile, ModelFiles
from localrun.store.hub_address import endpoint
from localrun.store.hub_layout import DEFAULT_REVISION, HubRepo, inside
from localrun.store.remote_cache import HeaderCache, HeadSource, list_bytes, list_of
from localrun.store.remote_source import RemoteFile, Tally, fetch_whole

PARALLEL_FILES = 8
CONFIG_BYTES_MAX = 4 << 20
TEMPLATE_BYTES_MAX = 1 << 20
_CONFIG = "config.json"
_TEMPLATE = "chat_template.jinja"
_TOKENIZER = "tokenizer_config.json"
# The first read of a safetensors shard: together a model's first reads hold the headers of 170,000
# tensors at 140 bytes each.
_FIRST_READS_BYTES = 24 << 20
_FIRST_READ_BYTES = (64 << 10, 512 << 10)
# How far a GGUF's head is read in turn. The reader's own window doubles, so steps between powers of
# two would be read past. A vocabulary of 32,000 ends in the first, of 150,000 in the second.
_GGUF_STEPS = (1 << 20, 8 << 20, 16 << 20, 32 << 20, 64 << 20)
_SPLIT_STEPS = (256 << 10, *_GGUF_STEPS)  # later splits hold no vocabulary


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model of the hub as its headers describe it; ``describe(header, config)`` says the rest.

    config: config.json, None for GGUF and where there is none. chat_template: a safetensors
    model's, where the repository states one (GGUF files carry their own).
    bytes_read: of bodies of the model's files as they arrived, tries that failed included; the
    listing is not counted. requests: for those files. cached: files the header cache answered for.
    All three are 0 for files that are on this disk.
    """

    files: ModelFiles
    header: Header
    config: Mapping[str, object] | None
    chat_template: str | None
    bytes_read: int
    requests: int
    cached: int


def read_remote(
    ref: HubRef,
    settings: Settings,
    *,
    revision: str | None = None,
    patience: Patience | None = None,
) -> RemoteModel:
    """Read what a hub model's files say of themselves by HTTP range requests.

    Asked for are: the listing of the repository, always; the first bytes of each weight file, at
    most 512 KiB of a safetensors shard or 1 MiB of a GGUF, and again where a header is longer (of
    safetensors exactly its rest, of GGUF up to 8, 16, 32, 64 MiB); config.json and the chat
    template of a safetensors model. Nothing else, and nothing of files that are on this disk.

    What was read is kept under ``<cache>/headers`` by the file's digest, which is the hub's entity
    tag of it: the listing tells the tags, a file whose tag is known is not asked for at all, one
    that changed has another tag. Offline, only disk and cache are asked.

    Raises:
        ModelNotFoundError: no such repository, revision or form of it; offline, not in the cache.
        UnsafeFormatError: the weights are pickles or archives.
        HeaderError: a header or config.json is malformed, or tensors do not lie in their file.
        AccessError: gated or private. VerificationError: the server's answers contradict it.
        DownloadError: the hub cannot be reached, stalls, lies about ranges, or ignores them.
        RefError, ConfigError: the revision or HF_ENDPOINT is not one.
    """
    cache = HeaderCache.of(settings)
    with _said_for_headers():
        files = _listed(ref, settings, revision, cache)
        require_shards(len(files.weights))
        reading = _Reading(files, settings, cache, patience or Patience(attempts=3))
        try:
            model = reading.all()
        finally:
            reading.close()
    if not settings.offline:
        _keep_list(cache, ref, revision, files)
        cache.sweep()
    return model


@contextmanager
def _said_for_headers() -> Iterator[None]:
    """A pull continues where it stopped; what to do next is something else here."""
    try:
        yield
    except DownloadError as error:
        if error.hint == DownloadError.hint:
            error.hint = "run the same command again: headers that were read are kept"
        raise


def _listed(
    ref: HubRef, settings: Settings, revision: str | None, cache: HeaderCache
) -> ModelFiles:
    try:
        return hub.resolve(ref, settings, revision)
    except ModelNotFoundError:
        if not settings.offline:
            raise
        key = cache.list_key(ref, revision or DEFAULT_REVISION)
        files = list_of(cache.get(key))
        if files is None:
            raise
        return _found_on_disk(files, HubRepo.of(ref, settings))


def _found_on_disk(files: ModelFiles, repo: HubRepo) -> ModelFiles:
    """With the paths of what the hub cache has by now, as ``hub.resolve`` gives them."""

    def located(file: ModelFile) -> ModelFile:
        pointer = repo.pointer(files.revision or "", file.name)
        there = inside(repo.root, pointer) and pointer.is_file()
        whole = there and pointer.stat().st_size == file.bytes
        return replace(file, path=pointer) if whole else file

    return replace(files, files=tuple(map(located, files.files)))


def _keep_list(cache: HeaderCache, ref: HubRef, revision: str | None, files: ModelFiles) -> None:
    data = list_bytes(files)
    assert isinstance(files.ref, HubRef)
    for name in {ref, files.ref}:
        key = cache.list_key(name, revision or DEFAULT_REVISION)
        if cache.get(key) != data:
            cache.keep(key, data)


class _Reading:
    """The files of one model being read, several at a time. Close it after use."""

    def __init__(
        self, files: ModelFiles, settings: Settings, cache: HeaderCache, patience: Patience
    ) -> None:
        self._files = files
        self._cache = cache
        self._tally = Tally()
        self._hub: Source | None = None
        if not settings.offline:
            self._hub = Source(endpoint(settings.hub_endpoint), settings.hub_token, patience)

    def close(self) -> None:
        if self._hub is not None:
            self._hub.close()

    def all(self) -> RemoteModel:
        with ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="header") as pool:
            try:
                config = pool.submit(self._config)
                template = pool.submit(self._template)
                heads = [
                    pool.submit(self._header, file, self._steps(number))
                    for number, file in enumerate(self._files.weights)
                ]
                _await([config, template, *heads])
            finally:
                if self._hub is not None:
                    self._hub.stop()
                pool.shutdown(wait=False, cancel_futures=True)
        return RemoteModel(
            files=self._files,
            header=join([head.result() for head in heads]),
            config=config.result(),
            chat_template=template.result(),
            bytes_read=self._tally.bytes,
            requests=self._tally.requests,
            cached=self._tally.cached,
        )

    def _steps(self, number: int) -> tuple[int, ...]:
        if self._files.format == "gguf":
            return _SPLIT_STEPS if number else _GGUF_STEPS
        least, most = _FIRST_READ_BYTES
        return (min(max(_FIRST_READS_BYTES // len(self._files.weights), least), most),)

    def _header(self, file: ModelFile, steps: tuple[int, ...]) -> Header:
        name = file.name.rpartition("/")[2]
        if file.path is not None:
            with FileSource(file.path) as source:
                return read_source(source, name)
        key = self._cache.file_key(file)
        kept = self._cache.get(key)
        if kept is not None:
            with suppress(HeaderError, UnsafeFormatError):
                header = read_source(HeadSource(kept, file.bytes), name)
                if header.header_bytes == len(kept):
                    self._tally.found()
                    return header
        remote = RemoteFile(file, self._online(file), self._tally, steps)
        header = read_source(remote, name)
        self._cache.keep(key, remote.read(0, header.header_bytes))
        return header

    def _config(self) -> Mapping[str, object] | None:
        file = self._small(_CONFIG)
        if file is None:
            return None
        if file.bytes > CONFIG_BYTES_MAX:
            problem = f"{file.bytes} bytes are too many for a configuration"
            raise HeaderError("file", 0, problem, file=file.name)
        return read_config(BytesSource(self._whole(file)), file.name)

    def _template(self) -> str | None:
        """A template too long, or a tokenizer's settings that do not parse, state none: nothing
        that is planned depends on it."""
        file = self._small(_TEMPLATE)
        if file is not None and file.bytes <= TEMPLATE_BYTES_MAX:
            return self._whole(file).decode("utf-8", "replace")
        file = self._small(_TOKENIZER)
        if file is None or file.bytes > TEMPLATE_BYTES_MAX:
            return None
        try:
            stated = parse_object(self._whole(file), "tokenizer", 0).get("chat_template")
        except HeaderError:
            return None
        return stated if isinstance(stated, str) else None

    def _small(self, name: str) -> ModelFile | None:
        """A file beside safetensors weights, by its name; a GGUF carries what it would say."""
        if self._files.format == "gguf":
            return None
        return next((file for file in self._files.files if file.name == name), None)

    def _whole(self, file: ModelFile) -> bytes:
        if file.path is not None:
            with FileSource(file.path) as source:
                return source.read(0, min(source.size, file.bytes))
        key = self._cache.file_key(file)
        data = self._cache.get(key)
        if data is not None and len(data) == file.bytes:
            self._tally.found()
            return data
        data = fetch_whole(file, self._online(file), self._tally)
        self._cache.keep(key, data)
        return data

    def _online(self, file: ModelFile) -> Source:
        if self._hub is None:
            raise ModelNotFoundError(
                f"{self._files.ref}: {file.name} is neither on this disk nor in the header cache, "
                "and HF_HUB_OFFLINE forbids asking the hub",
                hint="unset HF_HUB_OFFLINE and run the same command again",
            )
        return self._hub


def _await(running: Sequence[Future[Any]]) -> None:
    """Until all are done or one fails; the first failure in their order is raised."""
    finished, _ = wait(running, return_when=FIRST_EXCEPTION)
    for future in running:
        if future in finished:
            future.result()
