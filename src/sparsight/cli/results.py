"""How results are printed: which columns each verb's table has, and which of them go first where a terminal is narrow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from .table import Cell, Column, print_table, say

if TYPE_CHECKING:
    from ..evaluation.corruption_rows import Robustness
    from ..evaluation.result import Evaluation
    from ..evaluation.vlm_scores import VlmEvaluation
    from ..evaluation.vtc_split import VtcSplit
    from ..look.analysis import Analysis
    from ..look.rank import Ranking
    from ..runs.comparison import Comparison, Row
    from ..runs.intervals import Interval, Spread
    from ..runs.vlm_comparison import VlmComparison, VlmRow
    from ..speed.bench_result import Bench
    from ..speed.stage_result import StageBench
    from ..tune.result import TunedRow, Tuning
    from ..tune.sensitivity import Sensitivity

SHOWN = 10
"""Skipped files that are named; the results file has them all."""

COMPARISON = (
    Column("recipe", name=True), Column("top-1 %"), Column("change", 2), Column("95% interval", 4), Column("top-5 %", 8),
    Column("agree %", 6), Column("cosine", 7), Column("GMACs", 3), Column("img/s", 5), Column("speed-up", 1), Column("quartiles", 9),
    Column("MB", 10),
)  # fmt: skip
LABELLED = ("top-1 %", "change", "95% interval", "top-5 %")
EVALUATION = (
    Column("recipe", name=True), Column("top-1 %"), Column("change", 1), Column("top-5 %", 5), Column("agree %", 2),
    Column("tokens", 4), Column("GMACs", 3),
)  # fmt: skip
ROBUSTNESS = (
    Column("corruption", name=True), Column("severity"), Column("recipe", name=True), Column("top-1 %"), Column("change", 1),
    Column("rank", 4), Column("rank diff.", 5), Column("rel. %", 3), Column("kept again %", 2),
)  # fmt: skip
BENCH = (
    Column("recipe", name=True), Column("engine", 4, name=True), Column("MACs x", 2), Column("p50 ms", 1), Column("unpruned", 1),
    Column("p95 ms", 8),
    Column("speed-up"), Column("quartiles", 10), Column("of MACs", 6), Column("img/s", 3), Column("at batch", 3),
    Column("speed-up there", 3), Column("quartiles there", 10), Column("of MACs there", 5), Column("sites %", 9), Column("MB", 7),
)  # fmt: skip
STAGES = (
    Column("recipe", name=True), Column("tokens", 3), Column("GMACs", 8), Column("vision", 9), Column("select", 7), Column("prefill", 5),
    Column("/token", 6), Column("all ms", 4), Column("prefill x", 1), Column("prefill quartiles", 12), Column("of MACs", 10),
    Column("token x", 2), Column("token quartiles", 12), Column("all x"), Column("all quartiles", 12), Column("KV MB", 4), Column("peak MB", 11),
)  # fmt: skip

SITES = (
    Column("recipe", name=True), Column("quality %"), Column("change", 1), Column("95% interval", 2), Column("cost", 3), Column("speed-up"),
)  # fmt: skip

QUESTIONS = {
    "yes_no": 0, "chair_i": 0, "count": 1, "recall": 2, "place": 3, "accuracy": 4, "name": 5, "where": 6, "chair_s": 7, "f1": 8, "mme": 9, "yes": 10,
    "length": 11,
}  # fmt: skip
"""Scores of questions, and which of them go first."""
COSTS = (
    Column("recipe", name=True), Column("tokens"), Column("prefill ms", 2), Column("x"), Column("quartiles", 5), Column("KV kB"), Column("GMACs", 1),
    Column("vision GMACs", 4), Column("vision ms", 3),
)  # fmt: skip

RANKING = (Column("erank"), Column("entropy"), Column("tokens", 1), Column("image", name=True))


def print_comparison(done: Comparison, out: Path) -> None:
    """Rows in groups of one budget, the best of each in green; skipped images, notes, files."""
    columns = [column for column in COMPARISON if done.labelled or column.head not in LABELLED]
    best = {name: done.best(name) for name in ("top1", "top5", "agreement", "cosine", "speedup")}
    lines: list[Sequence[Cell] | None] = [comparison_cells(done.rows[0], done.labelled, best)]
    for rows in done.groups.values():
        lines += [None, *(comparison_cells(row, done.labelled, best) for row in rows)]
    print_table(str(done), columns, lines, out / "results.csv")
    print_skipped(done.skipped, out)
    print_ends(done.notes, out, "report.html", "results.json", "results.csv")


def print_vlm_comparison(done: VlmComparison, out: Path) -> None:
    """A table of scores for simple and for complex pictures, and one of costs; better than unpruned green, worse red, beyond chance."""
    from ..runs.vlm_comparison import SPLITS
    from ..runs.vlm_counts import MEASURES

    say(str(done))
    first = "yes_no" if "yes_no" in done.measures else done.measures[0]
    for split in done.splits:
        known = [name for name in done.measures if done.value(done.rows[0], name, split) is not None]
        columns = [Column("recipe", name=True), Column("tokens", 3)]
        for name in known:
            columns.append(
                Column(MEASURES[name].title if name in MEASURES else name, QUESTIONS.get(name, 12) if name != first else 0)
            )
            columns += [Column("change", 4), Column("95% interval", 8)] if name == first else []
        lines: list[Sequence[Cell] | None] = []
        for before, row in zip((done.rows[0], *done.rows), done.rows):
            lines += [None] if row.group != before.group else []
            lines.append(question_cells(done, row, split, known, first))
        print_table(f"\n{SPLITS[split]}: {done.size(split)}", columns, lines, out / "results.csv")
    print_table("\ncost of one prompt", COSTS, [cost_cells(row) for row in done.rows], out / "results.csv")
    print_skipped(done.skipped, out, "questions")
    print_ends(done.notes, out, "report.html", "results.json", "results.csv", "answers.jsonl")


def question_cells(done: VlmComparison, row: VlmRow, split: str, known: Sequence[str], first: str) -> list[Cell]:
    from ..runs.vlm_counts import MEASURES

    found: list[Cell] = [row.recipe, row.tokens]
    for name in known:
        value, span = done.value(row, name, split), done.change(row, name, split)
        moved = done.moved(name, span)
        scale = MEASURES[name].scale if name in MEASURES else 100.0
        text = "-" if value is None else f"{scale * value:.1f}"
        found.append(Text(text, "bold green" if moved > 0 else "red") if moved else text)
        found += change(span) if name == first else ()
    return found


def cost_cells(row: VlmRow) -> list[Cell]:
    cost = row.cost
    return [
        row.recipe, row.tokens, f"{1e3 * cost.seconds.median:.1f}", f"{cost.speedup.median:.2f}", quartiles(cost.speedup), f"{cost.cache / 1e3:.0f}",
        f"{cost.macs / 1e9:.2f}", f"{cost.vision / 1e9:.2f}", f"{1e3 * cost.encoding.median:.1f}",
    ]  # fmt: skip


def comparison_cells(row: Row, labelled: bool, best: dict[str, set[str]]) -> list[Cell]:

    def mark(text: str, measure: str) -> Cell:
        return Text(text, "bold green") if row.recipe in best[measure] else text

    found: list[Cell] = [row.recipe]
    if labelled:
        found += [mark(percent(row.top1), "top1"), *change(row.top1_change), mark(percent(row.top5), "top5")]
    found.append(mark(percent(row.agreement.value if row.agreement else None), "agreement"))
    found += [mark(f"{row.cosine:.3f}", "cosine"), f"{row.gmacs:.2f}", f"{row.images_per_second:.1f}"]
    return [*found, mark(f"{row.speedup.median:.2f}", "speedup"), quartiles(row.speedup), f"{row.peak_memory / 1e6:.0f}"]


def change(move: Interval | None) -> tuple[str, str]:
    """Points of change and their interval."""
    return (f"{100 * move.value:+.1f}", f"{100 * move.low:+.1f} to {100 * move.high:+.1f}") if move else ("", "")


def quartiles(gain: Spread) -> str:
    return f"{gain.low:.2f}-{gain.high:.2f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def print_evaluation(done: Evaluation, out: Path) -> None:
    print_table(str(done).partition("\n")[0], EVALUATION, [score.cells() for score in done.scores], out / "results.json")
    print_skipped(done.skipped, out)
    print_ends(done.notes, out, "report.html", "results.json", "predictions.csv")


def print_robustness(done: Robustness, out: Path) -> None:
    lines = [*(row.cells() for row in done.rows), None, *done.averages()]
    print_table(str(done).partition("\n")[0], ROBUSTNESS, lines, out / "results.json")
    print_skipped(done.skipped, out)
    print_ends(done.notes, out, "report.html", "results.json", "robustness.png")


def print_vlm_evaluation(done: VlmEvaluation, out: Path) -> None:
    heads, *lines = done.table()
    sets = len(done.rows[0].scores)
    ends = [Column(heads[-3], sets + 3), Column(heads[-2]), Column(heads[-1], sets + 2)]
    columns = [Column(heads[0], name=True), *(Column(head, place + 1) for place, head in enumerate(heads[1:-3])), *ends]
    print_table(str(done), columns, lines, out / "results.csv")
    for text in done.changes():
        say(text)
    print_skipped(done.skipped, out, "questions")
    print_ends(done.notes, out, "report.html", "results.json", "results.csv", "answers")


def print_bench(done: Bench, out: Path) -> None:
    """Latency at the smallest batch, then the batch with the highest throughput. Of several engines, which one always stays."""
    several = len(done.engines) > 1
    columns = [replace(column, drop=0) if several and column.head == "engine" else column for column in BENCH]
    lines: list[Sequence[Cell] | None] = []
    for before, row in zip((done.rows[0], *done.rows), done.rows):
        one, best = row.latency, row.throughput
        lines += [None] if row.engine != before.engine else []
        lines.append([
            row.recipe, f"{row.backend} {row.precision}", f"{row.mac_ratio:.2f}", f"{1e3 * one.seconds:.1f}",
            f"{1e3 * one.unpruned:.1f}", f"{1e3 * one.p95:.1f}",
            f"{one.speedup.median:.2f}", quartiles(one.speedup), f"{row.share(one):.2f}", f"{best.images_per_second:.1f}",
            str(best.batch), f"{best.speedup.median:.2f}", quartiles(best.speedup), f"{row.share(best):.2f}",
            "-" if row.site_share is None else f"{100 * row.site_share:.0f}",
            "-" if row.peak_memory is None else f"{row.peak_memory / 1e6:.0f}",
        ])  # fmt: skip
    print_table(str(done), columns, lines, out / "results.json")
    print_ends(done.notes, out, "report.html", "results.json")


def print_stages(done: StageBench, out: Path) -> None:
    lines = []
    for row in done.rows:
        times = [f"{1e3 * row.seconds(name).median:.1f}" for name in ("vision", "selection", "prefill", "per_token", "total")]
        reading, token, whole = (
            (f"{gain.median:.2f}", quartiles(gain)) for gain in map(row.gain, ("prefill", "per_token", "total"))
        )
        lines.append([
            row.recipe, row.tokens, f"{row.macs.reading / 1e9:.1f}", *times, *reading, f"{done.share(row):.2f}", *token, *whole,
            f"{row.footprint.cache / 1e6:.2f}", f"{row.footprint.peak / 1e6:.0f}",
        ])  # fmt: skip
    print_table(str(done), STAGES, lines, out / "results.json")
    print_ends(done.notes, out, "report.html", "results.json")


def print_ranking(done: Ranking, out: Path | None) -> None:
    rows = [(f"{row.erank:.3f}", f"{row.entropy:.4f}", str(row.tokens), row.image) for row in done.rows]
    print_table("", RANKING, rows)
    for name, reason in done.skipped:
        say(f"skipped {name}: {reason}")
    say(str(done))
    if out is not None:
        print_ends((), out, "rank.csv", "rank.json", "rank.png")


def print_vtc_split(done: VtcSplit) -> None:
    columns = [
        Column("recipe", name=True),
        Column("needed %"),
        Column("95% interval", 2),
        Column("easy %", 1),
        Column("95% interval", 3),
    ]
    rows = [
        (
            row.recipe,
            *(cell for span in (row.need, row.enough) for cell in (percent(None if span is None else span.value), between(span))),
        )
        for row in done.rows
    ]
    print_table(str(done), columns, rows)
    if done.missing:
        say(f"{done.missing} questions have no answer on one side and are left out")


def between(span: Interval | None) -> str:
    """An interval in percent."""
    return "-" if span is None else f"{100 * span.low:.1f} to {100 * span.high:.1f}"


def print_tuning(done: Tuning, out: Path) -> None:
    """The front from cheap to dear, the chosen recipe in green; recipes of one's own; what was found in a sentence."""
    columns = [
        Column("recipe", name=True), Column(done.heading), Column("change", 1),
        Column("95% interval", 3), Column("searched %", 4), Column(done.unit, 2), Column("speed-up"), Column("trial", 5),
    ]  # fmt: skip
    lines: list[Sequence[Cell] | None] = [tuned_cells(row) for row in done.rows]
    lines += [None, *(tuned_cells(row) for row in done.given)] if done.given else []
    print_table(str(done), columns, lines, out / "results.json")
    for contest in done.contests:
        say(str(contest))
    print_skipped(done.skipped, out)
    if done.met:
        say(f"{done.target}: {done.verdict}", "bold green")
    print_ends(done.notes, out, *(["recipe.json"] if done.met else []), "evidence.json", "report.html", "results.json")


def tuned_cells(row: TunedRow) -> list[Cell]:
    cells = [
        row.name, f"{100 * row.report.value:.1f}", *change(row.report_change), percent(row.search), f"{row.cost:.3g}", f"{row.speedup:.2f}",
        "-" if row.trial is None else str(row.trial),
    ]  # fmt: skip
    return [Text(cell, "bold green") for cell in cells] if row.chosen else list(cells)


def print_sensitivity(done: Sensitivity, out: Path) -> None:
    columns = [replace(column, head=done.unit) if column.head == "cost" else column for column in SITES]
    lines: list[Sequence[Cell] | None] = []
    for before, row in zip((done.rows[0], *done.rows), done.rows):
        lines += [None] if (row.method, row.keep) != (before.method, before.keep) else []
        lines.append([row.recipe, f"{100 * row.quality.value:.1f}", *change(row.change), f"{row.cost:.3g}", f"{row.speedup:.2f}"])
    print_table(str(done), columns, lines, out / "sensitivity.json")
    print_skipped(done.skipped, out)
    print_ends(done.notes, out, "sensitivity.html", "sensitivity.png", "sensitivity.json")


def print_analysis(done: Analysis, out: Path) -> None:
    for line in str(done).splitlines():
        say(line)
    say(f"wrote {out / 'report.html'} with its figures and tables")


def print_skipped(skipped: Sequence[tuple[str, str]], out: Path, what: str = "images") -> None:
    """The first skipped images with their reasons, and how many there are. what: is counted, if not images."""
    for name, reason in skipped[:SHOWN]:
        say(f"skipped {name}: {reason}", "yellow")
    if skipped:
        rest = f"; {len(skipped) - SHOWN} more are named in {out / 'results.json'}" if len(skipped) > SHOWN else ""
        say(f"{len(skipped)} {what} could not be read and were skipped{rest}", "yellow")


def print_ends(notes: Iterable[str], out: Path, *files: str) -> None:
    """What the reader of the numbers should know, and where they are."""
    for note in notes:
        say(f"note: {note}")
    say(f"wrote {', '.join(str(out / name) for name in files)}")
