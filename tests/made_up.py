"""Results with made-up numbers and names that try to break a page."""

from __future__ import annotations

import math

from sparsight.evaluation.corruption_rows import CorruptionRow, Robustness
from sparsight.evaluation.result import Evaluation, Score
from sparsight.evaluation.vlm_scores import Score as AskedScore
from sparsight.evaluation.vlm_scores import VlmEvaluation
from sparsight.evaluation.vlm_scores import VlmRow as AskedRow
from sparsight.look.analysis import Agreement, Analysis, Head, Histogram, Left
from sparsight.runs.comparison import UNPRUNED, Comparison, Outcomes, Row
from sparsight.runs.intervals import Interval
from sparsight.runs.vlm_comparison import Cost, VlmComparison
from sparsight.runs.vlm_comparison import VlmRow as ComparedVlm
from sparsight.runs.vlm_counts import Tally
from sparsight.speed.bench_result import Bench, BenchRow, Timing
from sparsight.speed.stage_result import StageBench, StageRow
from sparsight.speed.stages import Footprint, Macs, Times
from sparsight.speed.timing import Spread
from sparsight.train.result import LogLine, Training
from sparsight.tune.result import Contest, TunedRow, Tuning
from sparsight.tune.search import Found
from sparsight.tune.sensitivity import Sensitivity, SiteRow

HOSTILE = """<script>alert("1")</script>'&{{ 7 * 7 }}{% raw %}"""
LONG = "compose:keep=0.5,layers=0/1/2/3/4/5/6/7/8/9/10/11,score=col_ln,select=topk,reduce=fuse_rest,order=2.5,rows=patches"
COMMON = {
    "device": "cpu (x86_64)", "date": "2026-01-02T03:04:05+00:00", "versions": {"python": "3.11", "torch": "2.15"}, "seed": 0,
}  # fmt: skip


def row(recipe: str, budget: str, top1: float, half: float, speed: float, quartile: float, images: int = 4) -> Row:
    """A row whose accuracy and speed-up have intervals of the given half widths."""
    values = [0.9 + 0.001 * (index % 3) + top1 / 100 for index in range(images)]
    move = Interval(top1 - 0.9, top1 - 0.9 - half, top1 - 0.9 + half)
    return Row(
        recipe=recipe, label=recipe, budget=budget, layers="3/6/9", definition=None, tokens=[137, 95, 66], images=images, top1=top1,
        top1_change=None if recipe == UNPRUNED else move, top5=top1 + 0.05, top5_change=None if recipe == UNPRUNED else move,
        agreement=Interval(top1, top1 - half, top1 + half), cosine=sum(values) / images, macs=3_040_000_000, images_per_second=93.1,
        speedup=Spread(speed, speed - quartile, speed + quartile, 8), peak_memory=149_000_000,
        outcomes=Outcomes([0] * images, [1] * images, [1] * images, [1] * images, values),
    )  # fmt: skip


def comparison(name: str = HOSTILE) -> Comparison:
    """Two budgets: at 0.7 the intervals of the two recipes overlap, at 0.5 they do not."""
    rows = [
        row(UNPRUNED, "", 0.9, 0, 1.0, 0.01), row(name, "keep=0.7", 0.88, 0.02, 1.5, 0.1), row("evit", "keep=0.7", 0.87, 0.02, 1.45, 0.1),
        row(name + ",keep=0.5", "keep=0.5", 0.85, 0.01, 2.1, 0.02), row(LONG, "keep=0.5", 0.80, 0.01, 1.9, 0.02),
    ]  # fmt: skip
    return Comparison(
        model=name, data=name, data_fingerprint="0", image_size=(224, 224), threads=2, precision="fp32", batch_size=32, timed_batch=4,
        interval_method="95%", memory_method=name, notes=[name], skipped=[(name, "not an image")], images=["a"] * 4, rows=rows, **COMMON,
    )  # fmt: skip


def bench(name: str = HOSTILE) -> Bench:
    """Two engines at two batch sizes."""
    rows = []
    for backend in ("eager", "onnxruntime"):
        for index, recipe in enumerate((UNPRUNED, name, LONG)):
            runs, beside = [0.1 / (1 + index / 3)] * 6, [0.1, 0.11] * 3
            timings = [Timing(1, runs, beside), Timing(32, [20 * run for run in runs], [20 * run for run in beside])]
            seen = backend == "eager"
            rows.append(
                BenchRow(
                    recipe, "fp32", backend, [137, 95][: 2 * index], int(4.6e9 / (1 + index / 2)), 1 + index / 2, timings,
                    149_000_000 if seen else None, 0.04 if seen else None,
                )
            )  # fmt: skip
    kept = {key: value for key, value in COMMON.items() if key != "seed"}
    return Bench(
        model=name,
        image_size=(224, 224),
        batches=[1, 32],
        seconds=4.0,
        threads=2,
        memory_method="m",
        notes=[name],
        rows=rows,
        **kept,
    )


def stages(name: str = HOSTILE) -> StageBench:
    """A vision-language model under two recipes."""
    rows = []
    for index, recipe in enumerate((UNPRUNED, name, LONG)):
        runs = [Times(0.05, 0.002 * index, 0.5 / (1 + index), 0.03, 0.8 / (1 + index / 5), 16)] * 4
        beside = [Times(0.05, 0.0, 0.5, 0.03, 0.8, 16)] * 4
        macs, footprint = (
            Macs(10**11, 10**8 * index, 4 * 10**12 // (1 + index)),
            Footprint(14 * 10**9, 3 * 10**8, [640] * 2 + [128] * 30),
        )
        rows.append(StageRow(recipe, None, 1, 576, [576 // (1 + index)], macs, footprint, runs, beside))
    return StageBench(
        model=name, weights="random", layers=32, parameters=7 * 10**9, images=[name], prompts=1, length=640, new_tokens=16, rounds=4,
        threads=2, precision="fp32", attention="sdpa", memory_method="m", notes=[name], rows=rows, **COMMON,
    )  # fmt: skip


def analysis(name: str = HOSTILE, blocks: int = 12) -> Analysis:
    """Twelve blocks, two recipes, two orders."""
    layers, recipes = list(range(blocks)), [name, LONG]
    return Analysis(
        model=name, data=name, images=3, grid=(14, 14), patch=(16.0, 16.0), layers=layers, recipes=recipes, orders=[1.0, math.inf],
        order=1.0, kept=98, uniform=80.0, notes=[name], skipped=[(name, "not an image")], maps=[name],
        histograms=[
            Histogram(layer, order, [max(0, 40 - abs(bin - 20 - layer)) for bin in range(60)], list(range(60)))
            for order in (1.0, math.inf) for layer in layers
        ],
        heads=[Head(layer, head, 20.0 + 5 * head + layer, [2.0 + head / 3, 1.0 + head / 4], 0.5) for layer in layers for head in range(6)],
        agreements=[
            Agreement(layer, a, b, 1.0 if a == b else 0.4 + layer / 20, 0.4, 0.5)
            for layer in layers for a, b in ((recipes[0], recipes[0]), (recipes[0], recipes[1]), (recipes[1], recipes[1]))
        ],
        left=[Left(layer, recipe, 98.0, 50.0 + layer + 4 * i, 52.0 + layer, 90.0) for layer in layers for i, recipe in enumerate(recipes)],
        **COMMON,
    )  # fmt: skip


def robustness(name: str = "m") -> Robustness:
    """Three corruptions at two severities, unpruned and under one recipe."""
    rows = [
        CorruptionRow(
            name,
            severity,
            recipe,
            4,
            Interval(0.8, 0.7, 0.9),
            None,
            40.0,
            1.0,
            0.1,
            None if recipe == UNPRUNED or not severity else 0.7,
        )
        for name, severity in [("clean", 0), *((name, level) for name in ("fog", "snow", "frost") for level in (1, 3))]
        for recipe in (UNPRUNED, LONG)
    ]
    return Robustness(
        model=name, data=name, images=4, precision="fp32", interval_method="m", notes=[], skipped=[], rows=rows, **COMMON
    )


def evaluation(name: str = HOSTILE) -> Evaluation:
    """The unpruned model and two recipes."""
    scores = []
    for index, recipe in enumerate((UNPRUNED, name, LONG)):
        share = Interval(0.9 - index / 50, 0.85, 0.95)
        move = Interval(-index / 50, -0.1, 0.05) if index else None
        scores.append(
            Score(recipe, None, [137.0, 95.5][: 2 * index], 100, 100, share, move, share, move, share, int(4e9 / (1 + index)))
        )
    return Evaluation(
        model=name, mode="zero-shot", data=name, data_fingerprint="0", preset=name, images=100, classes=10, image_size=(224, 224), processes=1,
        precision="fp32", batch_size=32, interval_method="95%", notes=[name], skipped=[(name, "not an image")] * 60, scores=scores, **COMMON,
    )  # fmt: skip


def tuning(name: str = HOSTILE) -> Tuning:
    """The unpruned model, a front of two recipes, one of one's own, and a trial that was stopped."""
    rows = []
    for index, recipe in enumerate(("", name, LONG)):
        share, move = Interval(0.9 - index / 50, 0.85, 0.95), Interval(-index / 50, -0.1, 0.05)
        rows.append(
            TunedRow(
                [recipe] * bool(index), [{}] * bool(index), index or None, 6.0 / (1 + index), 1.0 + index, [137.0, 95.5][: 2 * index], 0.9, 0.0,
                share, move if index else None, index == 1,
            )
        )  # fmt: skip
    trials = [
        Found(number, [recipe], [{}], 0.9 - number / 50, -number / 50, 6.0 / (1 + number), 1.0 + number, [], 100, stopped)
        for number, (recipe, stopped) in enumerate(((name, ""), (LONG, ""), (name + "2", "trial 1 is better")), 1)
    ]
    return Tuning(
        model=name, data={"search": name, "report": name}, images={"search": 100, "report": 100}, fingerprints={"model": "0"},
        metric="accuracy", engine="macs", unit="GMACs", target="speed-up at least 2", met=True, space=name, precision="fp32", batch_size=32,
        interval_method="95%", notes=[name], skipped=[(name, "not an image")], rows=rows, given=[rows[1]],
        contests=[Contest(name, LONG, Interval(0.1, 0.05, 0.15)), Contest(name, None, None)], trials=trials, **COMMON,
    )  # fmt: skip


def sites(name: str = HOSTILE) -> Sensitivity:
    """Two methods at three blocks, and a smaller picture."""
    rows = [SiteRow(UNPRUNED, "", "", 1.0, Interval(0.9, 0.8, 1.0), None, 6.0, 1.0)]
    rows += [
        SiteRow(recipe, recipe, place, 0.5, Interval(0.8, 0.7, 0.9), Interval(-0.1, -0.2, 0.0), 4.0, 1.5)
        for recipe in (name, LONG)
        for place in ("0", "1", "2", "image")
    ]
    return Sensitivity(
        model=name, data=name, images=100, fingerprints={"model": "0"}, metric="accuracy", engine="macs", unit="GMACs", precision="fp32",
        batch_size=32, interval_method="95%", notes=[name], skipped=[(name, "not an image")], rows=rows, **COMMON,
    )  # fmt: skip


def training(name: str = HOSTILE) -> Training:
    """A hundred lines of a log, asked twice."""
    log = [
        LogLine(10 * step, step / 20, 3.0 / step, {"labels": 3.0 / step}, 1e-5, [137, 95], 0.8 if step in (40, 80) else None)
        for step in range(1, 101)
    ]
    before, after = Interval(0.7, 0.65, 0.75), Interval(0.85, 0.8, 0.9)
    return Training(
        model=name, recipe=LONG, preset=name, settings={"lr": 1e-5, "betas": [0.9, 0.999], "auto_augment": name}, data=name, images=100, classes=10,
        test=name, test_images=50, image_size=(224, 224), steps=1000, before=before, after=after, change=Interval(0.15, 0.1, 0.2), macs=3_000_000_000,
        unpruned_macs=6_000_000_000, processes=2, device="cpu (x86_64)", seconds=12.3, date=str(COMMON["date"]), versions=COMMON["versions"],
        facts={"recipe": name}, notes=[name], skipped=[(name, "not an image")] * 3, log=log, hits=[1, 0, -1],
    )  # fmt: skip


def asked(name: str = HOSTILE) -> VlmEvaluation:
    """A vision-language model under two recipes on a set with kinds of questions and on one with a single number."""
    rows: list[AskedRow] = []
    kinds = {
        "accuracy": 80.0,
        "yes_no": 90.0,
        "chair_i": 3.0,
        "simple/accuracy": 85.0,
        "simple/yes_no": 95.0,
        "complex/accuracy": 75.0,
    }
    for index, recipe in enumerate((UNPRUNED, name, LONG)):
        move = Interval(-index / 50, -0.1, -0.01) if index else None
        scores = [
            AskedScore(
                title,
                title,
                value,
                100.0,
                True,
                metrics,
                20,
                [(name, name)],
                0.8,
                move,
                16.0 * index or None,
                "a.jsonl",
                [],
                recipe,
            )
            for title, value, metrics in ((name, 80.0 - index, kinds), ("pope", 85.2, {"f1": 0.852}))
        ]
        rows.append(AskedRow.make(recipe, None, scores, rows[0].scores if rows else scores))
    return VlmEvaluation(
        model=name, precision="fp32", batch_size=16, limit=20, prompt=name, square=True, notes=[name], rows=rows,
        **{key: value for key, value in COMMON.items() if key in ("device", "date", "versions")},
    )  # fmt: skip


def questions(name: str = HOSTILE) -> VlmComparison:
    """A vision-language model under two recipes: answers to questions about two simple and two complex pictures."""
    rows = []
    for index, (recipe, budget) in enumerate(((UNPRUNED, ""), (name, "tokens=64"), (LONG, "tokens=64/32/16"))):
        counts = Tally.empty(4)
        for place in range(4):
            for measure in ("yes_no", "accuracy", "count", "chair_i", "recall", "mme_one", "mme_all"):
                counts.add(measure, place, 4 - index * (place % 2), 4, 4)
            counts.add("length", place, 7, 1)
        times = Spread(0.025 / (1 + index), 0.02, 0.03, 4)
        cost = Cost(
            10**9,
            index * 10**6,
            4 * 10**9 // (1 + index),
            10**6,
            [276] * 6,
            times,
            Spread(1.38 + index, 1.2, 2.9, 4),
            Spread(0.05, 0.04, 0.06, 4),
        )
        rows.append(ComparedVlm(recipe, recipe, budget, None, [recipe], None if not index else 64.0 / index, cost, index, [counts]))
    return VlmComparison(
        model=name, data=name, data_fingerprint="f", questions=20, capacity=256, threads=2, precision="fp32", batch_size=16, rounds=4,
        skipped=[(name, name)], notes=[name], pictures=[name] * 4, scenes=["simple", "simple", "complex", "complex"], rows=rows,
        **{key: value for key, value in COMMON.items() if key in ("device", "date", "versions")},
    )  # fmt: skip
