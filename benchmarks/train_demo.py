"""Fine-tuning under pruning: the demo model at keep 0.5, blocks 0/3/6, by several scores and seeds, on one folder, tested on another.

    python benchmarks/train_demo.py --data DATA/train --test DATA/test --out runs/train_demo [--seeds 3] [--epochs 5]

Each run is a `sparsight.train` of its own below OUT and goes on where it was interrupted; so does the whole. OUT/train_demo.json has
every run, OUT/train_demo.md the table, OUT/train_demo.png the losses. Runs of one seed see the same images in the same order.
The random baseline drops the same places of all images, others for each seed. Accuracy: mean over seeds; intervals are paired over test images, of the share of seeds that are right on each.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import sparsight
from sparsight.runs.intervals import Interval, paired_means
from sparsight.runs.store import write_text
from sparsight.runs.sweep import Step
from sparsight.train.curves import draw_loss
from sparsight.train.result import LogLine, Training

BUDGET = "keep=0.5,layers=0/3/6"
RECIPES = tuple(f"{name}:{BUDGET}" for name in ("col_ln", "class_attention", "renyi", "shannon", "random"))
"""Col-Ln, class attention, Renyi entropy of order 2, Shannon entropy, and the baseline, in the order of the table."""

SETTINGS = {
    "batch_size": 32,
    "lr": 2e-5,
    "weight_decay": 0.01,
    "warmup_epochs": 0,
    "min_lr": 1e-6,
    "smoothing": 0.1,
    "crop_scale": (0.5, 1.0),
}
BASE = "random"
CLAIMS = (
    ("Col-Ln starts at a lower loss than class attention (Col-Ln paper, figure 3)", "col_ln", "class_attention", "first"),
    ("Col-Ln ends above class attention (Col-Ln paper, table 13)", "col_ln", "class_attention", "after"),
    ("Renyi entropy ends above class attention (Renyi entropy paper)", "renyi", "class_attention", "after"),
    ("Shannon entropy ends above class attention (Renyi entropy paper)", "shannon", "class_attention", "after"),
)
"""What the papers say, and the two rows that bear it out or do not."""


@dataclass(frozen=True)
class Row:
    """All seeds of one recipe."""

    recipe: str
    runs: list[Training]

    @property
    def name(self) -> str:
        return self.recipe.partition(":")[0]

    @property
    def right(self) -> list[float]:
        """Share of the seeds that are right, image by image."""
        columns = zip(*(run.hits for run in self.runs), strict=True)
        return [statistics.fmean(column) for column in columns if min(column) >= 0]

    @property
    def log(self) -> list[LogLine]:
        """The mean loss of all seeds."""
        lines = zip(*(run.log for run in self.runs), strict=True)
        return [
            LogLine(group[0].step, group[0].epoch, statistics.fmean(one.loss for one in group), {}, group[0].lr, [])
            for group in lines
        ]

    def losses(self, last: bool) -> list[float]:
        return [run.log[-1 if last else 0].loss for run in self.runs]

    def accuracy(self, when: str) -> float:
        return statistics.fmean(found.value for run in self.runs if (found := getattr(run, when)) is not None)


def points(found: Interval) -> str:
    """A difference in points with its interval, bold where the interval leaves out zero."""
    text = f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    return f"**{text}**" if found.low > 0 or found.high < 0 else text


def table(rows: list[Row]) -> str:
    """The page."""
    base = next(row for row in rows if row.name == BASE)
    some = rows[0].runs[0]
    head = ["score", "top-1 before %", "after %", "spread over seeds", f"after, against {BASE}", "loss at first", "loss at last"]
    out = [
        f"{some.model}, {BUDGET}, {len(rows[0].runs)} seeds, {some.settings['epochs']} epochs of {some.images} images, tested on {some.test_images}; "
        f"{some.macs / 1e9:.2f} of {some.unpruned_macs / 1e9:.2f} GMACs.",
        "",
        f"| {' | '.join(head)} |",
        f"|{' --- |' * len(head)}",
    ]
    for row in rows:
        ends = [found.value for run in row.runs if (found := run.after) is not None]
        against = "" if row is base else points(paired_means(row.right, base.right))
        cells = [
            f"`{row.name}`", f"{100 * row.accuracy('before'):.1f}", f"{100 * row.accuracy('after'):.1f}", f"{100 * min(ends):.1f} to {100 * max(ends):.1f}",
            against, f"{statistics.fmean(row.losses(False)):.3f}", f"{statistics.fmean(row.losses(True)):.3f}",
        ]  # fmt: skip
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join([*out, "", *claims(rows), ""])


def claims(rows: list[Row]) -> list[str]:
    """Each claim, the two numbers, and whether they bear it out."""
    known = {row.name: row for row in rows}
    found = []
    for text, one, two, what in CLAIMS:
        if not {one, two} <= set(known):
            continue
        first, second = known[one], known[two]
        if what == "first":
            pairs = list(zip(first.losses(False), second.losses(False), strict=True))
            lower = sum(a < b for a, b in pairs)
            found.append(
                f"* {text}: lower in {lower} of {len(pairs)} seeds ({pairs[0][0]:.3f} and {pairs[0][1]:.3f} in the first)."
            )
        else:
            move = paired_means(first.right, second.right)
            verdict = (
                "borne out"
                if move.low > 0
                else "not borne out: the opposite"
                if move.high < 0
                else "undecided: the interval holds zero"
            )
            found.append(f"* {text}: {points(move)} points, {verdict}.")
    return found


def say(name: str) -> Callable[[Step], None]:
    """A line of progress now and then."""

    def listen(step: Step) -> None:
        if step.unit == "steps" and (step.done % 20 == 0 or step.done == step.total):
            print(f"{name}: step {step.done:.0f} of {step.total}, {step.text}", flush=True)

    return listen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="training images, one folder per class")
    parser.add_argument("--test", required=True, help="images to report on")
    parser.add_argument("--out", type=Path, default=Path("runs/train_demo"))
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--limit", type=int, help="so many training images, spread over the classes")
    asked = parser.parse_args()
    runs: dict[str, list[Training]] = {recipe: [] for recipe in RECIPES}
    for seed in range(asked.seeds):  # seed by seed, so that a part of the work is a whole table
        for recipe in RECIPES:
            name = recipe.partition(":")[0]
            done = sparsight.train(
                asked.model, asked.data, f"{recipe},seed={seed}" if name == BASE else recipe, asked.out / f"{name}-{seed}", test=asked.test, limit=asked.limit, device=asked.device, workers=asked.workers,
                eval_every=0, log_every=1, listen=say(f"{name}, seed {seed}"), **{**SETTINGS, "epochs": asked.epochs, "seed": seed},
            )  # fmt: skip
            print(done, flush=True)
            runs[recipe].append(done)
        rows = [Row(recipe, found) for recipe, found in runs.items()]
        write_text(
            asked.out / "train_demo.json",
            json.dumps({row.recipe: [json.loads(run.to_json()) for run in row.runs] for row in rows}, indent=1) + "\n",
        )
        write_text(asked.out / "train_demo.md", table(rows))
        draw_loss({row.name: row.log for row in rows}, asked.out / "train_demo.png")


if __name__ == "__main__":
    main()
