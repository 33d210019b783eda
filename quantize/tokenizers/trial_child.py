"""Knows no release: the process that hands a stranger's tokenizer to the libraries that read it.

    python -P -m localrun.quantize.tokenizers.trial_child

Reads one request on stdin and answers on stdout (``trial.py``).
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final

from localrun.engine.process.limited import renew_cpu_limit

CPU_SECONDS: Final = 240


def main() -> None:
    """Answer once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The libraries raise bare exceptions, and panics, which are none.
    sys.excepthook = _raised
    renew_cpu_limit(CPU_SECONDS)
    request = json.loads(sys.stdin.buffer.read())
    _write(_ANSWERS[request["library"]](request["file"], request["texts"]))


def _raised(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _write({"error": str(error)[:2000] or kind.__name__})


def _write(answer: Mapping[str, object]) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode())


def _tokenizers(file: str, texts: list[str]) -> dict[str, Any]:
    from tokenizers import Tokenizer, normalizers

    tokenizer = Tokenizer.from_file(file)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    composed = texts
    if isinstance(tokenizer.normalizer, normalizers.NFC):
        composed = [tokenizer.normalizer.normalize_str(text) for text in texts]
    plain = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    whole = [tokenizer.encode(text).ids for text in texts]
    return {"plain": plain, "whole": whole, "texts": composed}


def _sentencepiece(file: str, texts: list[str]) -> dict[str, Any]:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=file)
    plain = [processor.encode(text) for text in texts]
    begin = [processor.bos_id()] if processor.bos_id() >= 0 else []
    return {"plain": plain, "whole": [begin + ids for ids in plain], "texts": texts}


def _libllama(file: str, texts: list[str]) -> dict[str, Any]:
    from llama_cpp import llama_cpp as llama

    from localrun.ggml.library import function

    function("llama", "llama_backend_init", None)()
    params = llama.llama_model_default_params()
    params.vocab_only = True
    model = llama.llama_model_load_from_file(file.encode(), params)
    if not model:
        return {"error": "the library loads no such vocabulary"}
    vocab = llama.llama_model_get_vocab(model)

    def ids(text: str, add_special: bool) -> list[int]:
        raw = text.encode()
        capacity = len(raw) * 2 + 16
        buffer = (ctypes.c_int32 * capacity)()
        count = llama.llama_tokenize(vocab, raw, len(raw), buffer, capacity, add_special, True)
        return list(buffer[: max(0, count)])

    plain = [ids(text, False) for text in texts]
    whole = [ids(text, True) for text in texts]
    return {"plain": plain, "whole": whole, "texts": texts}


_ANSWERS: Final = {
    "tokenizers": _tokenizers,
    "sentencepiece": _sentencepiece,
    "libllama": _libllama,
}

if __name__ == "__main__":
    main()
