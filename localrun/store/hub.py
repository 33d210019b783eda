"""Knows no bytes of a model: what the hub says a repository holds.

Names, revisions and metadata come through huggingface_hub
(https://huggingface.co/docs/huggingface_hub/package_reference/hf_api); a stranger wrote them, so
each is judged here before anything else sees it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localrun.config import Settings
from localrun.errors import (
    AccessError,
    DownloadError,
    LocalrunError,
    ModelNotFoundError,
    UnsafeFormatError,
    VerificationError,
)
from localrun.formats.read import PICKLE_SUFFIXES
from localrun.ref import HubRef
from localrun.store import hub_cache
from localrun.store.files import Digest, ModelFile, ModelFiles, Role
from localrun.store.hub_address import Endpoint, endpoint, tls
from localrun.store.hub_choice import canonical, needed, select
from localrun.store.hub_layout import COMMIT, DEFAULT_REVISION, HubRepo, blob_name, inside
from localrun.store.layout import name_problem
from localrun.store.quants import Grouped, group

if TYPE_CHECKING:
    import httpx2

METADATA_TIMEOUT_S = 20.0
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,79}\Z")


def resolve(ref: HubRef, settings: Settings, revision: str | None = None) -> ModelFiles:
    """Ask the hub which files a reference means: weights, and the small files they need.

    ``revision`` is a branch, tag or commit, ``main`` without. Files that the cache already holds at
    that commit have their ``path``. The result's ``ref`` names the quantization that was chosen.
    Offline, the cache alone answers.

    Raises:
        RefError: the revision is not a name.
        ConfigError: HF_ENDPOINT is not an address that may be asked.
        ModelNotFoundError: no such repository, revision, file or quantization, with what exists.
        AccessError: gated or private.
        UnsafeFormatError: the weights exist as pickles only.
        VerificationError: the hub's answer names files or digests that cannot be.
        DownloadError: the hub cannot be reached or does not answer sensibly.
    """
    repo = HubRepo.of(ref, settings)
    if revision is not None and not COMMIT.match(revision):
        repo.ref(revision)
    if settings.offline:
        found = hub_cache.find(ref, settings, revision)
        if found is None:
            raise ModelNotFoundError(
                f"{ref} is not in the hub cache, and HF_HUB_OFFLINE forbids asking the hub"
            )
        return found
    hub = endpoint(settings.hub_endpoint)
    info = _ask(ref, hub, settings.hub_token, revision)
    commit = info.sha
    if not isinstance(commit, str) or not COMMIT.match(commit):
        raise VerificationError(f"{ref.repo_id}: {str(commit)[:80]!r} is not a commit")
    files = {file.name: file for file in _listed(ref, info)}
    grouped = group((file.name, file.bytes) for file in files.values())
    _refuse_pickles(ref, grouped, tuple(files))
    variant = select(ref, grouped)
    wanted = needed(grouped, variant, tuple(files))
    return ModelFiles(
        ref=canonical(ref, grouped, variant),
        origin="hub",
        format=variant.format,
        files=tuple(
            _located(files[name], role, repo, commit, hub) for name, role in wanted.items()
        ),
        revision=commit,
        licence=_licence(info),
        quants=grouped.tags,
    )


def _ask(ref: HubRef, hub: Endpoint, token: str | None, revision: str | None) -> Any:
    import huggingface_hub
    from huggingface_hub import constants

    # Else the library fetches a list for its telemetry before it asks for anything.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    huggingface_hub.set_client_factory(_guarded(hub))
    api = huggingface_hub.HfApi(endpoint=hub.url, token=token or False)
    with hub_errors(ref, token is not None):
        return api.model_info(
            ref.repo_id,
            revision=revision or DEFAULT_REVISION,
            files_metadata=True,
            timeout=METADATA_TIMEOUT_S,
        )


def _guarded(hub: Endpoint) -> Callable[[], httpx2.Client]:
    """huggingface_hub's client, with every address judged before it is asked, redirects too."""

    def make() -> httpx2.Client:
        import httpx2

        def check(request: httpx2.Request) -> None:
            hub.check(str(request.url))

        return httpx2.Client(
            event_hooks={"request": [check]},
            follow_redirects=True,
            max_redirects=5,
            verify=tls(),
            timeout=METADATA_TIMEOUT_S,
            trust_env=not hub.local,  # no proxy reaches this machine's own port
        )

    return make


@contextmanager
def hub_errors(ref: HubRef, with_token: bool) -> Iterator[None]:
    """Turn what huggingface_hub and its HTTP client raise into this project's errors."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except LocalrunError:
        raise
    except errors.GatedRepoError as error:
        raise AccessError(f"{ref.repo_id} is gated: its authors must let you in first") from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFoundError(f"{ref.repo_id} has no such revision") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"the hub knows no repository {ref.repo_id}",
            hint="check the spelling; a private one needs a token of its owner in HF_TOKEN"
            if not with_token
            else "check the spelling, and that your token may see it",
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise DownloadError(f"{ref.repo_id}: HF_HUB_OFFLINE forbids asking the hub") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise AccessError(f"the hub refuses access to {ref.repo_id} ({status})") from error
        if status == 404:
            raise ModelNotFoundError(f"the hub knows no repository {ref.repo_id}") from error
        raise DownloadError(f"the hub answers {status} for {ref.repo_id}") from error
    except httpx2.TimeoutException as error:
        raise DownloadError(f"the hub did not answer in time for {ref.repo_id}") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise DownloadError(f"the hub cannot be reached for {ref.repo_id}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DownloadError(
            f"the hub's answer for {ref.repo_id} makes no sense: {error}"
        ) from error


def _listed(ref: HubRef, info: Any) -> Iterator[ModelFile]:
    for sibling in info.siblings or ():
        name = sibling.rfilename
        problem = name_problem(name) if isinstance(name, str) else "is not text"
        if problem is not None and _may_be_needed(name):
            raise VerificationError(
                f"{ref.repo_id}: file name {name!r} {problem}",
                hint="the repository is hostile or damaged; take the model from another one",
            )
        if problem is None:
            yield _described(ref, sibling)


def _may_be_needed(name: object) -> bool:
    """Odd names that merely document a model do not spoil it; any other one does."""
    harmless = (".md", ".txt", ".png", ".jpg", ".jpeg", ".svg", ".gif", ".pdf", ".gitattributes")
    if not isinstance(name, str) or not name.lower().endswith(harmless):
        return True
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or not name.isprintable() or name.startswith(("/", "\\"))


def _described(ref: HubRef, sibling: Any) -> ModelFile:
    lfs = sibling.lfs
    size = lfs.size if lfs is not None else sibling.size
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 62:
        raise VerificationError(
            f"{ref.repo_id}: {sibling.rfilename} has no sensible size: {size!r}"
        )
    value = lfs.sha256 if lfs is not None else sibling.blob_id
    digest = Digest("sha256" if lfs is not None else "git-blob", str(value))
    return ModelFile(name=sibling.rfilename, bytes=size, role="other", digest=digest)


def _refuse_pickles(ref: HubRef, grouped: Grouped, names: tuple[str, ...]) -> None:
    if grouped.variants or grouped.broken:
        if ref.file is not None and ref.file.lower().endswith(PICKLE_SUFFIXES):
            raise UnsafeFormatError(f"{ref.repo_id}: {ref.file} is a pickle or may hold one")
        return
    pickles = [name for name in names if name.lower().endswith(PICKLE_SUFFIXES)]
    if pickles:
        raise UnsafeFormatError(
            f"{ref.repo_id} holds its weights as pickles only ({pickles[0]}), which run code",
            hint="look for a conversion of this model to safetensors or GGUF",
        )
    raise ModelNotFoundError(f"{ref.repo_id} holds no GGUF or safetensors weights")


def _located(file: ModelFile, role: Role, repo: HubRepo, commit: str, hub: Endpoint) -> ModelFile:
    from huggingface_hub import hf_hub_url

    assert file.digest is not None
    blob_name(file.digest)
    url = hf_hub_url(f"{repo.org}/{repo.repo}", file.name, revision=commit, endpoint=hub.url)
    pointer = repo.pointer(commit, file.name)
    return replace(file, role=role, url=url, path=_if_whole(pointer, file, repo))


def _if_whole(pointer: Path, file: ModelFile, repo: HubRepo) -> Path | None:
    if inside(repo.root, pointer) and pointer.is_file() and pointer.stat().st_size == file.bytes:
        return pointer
    return None


def _licence(info: Any) -> str | None:
    card = info.card_data
    named = getattr(card, "license", None) if card is not None else None
    if named == "other" and isinstance(getattr(card, "license_name", None), str):
        named = card.license_name
    if named is None:
        tags = [tag for tag in info.tags or () if isinstance(tag, str)]
        named = next((t.removeprefix("license:") for t in tags if t.startswith("license:")), None)
    return named if isinstance(named, str) and _LICENCE.match(named) else None
