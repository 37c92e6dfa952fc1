"""What `bench-vlm` returns: one row per recipe, each run beside the unpruned model, as a table and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from ..errors import PruneError
from ..runs.comparison import UNPRUNED
from ..runs.store import read_result
from .stages import Footprint, Macs, Times
from .timing import Spread, spread

Measure = Callable[[Times], float]

GAINS: dict[str, Measure] = {
    "prefill": lambda times: times.reading,
    "first_token": lambda times: times.first_token,
    "per_token": lambda times: times.per_token,
    "total": lambda times: times.total,
}
"""What is compared with the unpruned model: reading the prompt (choosing its tokens included), the time to the first token, each
token after it, and the whole `generate`."""


@dataclass(frozen=True)
class StageRow:
    """One recipe.

    visual, left   visual tokens of the whole batch before pruning, and after each site.
    macs           per prompt.            footprint      of the whole batch.
    runs, beside   one `generate` of the pruned and one of the unpruned model, taken in turn; for the unpruned row both are unpruned.
    """

    recipe: str
    definition: dict[str, Any] | None
    prompts: int
    visual: int
    left: list[int]
    macs: Macs
    footprint: Footprint
    runs: list[Times] = field(repr=False)
    beside: list[Times] = field(repr=False)

    def seconds(self, measure: str) -> Spread:
        """Median and quartiles of a stage, of `total`, `per_token` or `first_token`."""
        return spread(getattr(times, measure) for times in self.runs)

    def gain(self, measure: str) -> Spread:
        """How many times faster than the unpruned run beside it; `measure` is one of `GAINS`."""
        take = GAINS[measure]
        return spread(take(before) / take(after) for before, after in zip(self.beside, self.runs, strict=True))

    @property
    def tokens(self) -> str:
        """Visual tokens of a prompt: before, and after each site."""
        return " → ".join(f"{count / self.prompts:g}" for count in (self.visual, *self.left))

    @property
    def lengths(self) -> str:
        """Tokens in the cache of each layer, equal neighbours together."""
        parts = [(length, len(list(same))) for length, same in groupby(self.footprint.lengths)]
        return ", ".join(f"{length} x {layers}" for length, layers in parts)

    def __str__(self) -> str:
        return (
            f"{self.recipe}: {self.tokens} visual tokens, prefill {self.gain('prefill').median:.2f} times as fast, "
            f"each further token {self.gain('per_token').median:.2f}, all {self.gain('total').median:.2f}; {self.footprint}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, and medians with quartiles for readers of the file."""
        names = ("vision", "selection", "prefill", "other", "decoding", "first_token", "per_token", "total")
        summary = {"seconds": {name: asdict(self.seconds(name)) for name in names}}
        return {**asdict(self), "summary": summary | {"speedup": {name: asdict(self.gain(name)) for name in GAINS}}}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> StageRow:
        """Read what `to_dict` made."""
        kept = {name: value for name, value in data.items() if name != "summary"}
        kept |= {name: [Times(**times) for times in data[name]] for name in ("runs", "beside")}
        return StageRow(**{**kept, "macs": Macs(**data["macs"]), "footprint": Footprint(**data["footprint"])})


@dataclass(frozen=True)
class StageBench:
    """Rows of one vision-language model on one batch of prompts; the first row is the unpruned model.

    weights: "checkpoint" or "random"; layers: of the language model; length: tokens of the longest prompt before pruning; attention:
    the implementation that ran; notes: what the reader of the numbers should know.
    """

    model: str
    weights: str
    layers: int
    parameters: int
    images: list[str]
    prompts: int
    length: int
    new_tokens: int
    rounds: int
    device: str
    threads: int
    precision: str
    attention: str
    seed: int
    date: str
    versions: dict[str, str]
    memory_method: str
    notes: list[str]
    rows: list[StageRow] = field(repr=False)

    def row(self, recipe: str) -> StageRow:
        """The row of a recipe, by its string."""
        for row in self.rows:
            if row.recipe == recipe:
                return row
        raise PruneError(f"no row {recipe!r}; there are {', '.join(row.recipe for row in self.rows)}")

    def mac_ratio(self, row: StageRow) -> float:
        """How many times fewer multiply-accumulates it takes to read the prompt, choosing its tokens included."""
        return self.row(UNPRUNED).macs.reading / row.macs.reading

    def share(self, row: StageRow) -> float:
        """Measured speed-up of the prefill as a share of the ratio of multiply-accumulates."""
        return row.gain("prefill").median / self.mac_ratio(row)

    def __str__(self) -> str:
        weights = " with random weights" if self.weights == "random" else ""
        prompts = f"{self.prompts} prompt{'s' * (self.prompts > 1)} of {self.length} tokens and {self.new_tokens} new"
        return f"{self.model}{weights}, {self.layers} layers: {prompts}, {self.device}, {self.threads} threads, {self.precision}"

    def to_json(self) -> str:
        """All of it as JSON text; `from_json` is the inverse."""
        rows = [{**row.to_dict(), "mac_ratio": self.mac_ratio(row), "share": self.share(row)} for row in self.rows]
        return json.dumps({**asdict(self), "rows": rows}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> StageBench:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        derived = ("mac_ratio", "share")
        rows = [StageRow.from_dict({k: v for k, v in row.items() if k not in derived}) for row in data.pop("rows")]
        return StageBench(**data, rows=rows)

    @staticmethod
    def load(path: str | Path) -> StageBench:
        """Read results.json, or the folder that holds it."""
        return read_result(path, StageBench.from_json, "bench-vlm")
