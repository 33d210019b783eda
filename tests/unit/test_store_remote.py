"""A hub model is described from the first bytes of its files, and nothing else is fetched."""

from __future__ import annotations

import json
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as profile

from localrun.config import Settings
from localrun.errors import HeaderError, ModelNotFoundError
from localrun.formats.read import read_header
from localrun.formats.reader import FileSource
from localrun.formats.strict_json import read_config
from localrun.models.describe import describe
from localrun.ref import HubRef, parse
from localrun.store import remote_cache
from localrun.store.download import fetch
from localrun.store.hub import resolve
from localrun.store.progress import NoProgress
from localrun.store.remote import RemoteModel, read_remote
from tests.gguf_builder import gguf_bytes, llama_metadata, safetensors_bytes, split_gguf
from tests.hub_stub import HubStub
from tests.strategies import Tensors, headers

REF = HubRef("org", "repo")
KIB = 1024
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "vocab_size": 16,
}
TEMPLATE = "{{ messages[0].content }}"


def shard(number: int, count: int) -> str:
    return f"model-{number:05}-of-{count:05}.safetensors"


def sharded(count: int, *, tensors: int = 3) -> dict[str, bytes]:
    """A safetensors repository with all that surrounds one. Shards are larger than one read."""
    weights = {
        shard(number, count): safetensors_bytes(
            [
                (f"model.layers.{number}.mlp.{index}.weight", (512, 256), "BF16")
                for index in range(tensors)
            ],
            {"format": "pt"},
        )
        for number in range(1, count + 1)
    }
    return {
        **weights,
        "model.safetensors.index.json": b'{"weight_map": {}}',
        "config.json": json.dumps(CONFIG).encode(),
        "generation_config.json": b"{}",
        "tokenizer.json": b"{}",
        "tokenizer_config.json": json.dumps({"chat_template": TEMPLATE}).encode(),
        "README.md": b"# model",
        "modeling_custom.py": b"import os",
    }


def single(**metadata: Any) -> bytes:
    return gguf_bytes({**llama_metadata(), **metadata}, [("a", (1024, 1024), "F32")])


def vocabulary(bytes_at_least: int) -> list[str]:
    return [f"{index:>0120}" for index in range(bytes_at_least // 128 + 1)]


@pytest.fixture
def hub() -> Iterator[HubStub]:
    with HubStub() as stub:
        yield stub


@pytest.fixture
def here(hub: HubStub, tmp_path: Path) -> Settings:
    return hub.settings(tmp_path)


def asked(hub: HubStub) -> list[tuple[str, str | None]]:
    """Requests for content so far as (file, range), in the order of names."""
    return sorted(
        (one.path.split("/resolve/")[1].partition("/")[2], one.headers.get("range"))
        for one in hub.asked
        if "/resolve/" in one.path
    )


def sent(hub: HubStub) -> int:
    return sum(count for path, count in hub.sent if "/resolve/" in path)


def on_disk(files: Mapping[str, bytes], names: list[str], place: Path) -> list[Path]:
    for name in names:
        (place / name).write_bytes(files[name])
    return [place / name for name in names]


def test_a_checkpoint_of_48_shards_costs_one_range_request_a_shard(
    hub: HubStub, here: Settings
) -> None:
    hub.add("org/repo", sharded(48))
    first = f"bytes=0-{512 * KIB - 1}"

    found = read_remote(REF, here)

    assert asked(hub) == [
        ("config.json", None),
        *((shard(number, 48), first) for number in range(1, 49)),
        ("tokenizer_config.json", None),
    ]
    assert [one.path for one in hub.asked if "/resolve/" not in one.path] == [
        "/api/models/org/repo/revision/main"
    ]
    assert (found.requests, found.cached) == (50, 0)
    assert found.bytes_read == sent(hub)
    assert len(found.header.tensors) == 48 * 3
    assert found.config == CONFIG
    assert found.chat_template == TEMPLATE


def test_shards_are_asked_for_eight_at_a_time(hub: HubStub, here: Settings) -> None:
    hub.add("org/repo", sharded(8))
    hub.meet(*(shard(number, 8) for number in range(1, 9)))

    assert len(read_remote(REF, here).header.files) == 8


def test_a_header_longer_than_the_first_read_costs_a_second_request_for_exactly_its_rest(
    hub: HubStub, here: Settings
) -> None:
    data = safetensors_bytes([("a", (1024, 512), "F32")], {"notes": "x" * 700_000})
    hub.add("org/repo", {"model.safetensors": data})
    length = 8 + int.from_bytes(data[:8], "little")

    found = read_remote(REF, here)

    assert asked(hub) == [
        ("model.safetensors", f"bytes=0-{512 * KIB - 1}"),
        ("model.safetensors", f"bytes={512 * KIB}-{length - 1}"),
    ]
    assert found.bytes_read == found.header.header_bytes == length
    assert found.config is None
    assert found.chat_template is None


def test_first_reads_of_very_many_shards_stay_small_together(hub: HubStub, here: Settings) -> None:
    files = {
        name: safetensors_bytes([(name, (128, 512), "F32")])
        for name in (shard(number, 200) for number in range(1, 201))
    }
    hub.add("org/repo", files)

    found = read_remote(REF, here)

    assert found.requests == 200
    assert found.bytes_read == sent(hub) <= 24 << 20


@pytest.mark.parametrize(
    ("tokens", "steps"),
    [(1, [1]), (1_500_000, [1, 8]), (9_000_000, [1, 8, 16])],
    ids=["in the first read", "of a few megabytes", "of many megabytes"],
)
def test_the_head_of_a_gguf_is_read_until_its_vocabulary_ends(
    hub: HubStub, here: Settings, tokens: int, steps: list[int]
) -> None:
    words = vocabulary(tokens)
    metadata = {**llama_metadata(), "tokenizer.ggml.tokens": words}
    data = gguf_bytes(metadata, [("a", (4096, 1024), "F32")])
    hub.add("org/repo", {"m-F32.gguf": data, "config.json": b"{}", "mmproj-F16.gguf": single()})
    begins = [0, *(step << 20 for step in steps)]

    found = read_remote(REF, here)

    assert asked(hub) == [
        ("m-F32.gguf", f"bytes={begin}-{stop - 1}") for begin, stop in pairwise(begins)
    ]
    assert found.bytes_read == steps[-1] << 20
    assert found.header.metadata["tokenizer.ggml.tokens"] == tuple(words)


def test_a_split_gguf_costs_one_request_a_part(hub: HubStub, here: Settings) -> None:
    names = [f"m-Q4_0-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    hub.add("org/repo", dict(zip(names, split_gguf(3), strict=True)))

    found = read_remote(REF, here)

    assert [name for name, _ in asked(hub)] == names
    assert found.header.files == tuple(names)
    assert [tensor.file for tensor in found.header.tensors] == [0, 1, 2]


REPOSITORIES: dict[str, Callable[[], dict[str, bytes]]] = {
    "safetensors": lambda: sharded(3),
    "gguf": lambda: {"m-F32.gguf": single()},
    "split gguf in a folder": lambda: {
        f"Q4_0/m-{number + 1:05}-of-00002.gguf": part for number, part in enumerate(split_gguf(2))
    },
}


@pytest.mark.parametrize("build", REPOSITORIES.values(), ids=REPOSITORIES)
def test_a_remote_model_is_described_as_its_files_on_disk_are(
    hub: HubStub, here: Settings, build: Callable[[], dict[str, bytes]]
) -> None:
    hub.add("org/repo", build())

    before = read_remote(REF, here)
    again = read_remote(REF, here)
    pulled = fetch(resolve(REF, here), here, NoProgress())
    after = read_remote(REF, here)

    paths = [file.path for file in pulled.weights if file.path]
    header = read_header(paths)
    config = None
    for file in pulled.files:
        if file.name == "config.json" and file.path and pulled.format == "safetensors":
            with FileSource(file.path) as source:
                config = read_config(source, file.name)
    for found in (before, again, after):
        assert found.header == header
        assert describe(found.header, found.config) == describe(header, config)
    assert before.files.files == resolve_without_paths(after)


def resolve_without_paths(found: RemoteModel) -> tuple[object, ...]:
    return tuple(replace(file, path=None) for file in found.files.files)


@given(headers())
@profile(max_examples=25, deadline=None)
def test_any_header_reads_the_same_from_afar_from_the_cache_and_from_disk(
    drawn: tuple[dict[str, Any], Tensors],
) -> None:
    data = gguf_bytes(*drawn)
    with HubStub() as hub, tempfile.TemporaryDirectory() as folder:
        hub.add("org/repo", {"m.gguf": data})
        here = hub.settings(Path(folder))
        path = Path(folder, "m.gguf")
        path.write_bytes(data)

        local = outcome(lambda: read_header([path]))

        assert outcome(lambda: read_remote(REF, here).header) == local
        assert outcome(lambda: read_remote(REF, here).header) == local


def outcome(read: Callable[[], object]) -> object:
    try:
        return read()
    except HeaderError as error:
        return str(error)


def test_a_second_look_asks_for_the_listing_alone(hub: HubStub, here: Settings) -> None:
    hub.add("org/repo", sharded(5))
    first = read_remote(REF, here)
    hub.asked.clear()

    second = read_remote(REF, here)

    assert asked(hub) == []
    assert len(hub.asked) == 1
    assert (second.bytes_read, second.requests, second.cached) == (0, 0, 7)
    assert second == replace(first, bytes_read=0, requests=0, cached=7)


def test_after_a_new_commit_only_the_files_that_changed_are_read(
    hub: HubStub, here: Settings
) -> None:
    files = sharded(3)
    hub.add("org/repo", files)
    read_remote(REF, here)
    changed = shard(2, 3)
    hub.add("org/repo", files | {changed: safetensors_bytes([("other", (2,), "F32")])})
    hub.asked.clear()

    found = read_remote(REF, here)

    assert [name for name, _ in asked(hub)] == [changed]
    assert "other" in {tensor.name for tensor in found.header.tensors}


def test_another_hub_does_not_answer_from_this_ones_cache(
    hub: HubStub, here: Settings, tmp_path: Path
) -> None:
    hub.add("org/repo", {"m-F32.gguf": single()})
    read_remote(REF, here)
    with HubStub() as other:
        other.add("org/repo", {"m-F32.gguf": single()})

        assert read_remote(REF, other.settings(tmp_path)).requests == 1


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def of_another_header(path: Path) -> None:
    keep(path, single(**{"general.name": "another"})[:-1])


def longer(path: Path) -> None:
    keep(path, path.read_bytes()[32:] + b"more")


def keep(path: Path, data: bytes) -> None:
    remote_cache.HeaderCache(path.parent, "").keep(path.name, data)


DAMAGES = {
    "truncated": truncated,
    "a bit flipped": flipped,
    "empty": lambda path: path.write_bytes(b""),
    "only a seal": lambda path: keep(path, b""),
    "garbage": lambda path: path.write_bytes(b"PK\x03\x04" * 100),
    "a sealed archive": lambda path: keep(path, b"PK\x03\x04" * 100),
    "the weights too": of_another_header,
    "longer than a header": longer,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_file_is_ignored_and_written_anew(
    hub: HubStub, here: Settings, damage: Callable[[Path], object]
) -> None:
    hub.add("org/repo", {"m-F32.gguf": single()})
    expected = read_remote(REF, here).header
    cached = max((here.cache / "headers").iterdir(), key=lambda path: path.stat().st_size)
    whole = cached.read_bytes()
    damage(cached)

    found = read_remote(REF, here)

    assert found.header == expected
    assert (found.requests, found.cached) == (1, 0)
    assert cached.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_done_without(hub: HubStub, here: Settings) -> None:
    hub.add("org/repo", {"m-F32.gguf": single()})
    read_remote(REF, here)
    for path in (here.cache / "headers").iterdir():
        a_directory(path)

    assert read_remote(REF, here).requests == 1
    assert read_remote(REF, here).requests == 1


def test_the_cache_is_private_and_holds_headers_only(hub: HubStub, here: Settings) -> None:
    data = single()
    hub.add("org/repo", {"m-F32.gguf": data})

    found = read_remote(REF, here)

    place = here.cache / "headers"
    kept = sorted(path.stat().st_size for path in place.iterdir())
    assert kept[-1] == found.header.header_bytes + 32 < 2000
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()} == {0o600}


def test_the_cache_forgets_what_was_not_used_for_longest(
    hub: HubStub, here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/repo", sharded(4))
    read_remote(REF, here)
    place = here.cache / "headers"
    total = sum(path.stat().st_size for path in place.iterdir())
    monkeypatch.setattr(remote_cache, "BYTES_MAX", total)
    hub.add("org/other", {"m-F32.gguf": single()})

    read_remote(HubRef("org", "other"), here)

    assert sum(path.stat().st_size for path in place.iterdir()) <= total
    assert read_remote(HubRef("org", "other"), here).cached == 1
    assert read_remote(REF, here).cached < 6


def offline(here: Settings) -> Settings:
    return replace(here, offline=True)


@pytest.mark.parametrize("text", ["org/repo", "org/repo:Q8_0", "org/repo:q8_0"])
def test_offline_the_cache_answers_alone(hub: HubStub, here: Settings, text: str) -> None:
    hub.add("org/repo", {"m-Q8_0.gguf": single()}, licence="mit")
    ref = parse(text)
    assert isinstance(ref, HubRef)
    online = read_remote(ref, here)
    hub.asked.clear()

    found = read_remote(ref, offline(here))

    assert hub.asked == []
    assert found.header == online.header
    assert (found.files.licence, found.files.ref) == ("mit", HubRef("org", "repo", tag="Q8_0"))
    assert found.cached == 1


def test_offline_a_model_never_seen_is_not_found(hub: HubStub, here: Settings) -> None:
    hub.add("org/repo", {"m-Q8_0.gguf": single()})

    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE") as caught:
        read_remote(REF, offline(here))

    assert caught.value.exit_code == 3
    assert hub.asked == []


def test_offline_a_header_that_the_cache_lost_is_named(hub: HubStub, here: Settings) -> None:
    hub.add("org/repo", sharded(2))
    read_remote(REF, here)
    cache = remote_cache.HeaderCache.of(here)
    lost = resolve(REF, here).weights[1]
    key = cache.file_key(lost)
    assert key is not None
    (cache.directory / key).unlink()

    with pytest.raises(ModelNotFoundError, match=lost.name) as caught:
        read_remote(REF, offline(here))

    assert "HF_HUB_OFFLINE" in caught.value.hint


@pytest.mark.parametrize("is_offline", [False, True], ids=["online", "offline"])
def test_files_of_the_hub_cache_are_read_where_they_lie(
    hub: HubStub, here: Settings, is_offline: bool
) -> None:
    hub.add("org/repo", sharded(2))
    fetch(resolve(REF, here), here, NoProgress())
    hub.asked.clear()

    found = read_remote(REF, replace(here, offline=is_offline))

    assert asked(hub) == []
    assert (found.bytes_read, found.requests, found.cached) == (0, 0, 0)
    assert found.files.complete
    assert found.config == CONFIG
    assert found.chat_template == TEMPLATE


@pytest.mark.parametrize("is_offline", [False, True], ids=["online", "offline"])
def test_what_is_missing_of_a_model_on_disk_comes_from_afar(
    hub: HubStub, here: Settings, is_offline: bool
) -> None:
    hub.add("org/repo", sharded(2))
    expected = read_remote(REF, here).header
    pulled = fetch(resolve(REF, here), here, NoProgress())
    gone = pulled.weights[1].path
    assert gone is not None
    gone.resolve().unlink()
    hub.asked.clear()

    found = read_remote(REF, replace(here, offline=is_offline))

    assert found.header == expected
    assert [file.path is None for file in found.files.weights] == [False, True]
    assert found.cached == 1
    assert asked(hub) == []


TEMPLATES: dict[str, tuple[dict[str, bytes], str | None, set[str]]] = {
    "a file of its own": (
        {"chat_template.jinja": b"{{ own }}", "tokenizer_config.json": b'{"chat_template":"x"}'},
        "{{ own }}",
        {"chat_template.jinja"},
    ),
    "none": ({"tokenizer_config.json": b"{}"}, None, {"tokenizer_config.json"}),
    "not text": (
        {"tokenizer_config.json": b'{"chat_template":[1]}'},
        None,
        {"tokenizer_config.json"},
    ),
    "not JSON": ({"tokenizer_config.json": b"{"}, None, {"tokenizer_config.json"}),
    "too long": ({"tokenizer_config.json": b" " * (1 << 20) + b"{}"}, None, set()),
}


@pytest.mark.parametrize(("files", "expected", "read"), TEMPLATES.values(), ids=TEMPLATES)
def test_the_chat_template_is_what_the_repository_states(
    hub: HubStub, here: Settings, files: dict[str, bytes], expected: str | None, read: set[str]
) -> None:
    hub.add("org/repo", {"model.safetensors": safetensors_bytes([("a", (1,), "F32")]), **files})

    assert read_remote(REF, here).chat_template == expected
    assert {name for name, _ in asked(hub)} == read | {"model.safetensors"}


def test_a_branch_and_a_commit_are_read_as_such(hub: HubStub, here: Settings) -> None:
    commit = hub.add("org/repo", {"m-F32.gguf": single()})

    assert read_remote(REF, here, revision=commit).files.revision == commit
    assert read_remote(REF, offline(here), revision=commit).cached == 1
    with pytest.raises(ModelNotFoundError):
        read_remote(REF, here, revision="0" * 40)


def test_a_model_in_more_files_than_a_model_may_have_is_refused_before_any_is_read(
    hub: HubStub, here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localrun.formats.limits.SHARDS_MAX", 4)
    hub.add("org/repo", sharded(5))

    with pytest.raises(HeaderError, match="5 shards, at most 4"):
        read_remote(REF, here)

    assert asked(hub) == []
