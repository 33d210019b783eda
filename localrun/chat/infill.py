"""Knows no route: a gap in a text as the tokens of a model that was trained to fill gaps.

The order is prefix, suffix, middle; other files come first, each behind its name, as in
Qwen2.5-Coder (https://arxiv.org/abs/2409.12186, section 3.2.2) and StarCoder2
(https://arxiv.org/abs/2402.19173).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from localrun.chat.messages import Gap, Snippet
from localrun.engine.client import EngineInfo
from localrun.engine.runner import FillInMiddle
from localrun.errors import ContextLengthError, RequestError

Tokenize = Callable[[str], Awaitable[list[int]]]
"""Ids of plain text: names of control tokens in it are no control tokens."""


async def gap_tokens(gap: Gap, info: EngineInfo, tokenize: Tokenize, *, room: int) -> list[int]:
    """The prompt whose answer fills ``gap``. Snippets that would leave less than ``room`` tokens of
    the context are left out, the first of them first; of the gap itself nothing ever is.

    Raises:
        RequestError: the model was not trained to fill gaps.
        ContextLengthError: the gap alone is too long.
    """
    fim = _marks(info)
    tokens = [
        fim.prefix,
        *await tokenize(gap.prefix),
        fim.suffix,
        *await tokenize(gap.suffix),
        fim.middle,
        *await tokenize(gap.begun),
    ]
    first = [info.bos_id] if info.add_bos and info.bos_id is not None else []
    left = info.n_ctx - len(first) - len(tokens)
    if left < 1:
        raise ContextLengthError(len(first) + len(tokens), info.n_ctx)
    others: list[int] = []
    for snippet in reversed(gap.snippets):
        more = await _snippet(snippet, fim, tokenize)
        if len(others) + len(more) > left - room:
            break
        others = more + others
    if others and fim.file is not None:
        # The text with the gap is one more file.
        others = [*others, fim.file, *await tokenize("\n")]
        if len(others) > left - 1:
            others = []
    return [*first, *others, *tokens]


def _marks(info: EngineInfo) -> FillInMiddle:
    if info.fim is None:
        raise RequestError(
            "this model has no fill-in-the-middle tokens (prefix, suffix and middle)",
            hint="choose a model that fills in code, such as qwen2.5-coder",
            field="model",
        )
    return info.fim


async def _snippet(snippet: Snippet, fim: FillInMiddle, tokenize: Tokenize) -> list[int]:
    if fim.file is None:
        # No token begins a file: a line of its own parts the texts.
        return await tokenize(f"\n\n--- {snippet.name or 'snippet'} ---\n\n{snippet.text}")
    return [fim.file, *await tokenize(f"{snippet.name}\n{snippet.text}")]
