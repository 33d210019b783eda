"""Knows no wire: what a client of the completions API asked, in our own words."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from localrun.chat.messages import (
    Gap,
    Prompt,
    ReplyEvent,
    ReplyOptions,
    RequestContext,
    ServedModel,
)
from localrun.server.answering import Ask
from localrun.server.forms import grammar_of
from localrun.server.openai.completions_request import CompletionRequest
from localrun.server.prompts import naming, text_of
from localrun.server.sampling import sampling_of


def ask_of(request: CompletionRequest, context: RequestContext) -> Ask:
    """The choices of every prompt, behind the prompt itself where it is to be echoed."""
    options, n = options_of(request, context), request.n or 1

    def ask(model: ServedModel) -> AsyncGenerator[ReplyEvent]:
        if request.suffix:
            gaps = [Gap(_written(prompt), request.suffix) for prompt in request.prompt]
            events = model.infill(gaps, options, n)
        else:
            events = model.completions(request.prompt, options, n)
        if request.echo:
            events = _echoed(events, model, request.prompt, n)
        return naming(events, "prompt")

    return ask


def options_of(request: CompletionRequest, context: RequestContext) -> ReplyOptions:
    """Sampling as asked, the engine's defaults for the rest."""
    grammar = grammar_of(request)
    return ReplyOptions(
        sampling=sampling_of(request, logprobs=request.logprobs),
        max_tokens=request.max_tokens,
        stop=tuple(request.stop or ()),
        ignore_end=bool(request.ignore_eos),
        grammar=None if grammar is None else grammar[1],
        context=context,
    )


def form_of(request: CompletionRequest) -> str | None:
    """The field that says what form the answer has, if any does."""
    grammar = grammar_of(request)
    return None if grammar is None else grammar[0]


async def _echoed(
    events: AsyncGenerator[ReplyEvent], model: ServedModel, prompts: tuple[Prompt, ...], n: int
) -> AsyncGenerator[ReplyEvent]:
    begun = False
    async with aclosing(events):
        async for event in events:
            if not begun:
                # Not before the first event: what is refused instead of it keeps its own status.
                begun = True
                for at, prompt in enumerate(prompts):
                    text = await text_of(prompt, model)
                    for choice in range(at * n, at * n + n):
                        yield ReplyEvent(text=text, choice=choice)
            yield event


def _written(prompt: Prompt) -> str:
    return "".join(part for part in prompt.parts if isinstance(part, str))
