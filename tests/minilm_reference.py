"""Run as a process of its own: what transformers makes of texts.

    python -m tests.minilm_reference CHECKPOINT TEXTS.json OUT.npz

TEXTS is a list of strings. OUT gets ``vectors`` [texts, width], the mean of BertModel's last states
with length 1, as sentence-transformers computes them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def main(checkpoint: str, texts: str, out: str) -> None:
    import torch
    from transformers import AutoTokenizer, BertModel

    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    model = BertModel.from_pretrained(checkpoint, local_files_only=True, dtype=torch.float32).eval()
    made = []
    for text in json.loads(Path(texts).read_text(encoding="utf-8")):
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=512)
        with torch.inference_mode():
            states = model(**inputs).last_hidden_state[0]
        vector = states.mean(dim=0)
        made.append((vector / vector.norm()).numpy())
    np.savez(out, vectors=np.stack(made))


if __name__ == "__main__":
    main(*sys.argv[1:])
