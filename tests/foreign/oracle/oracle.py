"""Runs llama.cpp's own converter, inside an environment that has what it wants.

    python oracle.py LLAMA_CPP FOLDER...

Each FOLDER is a checkpoint; ``bf16.gguf`` and ``f32.gguf`` are written beside it, under its name.
Its tokenizer need not be one that llama.cpp has seen: which text splitter it has is told by hashing
a text's tokens, and one that it does not know is taken for GPT-2's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TYPES = ("bf16", "f32")


def main(source: Path, folders: list[Path]) -> None:
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    import convert_hf_to_gguf
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = told(TextModel.get_vocab_base_pre)
    for folder in folders:
        for kind in TYPES:
            target = folder.parent / f"{folder.name}.{kind}.gguf"
            sys.argv = ["convert", str(folder), "--outtype", kind, "--outfile", str(target)]
            sys.argv += ["--model-name", folder.name]
            convert_hf_to_gguf.main()


def told(original: Callable[..., str]) -> Callable[..., str]:
    def splitter(self: Any, tokenizer: Any) -> str:
        try:
            return original(self, tokenizer)
        except NotImplementedError:
            return "gpt-2"

    return splitter


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
