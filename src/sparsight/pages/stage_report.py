"""stage_report(...) -> str: a measurement of a vision-language model, stage by stage, as one page."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .page import TIMES, counted, render
from .plots import Bar, Bars, Plot, Point, by_recipe, ends

if TYPE_CHECKING:
    from ..speed.stage_result import StageBench, StageRow

STAGES = {"vision": "vision encoder", "selection": "selection", "prefill": "prefill", "other": "other", "decoding": "decoding"}
"""The parts of one `generate`, in their order, and what the page calls them."""


def stage_report(done: StageBench) -> str:
    facts = (
        "random weights" if done.weights == "random" else "",
        f"{done.layers} layers",
        f"{done.parameters / 1e9:.2f} G parameters" if done.parameters >= 1e8 else f"{done.parameters / 1e6:.1f} M parameters",
        f"{counted(done.prompts, 'prompt')} of {done.length} tokens",
        f"{done.new_tokens} new tokens", done.device, counted(done.threads, "thread"), done.precision, done.attention, done.date[:10],
    )  # fmt: skip
    return render(
        "stages.html",
        done=done,
        title=f"{done.model}: {counted(len(done.rows) - 1, 'recipe')} by stages",
        facts=facts,
        stacked=stacked(done),
        plots=plots(done),
    )


def stacked(done: StageBench) -> Bars:
    rows = [
        Bar(row.recipe, tuple(1e3 * row.seconds(stage).median for stage in STAGES), f"{row.gain('total').median:.2f}{TIMES}")
        for row in done.rows
    ]
    return Bars(rows, list(STAGES.values()), f"Milliseconds of one generate with {done.new_tokens} new tokens (medians)")


def plots(done: StageBench) -> list[Plot]:
    """Speed-up of the prefill over the ratio of multiply-accumulates, and of decoding over the size of the cache."""

    def gain(measure: str, x: Callable[[StageRow], float]) -> Callable[[StageRow], Point]:
        return lambda row: Point(x(row), row.gain(measure).median, str(row), upright=ends(row.gain(measure)))

    macs, prefill = f"MACs of the prefill: unpruned over pruned, {TIMES}", f"Speed-up of the prefill, {TIMES}"
    cache, further = "KV cache after the prompt, MB", f"Speed-up of each further token, {TIMES}"
    return [
        by_recipe(done.rows, gain("prefill", done.mac_ratio), macs, prefill),
        by_recipe(done.rows, gain("per_token", lambda row: row.footprint.cache / 1e6), cache, further),
    ]
