"""What llama.cpp's converter wrote for each case, small enough to keep for `make test`.

    python -m tests.foreign.oracle.recorded FOLDER [FILE]

writes ``recorded.json`` (or FILE) anew from a folder that ``oracle.py`` filled.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from localrun.formats.gguf import raw_values
from localrun.formats.read import read_header
from localrun.formats.reader import FileSource
from tests.foreign.oracle.comparing import TYPES_OF_THE_FILE

FILE = Path(__file__).parent / "recorded.json"
# Of released models, and of the one that `make test` cuts out of such a one.
MODELS = Path(__file__).parent / "models.json"
KIND = "bf16"
_DIGITS = 16
# Vocabularies are trained by the installed ``tokenizers``, whose versions need not agree.
_TRAINED = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type")


def keys(raw: Mapping[str, bytes]) -> dict[str, str]:
    """Type and value of each key, long ones by their digest."""
    skipped = {*_TRAINED, *TYPES_OF_THE_FILE}
    return {
        key: value.hex() if len(value) <= _DIGITS else digest([value])
        for key, value in sorted(raw.items())
        if key not in skipped
    }


def digest(pieces: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()[:_DIGITS]


def summary(path: Path) -> dict[str, Any]:
    """Keys, and of each tensor its shape, type and the digest of its bytes."""
    with FileSource(path) as source:
        return {
            "keys": keys(raw_values(source, path.name)),
            "tensors": {
                tensor.name: [
                    list(tensor.shape),
                    tensor.type.name,
                    digest([source.read(tensor.offset, tensor.bytes)]),
                ]
                for tensor in sorted(read_header([path]).tensors)
            },
        }


def read(file: Path = FILE) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def main(folder: Path, file: Path = FILE) -> None:
    paths = sorted(folder.glob(f"*.{KIND}.gguf"))
    lines = ",\n".join(
        f"{json.dumps(path.name.removesuffix(f'.{KIND}.gguf'))}: {json.dumps(summary(path))}"
        for path in paths
    )
    file.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
