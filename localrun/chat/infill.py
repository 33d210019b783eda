"""Knows no route: a gap in a text as the tokens of a model that was trained to fill gaps.

The order is prefix, suffix, middle; other files come first, each behind its name, as in
Qwen2.5-Coder (https://arxiv.org/abs/2409.12186, section 3.2.2) and StarCoder2
(https://arxiv.org/abs/2402.19173), and as llama.cpp's server asks them
(https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md, ``/infill``). Otherwise
than there the text before the gap is tokenized as the one text that it is, a snippet is told whole
or not at all, and nothing of the gap is ever cut.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from localrun.chat.messages import Gap, Snippet
from localrun.engine.client import EngineInfo
from localrun.engine.runner import FillInMiddle
from localrun.errors import ContextLengthError, RequestError

Tokenize = Callable[[str], Awaitable[list[int]]]
"""Ids of plain text: names of control tokens in it are no control tokens."""

# What stands where a name was in training, and nobody told one. The words are llama.cpp's.
_REPOSITORY: Final = "myproject"
_THIS_FILE: Final = "filename"
_OTHER_FILE: Final = "tmp"


async def gap_tokens(gap: Gap, info: EngineInfo, tokenize: Tokenize, *, room: int) -> list[int]:
    """The prompt whose answer fills ``gap``. Snippets that would leave less than ``room`` tokens of
    the context are left out, the first of them first; of the gap itself nothing ever is.

    Raises:
        RequestError: the model was not trained to fill gaps.
        ContextLengthError: the gap alone is too long.
    """
    fim = _marks(info)
    # The text goes on where the gap begins: what it begins with already is behind the prefix.
    tokens = [
        fim.prefix,
        *await tokenize(gap.prefix + gap.begun),
        fim.suffix,
        *await tokenize(gap.suffix),
        fim.middle,
    ]
    first = [info.bos_id] if info.add_bos and info.bos_id is not None else []
    left = info.n_ctx - len(first) - len(tokens)
    if left < 1:
        raise ContextLengthError(len(first) + len(tokens), info.n_ctx)
    others: list[int] = []
    if gap.snippets and left > room:
        others = await _others(gap.snippets, fim, tokenize, left - room)
    return [*first, *others, *tokens]


async def _others(
    snippets: Sequence[Snippet], fim: FillInMiddle, tokenize: Tokenize, most: int
) -> list[int]:
    """The last snippets, as many as have ``most`` tokens with all that tells them apart.

    The last matter most: llama.cpp fills its room from the end of the list too. The first that does
    not fit ends the search, though a shorter one before it might: no list, however long, is then
    counted further than there is room, and what is told stays one run of it, so that the next
    request, with the same list and one snippet more, begins alike and finds that in the cache.
    """
    opening: list[int] = []
    closing: list[int] = []
    if fim.file is not None:
        if fim.repository is not None:
            opening = [fim.repository, *await tokenize(f"{_REPOSITORY}\n")]
        # The text with the gap is one more file.
        closing = [fim.file, *await tokenize(f"{_THIS_FILE}\n")]
    told: list[int] = []
    for snippet in reversed(snippets):
        try:
            more = await _snippet(snippet, fim, tokenize)
        except ContextLengthError:
            break
        if len(opening) + len(more) + len(told) + len(closing) > most:
            break
        told = more + told
    return [*opening, *told, *closing] if told else []


async def _snippet(snippet: Snippet, fim: FillInMiddle, tokenize: Tokenize) -> list[int]:
    if fim.file is None:
        # No token begins a file: a line of its own parts the texts.
        return await tokenize(f"\n\n--- {snippet.name or 'snippet'} ---\n\n{snippet.text}")
    return [fim.file, *await tokenize(f"{snippet.name or _OTHER_FILE}\n{snippet.text}")]


def _marks(info: EngineInfo) -> FillInMiddle:
    if info.fim is None:
        raise RequestError(
            "this model has no fill-in-the-middle tokens (prefix, suffix and middle)",
            hint="choose a model that fills in code, such as qwen2.5-coder",
            field="model",
        )
    return info.fim
