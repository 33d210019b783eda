"""Engram's constants and rows are read in every convention, and refused where they contradict.

Hashes and constants of the released model:
https://huggingface.co/deepseek-ai/DeepSeek-V4.1-Flash, inference/engram.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localrun.errors import HeaderError, LocalrunError, SourceError, UsageError
from localrun.formats.header import Header
from localrun.models.bare import flat
from localrun.releases import engram
from localrun.releases.engram import Engram, multipliers, of_file
from localrun.releases.engram_rows import NativeRows, joined, tables
from localrun.releases.engram_tokens import normal, token_classes
from localrun.releases.stored.numbers import e4m3
from tests.deepseek import base, by_name, convert_opened, gguf_file, opened, write, written
from tests.slabs import Numbers

EXPERTS = "_exps."


@pytest.fixture(scope="module")
def flash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("v41") / "flash", base("deepseek_v41"))


@pytest.fixture(scope="module")
def gguf(flash: Path) -> Path:
    """Experts in MXFP4, all else as in a file of floats."""
    out = flash.parent / "flash.gguf"
    with opened(flash) as checkpoint:
        model = convert_opened(checkpoint)
        moved = {name: "MXFP4" for name in by_name(model) if EXPERTS in name}
        written(model, out, moved)
    return out


def constants(header: Header, widths: dict[int, int]) -> Engram:
    found = of_file(header.metadata, header.files[0], widths)
    assert found is not None
    return found


def test_constants_are_read_as_they_were_written(flash: Path, gguf: Path) -> None:
    with opened(flash) as checkpoint, gguf_file(gguf) as file:
        released = engram.of_release(checkpoint, flat(checkpoint.config))
        assert constants(file.header, {1: 64, 4: 64}) == released
        primes = [prime for each in released.primes for prime in each]
        assert len(set(primes)) == len(primes) == 24
        assert released.rows == (6568, 7464)
        assert released.multipliers[0] == multipliers(1, 870, 4)


@pytest.fixture(scope="module")
def released() -> Engram:
    """The released model's but for the tokenizer: ids are classes."""
    stream = engram.primes_from(16_000_000)
    primes = tuple(tuple(next(stream) for _ in range(24)) for _ in range(2))
    factors = tuple(multipliers(layer, 99092, 4) for layer in (1, 14))
    return Engram((1, 14), 4, 8, 256, 2, tuple(range(99092)), primes, factors)


def test_constants_are_those_of_the_release(released: Engram) -> None:
    assert released.rows == (384006168, 384016682)
    assert (released.primes[0][0], released.primes[0][-1]) == (16000057, 16000463)
    assert (released.primes[1][0], released.primes[1][-1]) == (16000477, 16000889)
    assert released.multipliers == (
        (76632096046245, 4839876093313, 35959672319349, 73987337458391),
        (67716810739261, 51510806800915, 30921347202721, 82619226485591),
    )


def test_rows_are_those_that_the_release_looks_up(released: Engram) -> None:
    first, second = (released.hashed(layer, [10, 20, 30, 40]) for layer in (1, 14))

    assert first[0][:3] == (9400104, 24924096, 42335591)
    assert first[3] == (
        1326936, 22120929, 40011923, 55142539, 77849479, 85421395, 105208034, 120570043,
        142088989, 151706440, 164511320, 186980067, 199834903, 222266846, 231919637, 244765195,
        270969918, 287524568, 292261800, 310632033, 322879311, 341250912, 361620893, 378628807,
    )  # fmt: skip
    assert second[3][:8] == (
        5403109, 26519290, 42262171, 52759697, 74009651, 83431750, 98759453, 114437397,
    )  # fmt: skip


def test_classes_are_those_of_the_library(flash: Path) -> None:
    library = pytest.importorskip("tokenizers")
    loaded = library.Tokenizer.from_file(str(flash / "tokenizer.json"))
    parts = library.normalizers
    whole = parts.Sequence(
        [
            parts.NFKC(),
            parts.NFD(),
            parts.StripAccents(),
            parts.Lowercase(),
            parts.Replace(library.Regex(r"[ \t\r\n]+"), " "),
            parts.Replace(library.Regex("^ $"), "\ue000"),
            parts.Strip(),
            parts.Replace("\ue000", " "),
        ]
    )
    classes: dict[str, int] = {}
    expected = []
    for number in range(1024):
        text = loaded.decode([number], skip_special_tokens=False)
        piece = loaded.id_to_token(number)
        key = piece if "\ufffd" in text else whole.normalize_str(text) or text
        expected.append(classes.setdefault(key, len(classes)))

    with opened(flash) as checkpoint:
        assert list(token_classes(checkpoint, 1024)) == expected
    for text in ("Élan", "ΣΣ\u0301", "\x1c x\t\n", " ", "\u2028", "ﬁ Ⅻ", "İ", "\ue000 a", "", "  "):
        assert normal(text) == whole.normalize_str(text)


CONVENTIONS: dict[str, dict[str, Any]] = {
    "two tensors": {},
    "nine keys": {
        "layers": "layer_ids",
        "ngram_size": "max_ngram_size",
        "head_dim": "key_length",
        "head_bucket_sizes": "primes",
        "head_offsets": "offsets",
        "embedding_counts": None,
        "compressed_vocab_size": None,
        "pad_token_id": ("pad_id", 2),
    },
    "names of config.json": {
        "layers": "layer_ids",
        "ngram_size": "max_ngram_size",
        "head_count": "n_heads",
        "head_bucket_sizes": "primes",
        "head_offsets": "offsets",
        "embedding_counts": "num_embeddings",
    },
    "rows of bytes": {
        "layers": "layer_ids",
        "ngram_size": None,
        "head_count": None,
        "head_dim": None,
        "head_offsets": None,
        "head_bucket_sizes": "primes",
        "embedding_counts": "rows",
        "pad_token_id": ("pad_id", 2),
    },
}


def respelled(header: Header, names: dict[str, Any], prefix: str = "deepseek41") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in header.metadata.items():
        head, mark, word = key.partition(".engram.")
        if not mark:
            found[key] = value
        elif (new := names.get(word, word)) is not None:
            name, value = new if isinstance(new, tuple) else (new, value)
            found[f"{prefix if head else head}.engram.{name}"] = value
    return found


@pytest.mark.parametrize("prefix", ["deepseek41", "deepseek4"])
@pytest.mark.parametrize("names", CONVENTIONS.values(), ids=list(CONVENTIONS))
def test_constants_are_read_in_every_convention(
    gguf: Path, names: dict[str, Any], prefix: str
) -> None:
    with gguf_file(gguf) as file:
        wanted = constants(file.header, {1: 64, 4: 64})
        metadata = respelled(file.header, names, prefix)

    assert of_file(metadata, "x.gguf", {1: 64, 4: 64}) == wanted


def test_a_file_without_tables_has_no_constants() -> None:
    assert of_file({"general.architecture": "deepseek4"}, "x.gguf", {}) is None


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a prime short": ({"head_bucket_sizes": ("head_bucket_sizes", (503, 509))}, "12 sizes"),
    "a bucket of no rows": ({"head_bucket_sizes": ("head_bucket_sizes", (0,) * 24)}, "12 sizes"),
    "a factor short": ({"multipliers": ("multipliers", (1, 3, 5))}, "4 for each"),
    "no factors": ({"multipliers": None}, "multipliers.*absent"),
    "no classes": ({"token_map": ("token_map", ())}, "token_map.*empty"),
    "other rows": ({"embedding_counts": ("embedding_counts", (1, 2))}, "embedding_counts"),
    "other offsets": ({"head_offsets": ("head_offsets", tuple(range(24)))}, "head_offsets"),
    "nothing before the text": ({"pad_token_id": None}, "absent"),
    "a token that is not there": ({"pad_token_id": ("pad_token_id", 5000)}, "pad_token_id"),
    "other rows than the table's": ({"head_dim": ("head_dim", 128)}, "head_dim"),
}


@pytest.mark.parametrize(("names", "said"), CONTRADICTIONS.values(), ids=list(CONTRADICTIONS))
def test_constants_that_contradict_each_other_are_refused(
    gguf: Path, names: dict[str, Any], said: str
) -> None:
    with gguf_file(gguf) as file:
        metadata = respelled(file.header, names)
    with pytest.raises(HeaderError, match=said):
        of_file(metadata, "x.gguf", {1: 64, 4: 64})


def test_rows_with_their_scales_behind_them_are_the_same_rows(gguf: Path) -> None:
    with gguf_file(gguf) as file:
        table = tables(file.weights())[1]
        assert isinstance(table, NativeRows)
        codes, scales = table.codes(0, 50)
        wanted = table.rows(0, 50)
    packed = Bytes(np.concatenate([codes, scales], axis=1))
    (other,) = tables({"blk.1.engram_embd.weight": packed}).values()

    assert isinstance(other, NativeRows)
    assert other.shape == (50, 64)
    assert np.array_equal(other.rows(0, 50), wanted)
    assert np.array_equal(other.rows(0, 50)[:, :32], (e4m3()[codes] * pow2(scales))[:, :32])


def test_scales_in_a_tensor_of_their_own_are_read_and_joined_bit_by_bit(gguf: Path) -> None:
    with gguf_file(gguf) as file:
        whole = tables(file.weights())[1]
        assert isinstance(whole, NativeRows)
        codes, scales = whole.codes(0, 50)
        wanted, row = whole.rows(0, 50), whole.table.blocks("I8", 0, 50)
    name = "blk.1.engram_embd"
    apart = {f"{name}.weight": Bytes(codes), f"{name}_scale.weight": Bytes(scales)}
    (table,) = tables(apart).values()

    assert np.array_equal(table.rows(0, 50), wanted)
    one = joined(table)
    assert (one.shape, one.stored) == ((50, 66), "I8")
    assert np.array_equal(one.blocks("I8", 7, 50), row[7:])


def pow2(scales: Any) -> Any:
    return np.repeat(np.ldexp(np.float32(1), scales.astype(int) - 127), 32, axis=1)


class Bytes(Numbers):
    """Rows of I8."""

    def __init__(self, bits: Any) -> None:
        super().__init__("blk.1.engram_embd.weight", bits.view(np.int8), stored="I8")

    def blocks(self, type: str, start: int, stop: int) -> Any:
        return np.ascontiguousarray(self.values[start:stop]).view(np.uint8)


@pytest.mark.parametrize(("column", "code"), [(5, 0x7F), (5, 0xFF), (65, 0xFF)])
def test_bytes_that_are_no_number_are_refused(column: int, code: int) -> None:
    bits = np.full((4, 66), 0x30, np.uint8)
    bits[2, column] = code
    (table,) = tables({"blk.1.engram_embd.weight": Bytes(bits)}).values()

    with pytest.raises(SourceError, match=rf"row 2, {code:#x} in column {column % 64}"):
        table.rows(1, 4)
    assert np.isfinite(table.rows(0, 2)).all()


def test_bytes_without_scales_are_refused() -> None:
    with pytest.raises(HeaderError, match="no scales"):
        tables({"blk.1.engram_embd.weight": Bytes(np.zeros((4, 64), np.uint8))})


def test_scales_of_another_table_are_refused() -> None:
    table, scales = Bytes(np.zeros((4, 64), np.uint8)), Bytes(np.zeros((3, 2), np.uint8))
    names = ("blk.1.engram_embd.weight", "blk.1.engram_embd_scale.weight")
    with pytest.raises(HeaderError, match="does not scale"):
        tables(dict(zip(names, (table, scales), strict=True)))


TOKENIZERS: dict[str, tuple[dict[str, Any] | None, type[LocalrunError], str]] = {
    "none": (None, UsageError, r"no tokenizer\.json"),
    "no vocabulary": ({"model": {}}, HeaderError, "vocab"),
    "another decoder": ({"decoder": {"type": "Metaspace"}}, UsageError, "Metaspace"),
    "a number in words": ({"added_tokens": [{"id": "1", "content": "a"}]}, HeaderError, "number"),
    "a number beyond": ({"added_tokens": [{"id": 1024, "content": "a"}]}, HeaderError, "1024"),
}


@pytest.mark.parametrize(("changes", "kind", "said"), TOKENIZERS.values(), ids=list(TOKENIZERS))
def test_a_tokenizer_that_tables_are_not_looked_up_by_is_refused(
    flash: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any] | None,
    kind: type[LocalrunError],
    said: str,
) -> None:
    document = json.loads((flash / "tokenizer.json").read_text(encoding="utf-8"))
    with opened(flash) as checkpoint:
        changed = None if changes is None else document | changes
        monkeypatch.setattr(checkpoint, "json", lambda name: changed)
        with pytest.raises(kind, match=said):
            token_classes(checkpoint, 1024)


def test_a_row_without_a_token_is_named(flash: Path) -> None:
    with opened(flash) as checkpoint, pytest.raises(HeaderError, match="no token 1024 of 1025"):
        token_classes(checkpoint, 1025)
