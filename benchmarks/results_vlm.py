"""docs/results-vlm.md: every method that chooses a language model's image tokens, measured on the demo model, and the papers' claims.

    python benchmarks/results_vlm.py --photos TEST --work WORK [--out docs/results-vlm.md]

Pictures and questions are made from photos that the model was not trained on (or --data FOLDER takes a set of questions). What is finished
in WORK is kept: given again, the command goes on.

1. methods     all methods x budgets, seeds where one draws, on simple and complex pictures (`sparsight compare`).
2. complexity  effective rank of the tokens and entropy of the class attention of every picture.
3. corruption  a part of the pictures corrupted, the same questions, a few methods at one budget.

A claim is read at every budget, as a paired difference by picture; all of them together are corrected by Holm's method. It is borne out
where the corrected probability is under 5% and the sign is the claim's, not borne out where the sign is the other one, else not separable here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sparsight import PruneError
from sparsight.cli.progress import Watch
from sparsight.data.corruptions import corrupt
from sparsight.data.questions import LocalSet, read_set
from sparsight.data.reading import decode
from sparsight.data.scenes import write_questions
from sparsight.evaluation.compare_vlm import compare_vlm, part_of
from sparsight.evaluation.question_scores import scenes_of
from sparsight.evaluation.vlm_entries import usual
from sparsight.look.rank import Ranking
from sparsight.look.rank import Row as RankRow
from sparsight.look.rank import rank as measure_rank
from sparsight.runs.intervals import Interval
from sparsight.runs.store import write_text
from sparsight.runs.vlm_comparison import SPLITS, VlmComparison, VlmRow
from sparsight.runs.vlm_counts import MEASURES, apart, holm, p_value

INSIDE = (
    "vispruner:tokens={n},rescue=0.8", "vispruner:tokens={n},score=col_ln", "prumerge:tokens={n}", "prumerge:tokens={n},score=col_ln",
    "prumerge:tokens={n},rescue=0.8", "agile:tokens={n},count=adaptive", "mix:tokens={n},by=fixed", "mix:tokens={n},inverse=true",
)  # fmt: skip
"""Variants whose methods' own rows are there as well, at every budget."""
ATTENTION, DIVERSITY = ("fastervlm", "visionzip"), ("divprune", "fps")
ROBUST = ("random", "fastervlm", "divprune", "agile", "mix", "col_ln")
CORRUPTIONS = ("gaussian_noise", "defocus_blur", "fog", "contrast", "jpeg_compression")
SHOWN = ("yes_no", "f1", "count", "place", "where", "chair_s", "chair_i", "recall", "mme")
LEVEL = 0.05
DRAWS = 5000


# ---- measuring --------------------------------------------------------------------------------------------------------


def questions(given: argparse.Namespace) -> Path:
    """The set of questions, made if it is not there."""
    if given.data is not None:
        return Path(given.data)
    folder = given.work / "set"
    if not (folder / "questions.jsonl").exists():
        if given.photos is None:
            raise PruneError("give --photos TEST (one folder per class), or --data FOLDER with questions")
        write_questions(folder, given.photos, given.pictures, given.seed)
    return folder


def measure_methods(given: argparse.Namespace, data: Path) -> VlmComparison:
    """All methods."""
    recipes = [text.format(n=n) for n in given.tokens for text in INSIDE] if given.methods is None else []
    methods = given.methods or [name for name in usual() if name != "cdpruner"] + ["cdpruner:text=none", "cdpruner:text=llm"]
    with Watch(given.work / "methods") as watch:
        return compare_vlm(
            given.model, data, methods, given.tokens, given.work / "methods", recipes=recipes, seeds=given.seeds, batch_size=given.batch_size,
            device=given.device, shown=given.shown, rounds=given.rounds, limit=given.pictures, listen=watch,
        )  # fmt: skip


def measure_complexity(given: argparse.Namespace, one: LocalSet) -> Ranking:
    """Rank and entropy of every picture, kept as a whole."""
    file = given.work / "complexity" / "rank.json"
    if file.exists():
        stored = json.loads(file.read_text(encoding="utf-8"))
        return Ranking(
            **{**stored, "skipped": [tuple(pair) for pair in stored["skipped"]], "rows": [RankRow(**row) for row in stored["rows"]]}
        )
    pictures = list(dict.fromkeys(path for item in one.items for path in item.images))
    done = measure_rank(given.model, pictures, batch_size=8, device="cpu" if given.device == "auto" else given.device)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, done.to_json())
    return done


def measure_corruption(given: argparse.Namespace, one: LocalSet) -> dict[str, VlmComparison]:
    """The same questions about corrupted pictures, and about the same pictures as they are ("clean")."""
    some = part_of(one, given.corrupted)
    found = {}
    for name in ("clean", *given.corruptions):
        folder = corrupted(given, some, name)
        with Watch(given.work / "corruption" / name) as watch:
            found[name] = compare_vlm(
                given.model, folder, ROBUST, [given.budget], given.work / "corruption" / name, seeds=given.seeds, baselines=False,
                batch_size=given.batch_size, device=given.device, shown=0, rounds=2, listen=watch,
            )  # fmt: skip
    return found


def corrupted(given: argparse.Namespace, one: LocalSet, name: str) -> Path:
    """The set with corrupted pictures, drawn anew by name."""
    folder: Path = given.work / "corrupted" / name
    if (folder / "questions.jsonl").exists():
        return folder
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    files = {}
    for item in one.items:
        path = item.images[0]
        if path not in files:
            files[path] = f"pictures/{len(files):04d}.png"
            picture = decode(path).convert("RGB")
            made = picture if name == "clean" else corrupt(picture, name, given.severity, seed=len(files))
            made.save(folder / files[path])
        facts: dict[str, Any] = {"kind": item.kind, "scene": item.scene, "objects": list(item.objects)}
        lines.append({"id": item.key, "image": files[path], "question": item.text, "answer": list(item.answers), **facts})
    write_text(folder / "questions.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return folder


# ---- claims -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A difference that a paper says has a sign. first, second: recipes without their budget, pooled; sign: of first minus second."""

    paper: str
    text: str
    measure: str
    split: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    sign: int


AGILE, COL_LN = "AgilePruner", "Col-Ln"
CLAIMS = (
    Claim(AGILE, "diversity hallucinates more than attention (CHAIR_I, complex)", "chair_i", "complex", DIVERSITY, ATTENTION, 1),
    Claim(AGILE, "diversity hallucinates more than attention (CHAIR_S, complex)", "chair_s", "complex", DIVERSITY, ATTENTION, 1),
    Claim(AGILE, "diversity hallucinates more than attention (CHAIR_I, simple)", "chair_i", "simple", DIVERSITY, ATTENTION, 1),
    Claim(AGILE, "diversity recalls more objects than attention (complex)", "recall", "complex", DIVERSITY, ATTENTION, 1),
    Claim(AGILE, "attention is better than diversity on simple pictures (yes/no)", "yes_no", "simple", DIVERSITY, ATTENTION, -1),
    Claim(AGILE, "diversity is better than attention on complex pictures (yes/no)", "yes_no", "complex", DIVERSITY, ATTENTION, 1),
    Claim(AGILE, "diversity is better than attention on complex pictures (count)", "count", "complex", DIVERSITY, ATTENTION, 1),
    Claim(AGILE, "agile gains over attention on complex pictures (yes/no)", "yes_no", "complex", ("agile",), ("fastervlm",), 1),
    Claim(AGILE, "agile gains over attention on complex pictures (count)", "count", "complex", ("agile",), ("fastervlm",), 1),
    Claim(AGILE, "agile gains over diversity on simple pictures (yes/no)", "yes_no", "simple", ("agile",), ("divprune",), 1),
    Claim(AGILE, "agile hallucinates less than diversity (CHAIR_I, complex)", "chair_i", "complex", ("agile",), ("divprune",), -1),
    Claim(
        AGILE, "an adaptive count gains over a fixed one (all questions)", "accuracy", "", ("agile:count=adaptive",), ("agile",), 1
    ),
    Claim(AGILE, "mix by complexity gains over a fixed share (all questions)", "accuracy", "", ("mix",), ("mix:by=fixed",), 1),
    Claim(AGILE, "mix by complexity gains over its inverse (all questions)", "accuracy", "", ("mix",), ("mix:inverse=true",), 1),
    Claim(COL_LN, "Col-Ln is better than class attention (all questions)", "accuracy", "", ("col_ln",), ("fastervlm",), 1),
    Claim(COL_LN, "Col-Ln is better than random (all questions)", "accuracy", "", ("col_ln",), ("random",), 1),
    Claim(
        COL_LN, "Col-Ln's rescue improves VisPruner (all questions)", "accuracy", "", ("vispruner:rescue=0.8",), ("vispruner",), 1
    ),
    Claim(COL_LN, "Col-Ln improves PruMerge (all questions)", "accuracy", "", ("prumerge:score=col_ln",), ("prumerge",), 1),
    Claim("baseline", "attention is better than random (all questions)", "accuracy", "", ATTENTION, ("random",), 1),
    Claim("baseline", "diversity is better than random (all questions)", "accuracy", "", DIVERSITY, ("random",), 1),
    Claim("baseline", "agile is better than a smaller picture (all questions)", "accuracy", "", ("agile",), ("resize",), 1),
    Claim("baseline", "agile is better than pooling (all questions)", "accuracy", "", ("agile",), ("pool",), 1),
)


@dataclass(frozen=True)
class Reading:
    """A claim at a budget: the difference, its corrected probability."""

    claim: Claim
    budget: int
    span: Interval
    p: float

    @property
    def verdict(self) -> str:
        if self.p >= LEVEL:
            return "not separable here"
        return "borne out" if (self.span.value > 0) == (self.claim.sign > 0) else "not borne out"


def at(name: str, budget: int, known: Iterable[str]) -> str | None:
    """The row of a recipe without its budget: with the same method, budget and other parameters in any order."""
    method, _, rest = name.partition(":")
    want = (method, {f"tokens={budget}", *filter(None, rest.split(","))})
    for row in known:
        base, _, body = row.partition(":")
        if (base, set(filter(None, body.split(",")))) == want:
            return row
    return None


def readings(done: VlmComparison, budgets: Sequence[int]) -> list[Reading]:
    """All claims at all budgets that were measured, corrected together."""
    found: list[tuple[Claim, int, Interval, float]] = []
    names = [row.recipe for row in done.rows]
    for claim in CLAIMS:
        for budget in budgets:
            sides = [[at(name, budget, names) for name in side] for side in (claim.first, claim.second)]
            if any(name is None for side in sides for name in side):
                continue
            first, second = ([str(name) for name in side] for side in sides)
            span = done.difference(first, second, claim.measure, claim.split)
            counts = [[one for name in side for one in done.row(name).counts] for side in (first, second)]
            chance = p_value(*counts, claim.measure, done.chosen(claim.split))
            if span is not None and chance is not None:
                found.append((claim, budget, span, chance))
    corrected = holm([chance for *_, chance in found])
    return [Reading(claim, budget, span, p) for (claim, budget, span, _), p in zip(found, corrected, strict=True)]


# ---- the page ---------------------------------------------------------------------------------------------------------


def points(span: Interval | None, scale: float = 100.0) -> str:
    """A difference with its interval, bold where it leaves out zero."""
    if span is None:
        return "-"
    text = f"{scale * span.value:+.1f} ({scale * span.low:+.1f} to {scale * span.high:+.1f})"
    return f"**{text}**" if apart(span) else text


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(heads) + " |",
        "| " + " | ".join(["---"] * len(heads)) + " |",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def methods_section(done: VlmComparison, budgets: Sequence[int]) -> list[str]:
    """One table per budget and split, and the costs."""
    whole = done.rows[0]
    shown = [name for name in SHOWN if name in done.measures]
    out = ["## Methods", ""]
    out += [
        f"Scores in percent; under each budget the change to unpruned in yes/no accuracy with its 95% interval by picture. {done.interval_method}", "",
    ]  # fmt: skip
    for budget in budgets:
        for split in done.splits:
            rows = [row for row in done.rows[1:] if row.group == f"tokens {budget}"]
            if not rows:
                continue
            out += [f"### {budget} tokens, {SPLITS[split]} ({done.size(split)})", ""]
            heads = ["method", *(MEASURES[name].title for name in shown), "yes/no change"]
            lines = [score_line(done, row, split, shown) for row in (whole, *rows)]
            out += table(heads, lines)
    out += ["### Cost of one prompt", ""]
    out += table(
        ["recipe", "tokens", "prefill ms", "speed-up", "KV kB", "prefill GMACs", "vision GMACs"],
        [
            [
                f"`{row.recipe}`", row.tokens, f"{1e3 * row.cost.seconds.median:.1f}", f"{row.cost.speedup.median:.2f}", f"{row.cost.cache / 1e3:.0f}",
                f"{row.cost.prefill / 1e9:.2f}", f"{row.cost.vision / 1e9:.2f}",
            ]
            for row in done.rows
        ],
    )  # fmt: skip
    return out


def score_line(done: VlmComparison, row: VlmRow, split: str, shown: Sequence[str]) -> list[str]:
    cells = [f"`{row.label}`" if row.recipe != "unpruned" else "unpruned"]
    for name in shown:
        value = done.value(row, name, split)
        cells.append("-" if value is None else f"{MEASURES[name].scale * value:.1f}")
    return [*cells, points(done.change(row, "yes_no", split))]


def complexity_section(ranking: Ranking, one: LocalSet) -> list[str]:
    """Rank and entropy of simple and complex pictures."""
    pictures = list(dict.fromkeys(item.images[0] for item in one.items))
    by_file = {Path(row.image).name: row for row in ranking.rows}
    scenes = {path.name: scene for path, scene in zip(pictures, scenes_of(one.items), strict=True)}
    groups = {split: [row for name, row in by_file.items() if scenes.get(name) == split] for split in ("simple", "complex")}
    out = ["## How complex the pictures are", ""]
    if not all(groups.values()):
        return [*out, f"{ranking.correlation}.", ""]
    lines = []
    for name, title in (("erank", "effective rank"), ("entropy", "attention entropy, nats")):
        simple, hard = (np.array([getattr(row, name) for row in groups[split]]) for split in ("simple", "complex"))
        lines.append([title, f"{simple.mean():.2f}", f"{hard.mean():.2f}", points(unpaired(hard, simple), 1.0)])
    out += table(["", "simple", "complex", "complex minus simple (95%)"], lines)
    return [*out, f"Over all pictures rank and entropy have a {ranking.correlation} (AgilePruner: 0.63).", ""]


def unpaired(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> Interval:
    """Difference of two means of different pictures, by bootstrap."""
    rng = np.random.default_rng(0)
    means = [some[rng.integers(0, len(some), (DRAWS, len(some)))].mean(axis=1) for some in (first, second)]
    low, high = np.quantile(means[0] - means[1], (0.025, 0.975))
    return Interval(float(first.mean() - second.mean()), float(low), float(high))


def claims_section(found: Sequence[Reading]) -> list[str]:
    """Verdicts, and under them the differences."""
    out = ["## The papers' claims", ""]
    out += [
        f"{len(found)} differences are read at once, so their probabilities are corrected by Holm's method. Points, first minus second, with the "
        "interval of each alone.", "",
    ]  # fmt: skip
    lines = []
    for claim in CLAIMS:
        mine = [one for one in found if one.claim is claim]
        if not mine:
            continue
        verdicts = {
            word: [str(one.budget) for one in mine if one.verdict == word]
            for word in ("borne out", "not borne out", "not separable here")
        }
        said = "; ".join(f"{word} at {', '.join(budgets)}" for word, budgets in verdicts.items() if budgets)
        lines.append(
            [claim.paper, claim.text, said, "<br>".join(f"{one.budget}: {points(one.span)}, p {one.p:.2g}" for one in mine)]
        )
    return out + table(["of", "claim", "verdict", "difference at each budget"], lines)


def corruption_section(found: dict[str, VlmComparison], budget: int, severity: int) -> list[str]:
    """Accuracy on corrupted pictures beside the unpruned model on the same ones."""
    if len(found) < 2:
        return []
    clean = found["clean"]
    out = [f"## Corrupted pictures (severity {severity}, {budget} tokens, {len(clean.pictures)} pictures)", ""]
    out += [
        "Accuracy over all questions but lists, in percent; in brackets the change to unpruned on the same corrupted pictures, in points.",
        "",
    ]
    lines = []
    for row in clean.rows:
        cells = [f"`{row.label}`"]
        for done in found.values():
            here = done.row(row.recipe)
            value, span = done.value(here, "accuracy"), done.change(here, "accuracy")
            cells.append(f"{100 * (value or 0):.1f}" + (f" ({points(span)})" if span else ""))
        lines.append(cells)
    return out + table(["method", *found], lines)


def page(done: VlmComparison, parts: Sequence[list[str]]) -> str:
    """The whole page."""
    head = [
        "# Results on a trained vision-language model", "",
        f"Made by `python benchmarks/results_vlm.py`: {done.model}, {done.questions} questions about {len(done.pictures)} pictures "
        f"({', '.join(f'{done.size(split)} {split}' for split in done.splits if split)}) that it was not trained on, {done.capacity} visual tokens a picture, "
        f"{done.device}, {done.precision}, {done.date[:10]}.", "",
    ]  # fmt: skip
    notes = ["## Notes", "", *(f"- {note}" for note in done.notes), ""] if done.notes else []
    return "\n".join([*head, *(line for part in parts for line in part), *notes]).rstrip() + "\n"


def attempt(what: str, make: Callable[[], Any]) -> Any:
    """A part that may not be possible here (a missing library), said and left out."""
    try:
        return make()
    except PruneError as error:
        print(f"{what} is left out: {error}")
        return None


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo-vlm")
    parser.add_argument("--photos", type=Path, help="photos that were never trained on, one folder per class")
    parser.add_argument("--data", type=Path, help="a set of questions instead")
    parser.add_argument("--work", type=Path, required=True, help="what is finished; start again to go on")
    parser.add_argument("--out", type=Path, default=Path("docs/results-vlm.md"))
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--tokens", type=numbers, default=[128, 64, 32, 16])
    parser.add_argument("--methods", type=lambda text: text.split(","), help="only these, and none of the variants")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--shown", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--corrupted", type=int, default=200, help="pictures that are corrupted")
    parser.add_argument("--corruptions", type=lambda text: [part for part in text.split(",") if part], default=list(CORRUPTIONS))
    parser.add_argument("--severity", type=int, default=3)
    parser.add_argument("--budget", type=int, default=32, help="tokens on corrupted pictures")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    data = questions(given)
    one = part_of(read_set(data), given.pictures)
    done = measure_methods(given, data)
    ranking = measure_complexity(given, one)
    spoiled = attempt("corruption", partial(measure_corruption, given, one)) if given.corruptions else None
    found = readings(done, given.tokens)
    parts = [claims_section(found), complexity_section(ranking, one), methods_section(done, given.tokens)]
    parts += [corruption_section(spoiled, given.budget, given.severity)] if spoiled else []
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(given.out, page(done, parts))
    print(f"wrote {given.out}; everything else is in {given.work}")


if __name__ == "__main__":
    main()
