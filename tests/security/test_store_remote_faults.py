"""Row D1 for headers read from afar: a hub that lies costs an error that names the file."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from localrun.config import Settings
from localrun.errors import (
    AccessError,
    ConfigError,
    DownloadError,
    HeaderError,
    LocalrunError,
    ModelNotFoundError,
    UnsafeFormatError,
    VerificationError,
)
from localrun.formats import limits
from localrun.ref import HubRef
from localrun.store import remote_source
from localrun.store.download_stream import Patience, Source
from localrun.store.hub import resolve
from localrun.store.hub_address import endpoint
from localrun.store.remote import CONFIG_BYTES_MAX, read_remote
from localrun.store.remote_cache import HeaderCache, list_bytes
from localrun.store.remote_source import RemoteFile, Tally
from tests.gguf_builder import (
    gguf_bytes,
    llama_metadata,
    raw_safetensors,
    safetensors_bytes,
    split_gguf,
    u64,
)
from tests.hub_stub import Fault, HubStub

REF = HubRef("org", "repo")
NAMES = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
SHORT, LONG = NAMES
FIRST = 512 << 10
# The first shard's header ends in the first read, the second's needs another.
FILES = {
    SHORT: safetensors_bytes([("a", (512, 512), "F32")]),
    LONG: safetensors_bytes([("b", (512, 512), "F32")], {"notes": "x" * 600_000}),
    "config.json": b'{"model_type": "llama"}',
}
GOOD = Fault("good")
ALWAYS = None


def patience(stall_s: float = 30) -> Patience:
    return Patience(stall_s=stall_s, connect_s=5, attempts=3, sleep=lambda _: None)


@pytest.fixture
def hub() -> Iterator[HubStub]:
    with HubStub() as stub:
        stub.add("org/repo", FILES)
        yield stub


@pytest.fixture
def here(hub: HubStub, tmp_path: Path) -> Settings:
    return hub.settings(tmp_path)


def fails(
    here: Settings, error: type[LocalrunError], match: str, *, stall_s: float = 30
) -> LocalrunError:
    with pytest.raises(error, match=match) as caught:
        read_remote(REF, here, patience=patience(stall_s))
    assert caught.value.exit_code in (3, 5)
    assert "pull again: it continues" not in caught.value.hint
    return caught.value


def stall_s(faults: list[Fault], short: float) -> float:
    """Where nothing stalls, a busy machine must not look as if it did."""
    return short if any(fault.kind in ("stall", "hold") for fault in faults) else 30


Case = tuple[list[Fault], type[LocalrunError], str]
# What a header's first or second range may meet, and what the message says besides the file.
LIES: dict[str, Case] = {
    "Range ignored": ([Fault("full")], DownloadError, "HTTP range requests only"),
    "no Content-Range": ([Fault("bare")], DownloadError, "Content-Range"),
    "Content-Range of another range": ([Fault("range")], DownloadError, "Content-Range"),
    "Content-Range of a larger file": ([Fault("total")], DownloadError, "the hub promised"),
    "another length": ([Fault("length")], DownloadError, "were expected"),
    "no bytes": ([Fault("empty")], DownloadError, "were expected"),
    "more bytes than promised": ([Fault("extra")], VerificationError, "more than the"),
    "always fewer bytes than promised": (
        [Fault("short", times=ALWAYS)],
        DownloadError,
        "promised bytes arrived",
    ),
    "gzip": ([Fault("gzip")], DownloadError, "encoding 'gzip'"),
    "404": ([Fault("missing")], DownloadError, "404"),
    "401": ([Fault("gated")], AccessError, "401"),
    "403": ([Fault("status", at=403)], AccessError, "403"),
    "416": ([Fault("status", at=416)], DownloadError, "416"),
    "204": ([Fault("status", at=204)], DownloadError, "204"),
    "always overloaded": ([Fault("status", at=503, times=ALWAYS)], DownloadError, "503"),
    "always stalled": ([Fault("stall", times=ALWAYS)], DownloadError, "nothing arrived for"),
    "always stalled on the way": (
        [Fault("hold", at=1000, times=ALWAYS)],
        DownloadError,
        "nothing arrived for",
    ),
    "always cut at once": ([Fault("cut", times=ALWAYS)], DownloadError, "connection broke"),
    "redirected in a circle": (
        [Fault("redirect", to="?", times=ALWAYS)],
        DownloadError,
        "redirects",
    ),
    "redirected to a file of this disk": (
        [Fault("redirect", to="file:///etc/passwd")],
        DownloadError,
        "neither https nor http",
    ),
    "redirected to plain http elsewhere": (
        [Fault("redirect", to="http://169.254.169.254/")],
        DownloadError,
        "not encrypted",
    ),
}


@pytest.mark.parametrize(("faults", "error", "said"), LIES.values(), ids=LIES)
@pytest.mark.parametrize(
    ("name", "before"),
    [(SHORT, []), (LONG, [GOOD])],
    ids=["at the first read", "at the second read"],
)
def test_a_hub_that_lies_about_a_range_is_refused_and_the_next_look_works(
    hub: HubStub,
    here: Settings,
    name: str,
    before: list[Fault],
    faults: list[Fault],
    error: type[LocalrunError],
    said: str,
) -> None:
    hub.fault(name, *before, *faults)

    raised = fails(here, error, said, stall_s=stall_s(faults, 0.2))

    assert name in raised.message
    hub.fault(name)
    found = read_remote(REF, here, patience=patience())
    assert [tensor.name for tensor in found.header.tensors] == ["a", "b"]
    assert found.config == {"model_type": "llama"}


SMALL_LIES: dict[str, Case] = {
    "a part": ([Fault("range")], DownloadError, "a part where all was asked for"),
    "wrong bytes": ([Fault("wrong")], VerificationError, "was promised"),
    "another length": ([Fault("length")], DownloadError, "were expected"),
    "more bytes than promised": ([Fault("extra")], VerificationError, "more than the"),
    "gzip": ([Fault("gzip")], DownloadError, "encoding 'gzip'"),
    "404": ([Fault("missing")], DownloadError, "404"),
    "always stalled": ([Fault("stall", times=ALWAYS)], DownloadError, "nothing arrived for"),
}


@pytest.mark.parametrize(("faults", "error", "said"), SMALL_LIES.values(), ids=SMALL_LIES)
def test_a_hub_that_lies_about_the_configuration_is_refused(
    hub: HubStub, here: Settings, faults: list[Fault], error: type[LocalrunError], said: str
) -> None:
    hub.fault("config.json", *faults)

    raised = fails(here, error, said, stall_s=stall_s(faults, 0.2))

    assert "config.json" in raised.message
    hub.fault("config.json")
    assert read_remote(REF, here, patience=patience()).config == {"model_type": "llama"}


PASSING: dict[str, list[Fault]] = {
    "overloaded": [Fault("status", at=503), Fault("status", at=429)],
    "cut": [Fault("cut", at=1000)],
    "stalled": [Fault("stall")],
    "stalled on the way": [Fault("hold", at=1000)],
    "fewer bytes than promised": [Fault("short")],
    "redirected by name alone": [Fault("redirect", to="?again")],
}


@pytest.mark.parametrize("faults", PASSING.values(), ids=PASSING)
def test_trouble_that_passes_costs_another_request_and_is_counted(
    hub: HubStub, here: Settings, faults: list[Fault]
) -> None:
    hub.fault(SHORT, *faults)
    tries = sum(fault.kind != "redirect" for fault in faults)

    found = read_remote(REF, here, patience=patience(stall_s(faults, 1)))

    assert found.requests == 2 + 1 + 1 + tries
    assert found.bytes_read >= found.header.header_bytes
    assert [tensor.name for tensor in found.header.tensors] == ["a", "b"]


def test_two_ranges_of_two_files_make_no_header(hub: HubStub, here: Settings) -> None:
    hub.fault(LONG, GOOD, Fault("etag"))

    raised = fails(here, VerificationError, "changed on the server while")

    assert LONG in raised.message


def test_a_file_that_changed_since_the_listing_is_refused(hub: HubStub, here: Settings) -> None:
    listed = resolve(REF, here)
    hub.repos["org/repo"].files[SHORT] = FILES[SHORT] + b"more"
    hub.repos["org/repo"].siblings = [
        {
            "rfilename": file.name,
            "size": file.bytes,
            "lfs": {"size": file.bytes, "sha256": file.digest.value, "pointerSize": 1},
        }
        for file in listed.files
        if file.digest is not None and file.role == "weights"
    ]

    fails(here, VerificationError, "its listing said")


def test_a_server_without_ranges_is_refused_before_its_answer_is_read(
    hub: HubStub, here: Settings
) -> None:
    hub.fault(SHORT, Fault("full"))
    file = resolve(REF, here).weights[0]
    source, tally = Source(endpoint(here.hub_endpoint), None, patience()), Tally()

    with suppress(DownloadError):
        RemoteFile(file, source, tally, (FIRST,)).read(0, 8)
    source.close()

    assert (tally.requests, tally.bytes) == (1, 0)


def test_one_files_failure_ends_the_wait_for_another(hub: HubStub, here: Settings) -> None:
    hub.fault(SHORT, Fault("stall", times=ALWAYS))
    hub.fault(LONG, Fault("missing"))

    raised = fails(here, DownloadError, "404", stall_s=3600)

    assert LONG in raised.message


def test_the_token_reaches_the_hub_and_nobody_it_leads_to(hub: HubStub, tmp_path: Path) -> None:
    with HubStub() as storage:
        storage.add("org/repo", FILES)
        commit = hub.repos["org/repo"].commit
        for name in NAMES:
            to = f"{storage.endpoint}/org/repo/resolve/{commit}/{name}"
            hub.fault(name, Fault("redirect", to=to, times=ALWAYS))

        read_remote(REF, hub.settings(tmp_path, HF_TOKEN="secret"), patience=patience())

        assert {one.headers.get("authorization") for one in hub.asked} == {"Bearer secret"}
        assert {one.headers.get("authorization") for one in storage.asked} == {None}
        assert sorted(one.headers["range"] for one in storage.asked)[:2] == 2 * [
            f"bytes=0-{FIRST - 1}"
        ]


def test_a_gated_repository_is_refused(hub: HubStub, here: Settings) -> None:
    hub.add("org/repo", FILES, gated=True)

    fails(here, AccessError, "gated|refuses access")


@pytest.mark.parametrize("kind", ["stall", "cut", "wrong"])
def test_a_listing_that_does_not_come_is_an_error(
    hub: HubStub, here: Settings, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("localrun.store.hub.METADATA_TIMEOUT_S", 0.3)
    hub.fault("api", Fault(kind, times=ALWAYS))  # type: ignore[arg-type]  # from the table above

    fails(here, DownloadError, "org/repo")


def tensors(*spans: tuple[int, int]) -> str:
    return json.dumps(
        {
            f"t{index}": {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
            for index, (begin, end) in enumerate(spans)
        }
    )


def moved_offset(data: bytes, wrong: int) -> bytes:
    """A GGUF whose last tensor info ends in another offset: the last 8 bytes of its header."""
    at = data.index(b"blk.1") + len(b"blk.1") + 4 + 8 + 4
    return data[:at] + u64(wrong) + data[at + 8 :]


TWO = gguf_bytes(llama_metadata(), [("blk.0", (1024,), "F32"), ("blk.1", (1024,), "F32")])
ARCHIVE = io.BytesIO()
with zipfile.ZipFile(ARCHIVE, "w") as _zip:
    _zip.writestr("data.pkl", b"\x80\x04.")
HOSTILE: dict[str, tuple[str, bytes, str]] = {
    "overlapping tensors": (
        "model.safetensors",
        raw_safetensors(tensors((0, 600_000), (500_000, 1_100_000)), 1_100_000),
        "overlaps the tensor before it",
    ),
    "tensors with a gap": (
        "model.safetensors",
        raw_safetensors(tensors((0, 10), (20, 1_000_000)), 1_000_000),
        "leaves a gap",
    ),
    "a tensor behind the file's end": (
        "model.safetensors",
        raw_safetensors(tensors((0, 1_000_000)), 999_999),
        "the tensors end at byte 1000081, the file has 1000080 bytes",
    ),
    "a file longer than its tensors": (
        "model.safetensors",
        raw_safetensors(tensors((0, 1_000_000)), 1_000_001),
        "the file has",
    ),
    "a header behind the file's end": (
        "model.safetensors",
        raw_safetensors("{}", 1_000_000, length=2_000_000),
        "header length at byte 0",
    ),
    "a header beyond any limit": (
        "model.safetensors",
        raw_safetensors("{}", 1_000_000, length=limits.SAFETENSORS_HEADER_BYTES_MAX + 1),
        "header length at byte 0",
    ),
    "an empty file": ("model.safetensors", b"", "the file has only 0 bytes"),
    "neither format": ("model.gguf", b"GGML" + bytes(1_000_000), "neither GGUF nor safetensors"),
    "GGUF, overlapping tensors": ("m-F32.gguf", moved_offset(TWO, 32), "overlaps"),
    "GGUF, a tensor behind the file's end": ("m-F32.gguf", TWO[:-64], "the file at"),
    "GGUF, tensors without end": (
        "m-F32.gguf",
        TWO[:8] + u64(900_000) + TWO[16:],
        "tensor_count at byte 8",
    ),
}


@pytest.mark.parametrize(("name", "data", "said"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_is_refused_by_the_size_the_hub_lists(
    hub: HubStub, here: Settings, name: str, data: bytes, said: str
) -> None:
    hub.add("org/repo", {name: data})

    raised = fails(here, HeaderError, said)

    assert name in raised.message
    assert not (here.cache / "headers").exists()


def test_an_archive_under_a_models_name_is_refused(hub: HubStub, here: Settings) -> None:
    hub.add("org/repo", {"model.safetensors": ARCHIVE.getvalue()})

    raised = fails(here, UnsafeFormatError, "refused unread")

    assert "model.safetensors" in raised.message


CONFIGS: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"{", "is not JSON"),
    "a list": (b"[]", "not an object"),
    "a key twice": (b'{"a":1,"a":2}', "stands twice"),
    "nothing": (b"", "is not JSON"),
    "NaN": (b'{"rope_theta": NaN}', "is no JSON number"),
    "too long": (b" " * CONFIG_BYTES_MAX + b"{}", "too many for a configuration"),
}


@pytest.mark.parametrize(("data", "said"), CONFIGS.values(), ids=CONFIGS)
def test_a_malformed_configuration_is_refused(
    hub: HubStub, here: Settings, data: bytes, said: str
) -> None:
    hub.add("org/repo", FILES | {"config.json": data})

    raised = fails(here, HeaderError, said)

    assert "config.json" in raised.message


DISJOINT: dict[str, tuple[dict[str, bytes], str]] = {
    "one tensor in two shards": (dict.fromkeys(NAMES, FILES[SHORT]), "is in"),
    "splits of two models": (
        {
            "m-Q4_0-00001-of-00002.gguf": split_gguf(2)[0],
            "m-Q4_0-00002-of-00002.gguf": split_gguf(3)[1],
        },
        "split.count",
    ),
    "a GGUF among shards": ({SHORT: FILES[SHORT], LONG: TWO}, "do not make one model"),
}


@pytest.mark.parametrize(("files", "said"), DISJOINT.values(), ids=DISJOINT)
def test_files_that_are_not_one_models_are_refused(
    hub: HubStub, here: Settings, files: dict[str, bytes], said: str
) -> None:
    hub.add("org/repo", files)

    fails(here, HeaderError, said)


def test_headers_that_claim_more_than_any_models_take_are_refused_before_they_are_fetched(
    hub: HubStub, here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_source, "BYTES_MAX", 2 << 20)
    hub.add("org/repo", {"model.safetensors": raw_safetensors("{}", 4 << 20, length=3 << 20)})

    raised = fails(here, HeaderError, "are too many")

    assert "model.safetensors" in raised.message
    assert len(hub.gets("model.safetensors")) == 1


def test_an_endpoint_that_may_not_be_asked_is_not(hub: HubStub, here: Settings) -> None:
    with pytest.raises(ConfigError, match="HF_ENDPOINT"):
        read_remote(REF, replace(here, hub_endpoint="http://example.com"))
    assert hub.asked == []


def test_a_listing_planted_in_the_cache_leads_nowhere(hub: HubStub, here: Settings) -> None:
    """Whoever can write our cache gains no file outside the hub cache by it."""
    files = resolve(REF, here)
    planted = replace(
        files, files=tuple(replace(file, name="../../../etc/passwd") for file in files.files)
    )
    cache = HeaderCache.of(here)
    cache.keep(cache.list_key(REF, "main"), list_bytes(planted))

    with pytest.raises(VerificationError, match="leaves its directory"):
        read_remote(REF, replace(here, offline=True))


@pytest.mark.parametrize("name", ["../../escape.safetensors", "/etc/model.safetensors"])
def test_a_listing_with_odd_names_is_refused(hub: HubStub, here: Settings, name: str) -> None:
    hub.add("org/repo", FILES | {name: FILES[SHORT]})

    fails(here, VerificationError, "file name")


def test_a_repository_nobody_has_is_not_found(hub: HubStub, here: Settings) -> None:
    with pytest.raises(ModelNotFoundError, match="no repository"):
        read_remote(HubRef("org", "other"), here)
