"""stage_report(...) -> str: a measurement of a vision-language model as one page of HTML that needs nothing from outside."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from importlib.resources import files

from ..speed.stage_result import StageBench, StageRow
from ..speed.stages import STAGES
from .bars import Bar, bars
from .plots import Point, Series, legend, plot

TIMES = "\u00d7"
TIMED = (
    "Recipe",
    "Vision ms",
    "Selection ms",
    "Prefill ms",
    "ms per token",
    "All ms",
    f"Prefill {TIMES}",
    f"Per token {TIMES}",
    f"All {TIMES}",
)
COUNTED = (
    "Recipe",
    "Visual tokens",
    "GMACs",
    "MAC ratio",
    "Measured share",
    "KV cache MB",
    "Tokens in the cache",
    "Peak memory MB",
)
NAMES = {"vision": "vision encoder", "selection": "selection", "prefill": "prefill", "other": "other", "decoding": "decoding"}


def stage_report(done: StageBench) -> str:
    """The page: facts, table, pictures, how it was measured."""
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    title = f"{done.model}: {len(done.rows) - 1} recipe{'s' * (len(done.rows) > 2)} by stages"
    body = [
        f"<header><h1>{escape(title)}</h1>{facts(done)}</header>",
        f"<section><h2>Time</h2>{table(done, TIMED, timed)}{reading_help(done)}</section>",
        f"<section><h2>Where it goes</h2>{stacked(done)}</section>",
        f"<section><h2>Work and memory</h2>{table(done, COUNTED, counted)}{counting_help()}</section>",
        f"<section><h2>Measured against counted</h2>{against(done)}</section>",
        small_print(done),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{style}</style>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>{"".join(body)}</main></body></html>\n'


def facts(done: StageBench) -> str:
    """One line under the title."""
    items = [
        "random weights" if done.weights == "random" else "",
        f"{done.layers} layers",
        f"{done.parameters / 1e9:.2f} G parameters" if done.parameters >= 1e8 else f"{done.parameters / 1e6:.1f} M parameters",
        f"{done.prompts} prompt{'s' * (done.prompts > 1)} of {done.length} tokens",
        f"{done.new_tokens} new tokens",
        done.device,
        f"{done.threads} thread{'s' * (done.threads > 1)}",
        done.precision,
        done.attention,
        done.date[:10],
    ]
    return f'<p class="facts">{" · ".join(map(escape, filter(None, items)))}</p>'


def table(done: StageBench, heads: tuple[str, ...], cells: Callable[[StageBench, StageRow], list[str]]) -> str:
    """All rows, the unpruned one first."""
    head = "".join(f"<th scope=col>{name}</th>" for name in heads)
    body = "".join(
        f"<tr{'' if index else ' class=unpruned'}><th scope=row>{escape(row.recipe)}</th>{''.join(cells(done, row))}</tr>"
        for index, row in enumerate(done.rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def cell(text: str, under: str = "") -> str:
    return f"<td>{text}{f'<small>{under}</small>' if under else ''}</td>"


def timed(_done: StageBench, row: StageRow) -> list[str]:
    """Milliseconds and speed-ups."""

    def ms(measure: str) -> str:
        found = row.seconds(measure)
        return cell(f"{1e3 * found.median:.1f}", f"{1e3 * found.low:.1f} to {1e3 * found.high:.1f}")

    def gain(measure: str) -> str:
        found = row.gain(measure)
        return cell(f"{found.median:.2f}{TIMES}", f"{found.low:.2f} to {found.high:.2f}")

    stages = [ms(name) for name in ("vision", "selection", "prefill", "per_token", "total")]
    return [*stages, *map(gain, ("prefill", "per_token", "total"))]


def counted(done: StageBench, row: StageRow) -> list[str]:
    """Multiply-accumulates and memory."""
    found = [escape(row.tokens), f"{row.macs.reading / 1e9:.3g}", f"{done.mac_ratio(row):.2f}{TIMES}", f"{done.share(row):.2f}"]
    found += [
        f"{row.footprint.cache / 1e6:.2f}",
        escape(row.lengths).replace(" x ", f" {TIMES} "),
        f"{row.footprint.peak / 1e6:.0f}",
    ]
    return list(map(cell, found))


def reading_help(done: StageBench) -> str:
    """How to read the table."""
    text = (
        f"Medians over {done.rounds} runs, quartiles under them. Speed-ups are taken within each pair of a pruned and an unpruned run; the "
        "unpruned row's is against itself, so it shows the noise. Prefill: the prompt through the language model, selection included."
    )
    return f'<p class="note">{text}</p>'


def counting_help() -> str:
    """How to read the second table."""
    text = (
        "GMACs of one prompt through the language model's layers, selection included. MAC ratio: unpruned over pruned. Measured share: "
        "the prefill's speed-up as a share of that ratio. Tokens in the cache after the prompt, by layers."
    )
    return f'<p class="note">{text}</p>'


def stacked(done: StageBench) -> str:
    """One bar of stages per row."""
    rows = [
        Bar(row.recipe, tuple(1e3 * row.seconds(stage).median for stage in STAGES), f"{row.gain('total').median:.2f}{TIMES}")
        for row in done.rows
    ]
    return bars(
        rows, [NAMES[stage] for stage in STAGES], f"Milliseconds of one generate with {done.new_tokens} new tokens (medians)"
    )


def against(done: StageBench) -> str:
    """Speed-up of the prefill over the ratio of multiply-accumulates, and of decoding over the size of the cache."""
    first = done.rows[0]

    def speed(row: StageRow) -> Point:
        return Point(done.mac_ratio(row), row.gain("prefill").median, str(row))

    def token(row: StageRow) -> Point:
        return Point(row.footprint.cache / 1e6, row.gain("per_token").median, str(row))

    def lines(point: Callable[[StageRow], Point]) -> list[Series]:
        return [Series(row.recipe, look, points=[point(row)]) for look, row in enumerate(done.rows[1:])]

    left = plot(
        lines(speed), speed(first), f"MACs of the prefill: unpruned over pruned, {TIMES}", f"Speed-up of the prefill, {TIMES}"
    )
    right = plot(lines(token), token(first), "KV cache after the prompt, MB", f"Speed-up of each further token, {TIMES}")
    return f'<div class="plots"><figure>{left}</figure><figure>{right}</figure></div>{legend(lines(speed))}'


def small_print(done: StageBench) -> str:
    """How the numbers were made."""
    items = [
        *(f"{NAMES[name].capitalize()}: {text}." for name, text in STAGES.items()),
        "Runs: one generate of the pruned and one of the unpruned model in turn, the order changing, after one pair to warm up.",
        "GMACs: multiply-accumulates of the language model's layers on one prompt, counted by torch.utils.flop_counter on the real run; "
        "attention counts whole, though causal kernels skip a part of it.",
        f"Peak memory: {done.memory_method}.",
        f"Images: {', '.join(done.images[:8])}{', ...' if len(done.images) > 8 else ''}; seed {done.seed}; {done.date}.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in done.versions.items()) + ".",
        *done.notes,
    ]
    return f"<footer><h2>How it was measured</h2><ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul></footer>"
