"""Does no I/O and searches nothing: what stays the same while choices are weighed."""

from __future__ import annotations

from dataclasses import dataclass

from localrun.models.cache import by_layer
from localrun.models.spec import ModelSpec
from localrun.plan import memory, predict, torch_memory, work
from localrun.plan.constants import Constants
from localrun.plan.engines import Engine
from localrun.plan.hits import TYPICAL_SKEW, Picking
from localrun.plan.learned import NOTHING_LEARNED, Learned
from localrun.plan.load import Choice
from localrun.plan.placement import Assignment, place
from localrun.plan.plan import KvType, PlanRequest
from localrun.plan.rooms import Rooms
from localrun.plan.stack import Stack, stack


@dataclass(frozen=True, slots=True)
class Task:
    """``learned`` is what earlier runs say; of that only how experts are picked weighs in a choice:
    times are off by the same factor wherever weights lie."""

    stack: Stack
    rooms: Rooms
    request: PlanRequest
    engine: Engine
    fit: Constants
    floats: float
    learned: Learned = NOTHING_LEARNED

    def place(self, choice: Choice) -> Assignment:
        return place(choice, self.stack, self.rooms, self.engine)

    def fits(self, choice: Choice) -> bool:
        return not self.place(choice).missing

    def cards_fit(self, choice: Choice) -> bool:
        return self.place(choice).cards_fit

    def seconds(self, made: Assignment) -> float:
        """Predicted time of the request's workload."""
        decode = self.request.workload.output * self.token_ms(made)
        return (self.prefill_ms(made) + decode) / 1e3

    def token_ms(self, made: Assignment) -> float:
        """Predicted time of one decoded token."""
        return self.token_terms(made).total

    def token_terms(self, made: Assignment, skew: float = TYPICAL_SKEW) -> predict.Terms:
        token = self.token(made, skew)
        return predict.token_terms(token, self.rooms, self.engine, self.fit, self.request.threads)

    def token(self, made: Assignment, skew: float = TYPICAL_SKEW) -> work.Token:
        """The work of one decoded token."""
        return work.token(made, self.picking(skew))

    def picking(self, skew: float = TYPICAL_SKEW) -> Picking:
        return Picking(skew, self.learned.picks)

    def prefill_ms(self, made: Assignment) -> float:
        """Predicted time of the workload's prompt."""
        if self.request.workload.prompt == 0:
            return 0.0
        return self.prompt_terms(made).total * self.chunks(made)

    def chunks(self, made: Assignment) -> float:
        """How many micro-batches the prompt comes in; the last one counts as a part."""
        return max(1.0, self.request.workload.prompt / made.choice.ubatch)

    def prompt_terms(self, made: Assignment) -> predict.Terms:
        """A chunk of the prompt, in the mean of all: the first finds no experts in a cache."""
        flow, spec = self.request.workload, made.stack.spec
        shortened = self.engine.prefill_layers or self.request.approximate_prefill
        shorter = shortened and spec.prefill_layers
        layers = spec.prefill_layers if shorter else len(made.stack.layers)
        tokens = max(1, min(made.choice.ubatch, flow.prompt))
        # Of an encoder every token looks at all of its text.
        depth = tokens if spec.encoder else flow.depth + flow.prompt // 2

        def terms(*, cold: bool) -> predict.Terms:
            chunk = work.chunk(made, tokens, layers, depth, self.picking(), cold=cold)
            return predict.chunk_terms(chunk, self.rooms, self.engine, self.fit)

        later = terms(cold=False)
        if not made.streams:
            return later
        return predict.mean(terms(cold=True), later, 1 / self.chunks(made))


def arrange(spec: ModelSpec, request: PlanRequest, kind: Engine, n_ctx: int) -> Stack:
    """The model at a context, its cache as the engine lays it out."""
    kv_type, stored = kv_type_of(request, kind, spec), 1.0
    if kind.numerics:
        wide = torch_memory.held(spec, exact=exact(request))
        held = sum(group.bytes for group in wide.of("experts"))
        stored = sum(group.bytes for group in spec.of("experts")) / held if held else 1.0
        spec = wide
    depth = request.workload.depth + request.workload.prompt
    if kind.cells:
        kept = memory.kv_by_layer(spec, n_ctx, kv_type, request.parallel)
    else:
        kept = {
            layer: size * request.parallel for layer, size in by_layer(spec, n_ctx, kv_type).items()
        }
    return stack(spec, kept, kv_type, depth, stored)


def exact(request: PlanRequest) -> bool:
    """Whether all is computed in 32 bits."""
    return request.numerics is not None and request.numerics.startswith("float32")


def kv_type_of(request: PlanRequest, kind: Engine, spec: ModelSpec) -> KvType:
    """The engine's only one, else the type asked for, else the release's own where the engine has
    it, else 16 bits. What is computed in 32 bits is kept in them."""
    native = any(rows.native_bytes for rows in spec.caches)
    if kind.kv is not None:
        return kind.kv
    if exact(request) and request.kv_type in (None, "native"):
        return "f32"
    if request.kv_type is not None:
        return request.kv_type
    if kind.native_kv and native:
        return "native"
    return "bf16" if kind.numerics else "f16"
