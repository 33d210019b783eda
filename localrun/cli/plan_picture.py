"""Knows no planning: a plan drawn line by line in cells of a terminal.

Imported only where a picture is drawn: rich is slow to load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from localrun.cli.output import clean_line, size
from localrun.cli.plan_bars import Part, apportion, parts_of, segments
from localrun.cli.plan_view import WIDEST, band, gib, milliseconds, number, place
from localrun.plan.plan import Budget, Plan, PlannedTier, Range

_INDENT = 2
_LABEL = 13
_FULL = "▆"
# One character for one, so that cells stay where they are.
_ASCII = str.maketrans("·–━●─│▲…▆", ".-=o-|^~#")


@dataclass(frozen=True, slots=True)
class Picture:
    """A plan as rich draws it, at most ``WIDEST`` columns wide."""

    plan: Plan

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        sheet = Sheet(console, min(options.max_width, WIDEST), options.ascii_only)
        for part in (_head, _tiers, _bill, _prediction, _what_if, _verdict):
            for line in part(self.plan, sheet):
                line.rstrip()
                line.no_wrap, line.overflow, line.end = True, "crop", "\n"
                if sheet.ascii_only:
                    plain = line.plain.translate(_ASCII)
                    line.plain = plain.encode("ascii", "replace").decode()
                yield line


@dataclass(frozen=True, slots=True)
class Sheet:
    """What is drawn on: its width in cells and what it can show."""

    console: Console
    width: int
    ascii_only: bool

    def heading(self, title: str, after: str = "") -> Iterator[Text]:
        yield Text()
        line = Text.assemble((f"{title} ", "bold"), (f"{after} " if after else "", "dim"))
        line.append("─" * max(0, self.width - line.cell_len), "dim")
        yield from self.wrapped(line, 0)

    def sides(self, left: Text, right: Text) -> Iterator[Text]:
        """On one line where both fit, otherwise below one another."""
        gap = self.width - left.cell_len - right.cell_len
        if gap >= 2:
            yield Text.assemble(left, " " * gap, right)
            return
        yield from self.wrapped(left, 0)
        yield from self.wrapped(Text.assemble(" " * _INDENT, right), _INDENT)

    def facts(self, parts: Sequence[str], style: str = "") -> Iterator[Text]:
        """Short facts side by side; a line breaks between two of them."""
        line = ""
        for part in filter(None, map(clean_line, parts)):
            longer = f"{line} · {part}" if line else part
            if line and Text(longer).cell_len > self.width:
                yield from self.wrapped(Text(line, style), _INDENT)
                longer = " " * _INDENT + part
            line = longer
        yield from self.wrapped(Text(line, style), _INDENT)

    def wrapped(self, text: Text, indent: int) -> Iterator[Text]:
        """Lines of at most the width; those after the first are indented."""
        first, *rest = text.wrap(self.console, self.width) or [Text()]
        yield first
        if rest:
            # What wraps again must leave room for the indentation.
            left = text[len(first.plain) :]
            left = left[len(left.plain) - len(left.plain.lstrip()) :]
            for line in left.wrap(self.console, self.width - indent):
                yield Text.assemble(" " * indent, line)


def _head(plan: Plan, sheet: Sheet) -> Iterator[Text]:
    model, parameters = plan.model, plan.model.parameters
    yield from sheet.sides(
        Text(clean_line(plan.ref), "bold"), Text(clean_line(plan.machine.name), "bold")
    )
    yield from sheet.facts(
        (
            model.architecture,
            model.quantization,
            size(model.total_bytes) if model.total_bytes else "",
            f"{model.layers} layers" if model.layers else "",
            f"{model.tensors:,} tensors" if model.tensors else "",
            f"{size(model.header_bytes_read)} of headers read" if model.header_bytes_read else "",
        )
    )
    if parameters.total:
        sparse = 0 < parameters.active < parameters.total
        yield from sheet.facts(
            (
                f"{_billions(parameters.total)} parameters",
                f"{_billions(parameters.engram)} in Engram" if parameters.engram else "",
                f"{_billions(parameters.active)} active a token" if sparse else "",
                _shares(plan) if sparse else "",
            )
        )
    yield from sheet.facts(_execution(plan), "dim")


def _billions(count: int) -> str:
    return f"{number(count / 1e9)} B" if count >= 1e9 else f"{number(count / 1e6)} M"


def _shares(plan: Plan) -> str:
    shares = plan.model.shares
    named = (("memory", shares.memory), ("experts", shares.experts), ("dense", shares.dense))
    return " ".join(f"{name} {share:.0%}" for name, share in named if share)


def _execution(plan: Plan) -> tuple[str, ...]:
    run = plan.execution
    return (
        f"{plan.backend} ({plan.backend_reason})" if plan.backend_reason else plan.backend,
        f"context {run.n_ctx}" + (f" x {run.parallel}" if run.parallel > 1 else ""),
        f"KV {run.kv_type}",
        f"numerics {clean_line(run.numerics)}" if run.numerics else "",
        f"ubatch {run.ubatch}",
        f"{run.gpu_layers} layers on devices" if run.gpu_layers else "",
        f"{run.slots_per_layer} expert slots a layer" if run.slots_per_layer else "",
        f"{run.threads} threads",
        "mmap" if run.mmap else "no mmap",
    )


def _tiers(plan: Plan, sheet: Sheet) -> Iterator[Text]:
    known = {tier.tier: tier for tier in plan.machine.tiers}
    if plan.budgets:
        yield from sheet.heading("where every byte lives")
    for budget in sorted(plan.budgets, key=lambda budget: place(budget.tier)):
        parts = parts_of(budget, plan.placements)
        yield from _tier_head(budget, known.get(budget.tier), sheet)
        yield from _bar(budget, parts, sheet)
        yield from _legend(parts, sheet)


def _tier_head(budget: Budget, tier: PlannedTier | None, sheet: Sheet) -> Iterator[Text]:
    left = Text.assemble((clean_line(budget.tier), "bold"))
    right = Text.assemble((gib(budget.total), "bold"), f" of {gib(budget.limit)}")
    if tier is not None:
        left.append(f"  {clean_line(tier.device)}" if tier.device else "")
        if tier.read_gbps:
            left.append(f"  {number(tier.read_gbps)} GB/s {clean_line(tier.basis)}", "dim")
        if tier.capacity_bytes > budget.limit:
            right.append(f" ({gib(tier.capacity_bytes)} in all)", "dim")
    yield from sheet.sides(left, right)


def _bar(budget: Budget, parts: Sequence[Part], sheet: Sheet) -> Iterator[Text]:
    line = Text("│")
    for segment in segments(parts, budget.limit, sheet.width - 2):
        style = segment.kind.colour if segment.kind else "dim"
        line.append(segment.text(ascii_only=sheet.ascii_only), style)
    if len(line) == 1:
        line.append(" " * (sheet.width - 2))
    line.append("│")
    yield line
    over = budget.total - budget.limit
    if over > 0:
        at = 1 + (sheet.width - 3) * max(0, budget.limit) // budget.total
        words = f"{gib(over)} more than the limit of {gib(budget.limit)}"
        mark = f"▲ {words}" if at + 2 + len(words) <= sheet.width else f"{words} ▲"
        yield Text(" " * max(0, at if mark[0] == "▲" else at + 1 - len(mark)) + mark, "bold red")


def _legend(parts: Sequence[Part], sheet: Sheet) -> Iterator[Text]:
    entries = []
    for part in parts:
        sample = part.kind.letter if sheet.ascii_only else part.kind.letter + part.kind.pattern
        entries.append(
            Text.assemble((sample, part.kind.colour), f" {_named(part)} {gib(part.bytes)}")
        )
    column = max((len(entry) for entry in entries), default=0) + 2
    columns = max(1, (sheet.width - _INDENT + 2) // max(1, column))
    for start in range(0, len(entries), columns):
        line = Text(" " * _INDENT)
        for entry in entries[start : start + columns]:
            line.append_text(entry)
            line.append(" " * (column - len(entry)))
        line.rstrip()
        yield line


def _named(part: Part) -> str:
    return f"{part.count:,} {part.kind.name}" if part.count else part.kind.name


def _terms_of(plan: Plan) -> dict[str, dict[str, float]]:
    """Milliseconds by tier, then by what belongs to none: ``ram dense`` is a term of ``ram``."""
    tiers = {*plan.bytes_per_token, *(tier.tier for tier in plan.machine.tiers)}
    found: dict[str, dict[str, float]] = {}
    for name, spent in plan.prediction.terms_ms.items():
        first, _, rest = name.partition(" ")
        owner, part = (first, rest or first) if first in tiers else (name, name)
        found.setdefault(owner, {})[part] = spent
    return found


def _bill(plan: Plan, sheet: Sheet) -> Iterator[Text]:
    reads, terms = plan.bytes_per_token, _terms_of(plan)
    times = {name: sum(parts.values()) for name, parts in terms.items()}
    names = [name for name in {**reads, **times} if reads.get(name) or times.get(name)]
    if not names:
        return
    names.sort(key=lambda name: (place(name) if name in reads else (9, ""), -times.get(name, 0)))
    yield from sheet.heading("one decoded token")
    label = max(_LABEL, *(len(name) + 1 for name in names))
    room = max(0, sheet.width - _INDENT - label - 10 - 2 - 12)
    longest = max(times.values(), default=0.0)
    for name in names:
        spent = times.get(name, 0.0)
        line = Text(" " * _INDENT + clean_line(name).ljust(label))
        line.append((size(reads[name]) if reads.get(name) else "").rjust(10) + "  ")
        line.append((milliseconds(spent) if spent else "").rjust(10) + "  ", "bold")
        filled = max(0, round(spent / longest * room)) if longest > 0 else 0
        line.append(_FULL * filled, "#e69f00" if spent == longest else "#56b4e9")
        yield line
        if len(terms.get(name, ())) > 1:
            parts = [f"{part} {milliseconds(time)}" for part, time in terms[name].items()]
            yield from sheet.facts([" " * 2 * _INDENT + parts[0], *parts[1:]], "dim")
    yield from _engram(plan, sheet)


def _engram(plan: Plan, sheet: Sheet) -> Iterator[Text]:
    use = plan.engram
    if use.rows_per_token:
        words = (
            f"Engram: {use.rows_per_token} rows, {use.bytes_per_token:,} B in "
            f"{use.reads_per_token} reads a token"
        )
        place = f" from {clean_line(use.tier)}" if use.tier else ""
        yield from sheet.wrapped(Text(" " * _INDENT + words + place), _INDENT)


def _prediction(plan: Plan, sheet: Sheet) -> Iterator[Text]:
    found, work = plan.prediction, plan.request.workload
    if found.decode_tps.mid <= 0 and found.prefill_tps.mid <= 0:
        return
    if plan.model.encoder:
        yield from sheet.heading("predicted", f"texts of {work.prompt} tokens")
        yield from _estimate("embedding", found.prefill_tps, "tokens/s", sheet)
        yield from _estimate("one text", found.ttft_s, "s", sheet)
        return
    depth = f" at depth {work.depth}" if work.depth else ""
    yield from sheet.heading("predicted", f"{work.prompt} tokens in, {work.output} out{depth}")
    yield from _estimate("decode", found.decode_tps, "tokens/s", sheet)
    if found.cold != found.steady:
        yield from _estimate("  cold", found.cold, "tokens/s", sheet)
        yield from _estimate("  steady", found.steady, "tokens/s", sheet)
    yield from _estimate("prefill", found.prefill_tps, "tokens/s", sheet)
    yield from _estimate("first token", found.ttft_s, "s", sheet)
    if found.bound_by:
        spent = sum(_terms_of(plan).get(found.bound_by, {}).values())
        total = sum(time for time in found.terms_ms.values() if time > 0)
        share = f", {spent / total:.0%} of the work on a token" if spent > 0 else ""
        line = Text.assemble(
            " " * _INDENT, "bound by ", (clean_line(found.bound_by), "bold"), share
        )
        yield from sheet.wrapped(line, _INDENT)
    if found.runs:
        runs = "one run" if found.runs == 1 else f"{found.runs} runs"
        yield Text(" " * _INDENT + f"as {runs} of it on this machine showed", "dim")


def _estimate(label: str, estimate: Range, unit: str, sheet: Sheet) -> Iterator[Text]:
    """``decode  2.9 tokens/s  2.1–4.4`` and its band on a scale that begins at nothing."""
    if estimate.mid <= 0:
        return
    line = Text.assemble(" " * _INDENT, label.ljust(_LABEL))
    line.append(f"{number(estimate.mid)} {unit}".ljust(16), "bold")
    line.append(band(estimate).ljust(13))
    room = sheet.width - line.cell_len
    if estimate.high > 0 and room >= 10:
        low, mid = (
            min(room - 1, int(value / estimate.high * room))
            for value in (estimate.low, estimate.mid)
        )
        line.append("·" * low, "dim")
        line.append("━" * (mid - low), "#56b4e9")
        line.append("●", "bold #56b4e9")
        line.append("━" * (room - 1 - mid), "#56b4e9")
    yield line


def _what_if(plan: Plan, sheet: Sheet) -> Iterator[Text]:
    if not plan.what_if:
        return
    now = plan.prediction.decode_tps.mid
    yield from sheet.heading("what if")
    rows = [("as planned", now)] if now > 0 else []
    rows += [(clean_line(each.change), each.decode_tps) for each in plan.what_if]
    label = min(max(Text(change).cell_len for change, _ in rows), sheet.width - _INDENT - 26) + 2
    best = max(speed for _, speed in rows)
    for change, speed in rows:
        text = Text(" " * _INDENT + change)
        text.truncate(_INDENT + label - 1, overflow="ellipsis")
        text.pad_right(_INDENT + label - text.cell_len)
        text.append(f"{number(speed)} tokens/s".rjust(15), "bold")
        gain = f"{(speed - now) / now:+.0%}" if now > 0 else ""
        text.append(("" if gain in ("+0%", "-0%") else gain).rjust(8))
        room = sheet.width - text.cell_len - 2
        if room >= 8 and best > 0:
            cells = apportion([int(speed * 1000), int((best - speed) * 1000)], room)[0]
            text.append("  " + _FULL * cells, "#2fbf8f" if speed > now else "#56b4e9")
        yield text


def _verdict(plan: Plan, sheet: Sheet) -> Iterator[Text]:
    if plan.warnings:
        yield from sheet.heading("warnings")
    for warning in plan.warnings:
        yield from sheet.wrapped(Text.assemble(("! ", "bold yellow"), clean_line(warning)), 2)
    yield Text()
    word, style = (" FITS ", "bold green") if plan.fits else (" DOES NOT FIT ", "bold red")
    line = Text.assemble((word, f"{style} reverse"), " ", (clean_line(plan.verdict), "bold"))
    yield from sheet.wrapped(line, 1)
    short = [budget for budget in plan.budgets if budget.total > budget.limit]
    for budget in sorted(short, key=lambda budget: place(budget.tier)):
        missing = f"{clean_line(budget.tier)} is {gib(budget.total - budget.limit)} short"
        needs = f": {gib(budget.total)} are needed, {gib(budget.limit)} may be taken"
        yield from sheet.wrapped(Text.assemble(" ", (missing, "bold red"), needs), _INDENT)
