"""What `evaluate` returns: accuracy of the unpruned model and of every recipe, with paired intervals, as a table and as JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PruneError
from ..runs.intervals import Interval, read_intervals
from ..runs.store import UNPRUNED, Chunk, read_result, write
from .accuracy import note_of

SPANS = ("top1", "top1_change", "top5", "top5_change", "agreement")


@dataclass(frozen=True)
class Score:
    """One recipe. Accuracies and agreement (same first class as unpruned) are fractions; changes are against the unpruned model.

    tokens: mean number of visual tokens after each site; labelled: images that have a label; macs: multiply-accumulates per image; not_finite: images whose answer is NaN or infinite.
    """

    recipe: str
    definition: dict[str, Any] | None
    tokens: list[float]
    images: int
    labelled: int
    top1: Interval | None
    top1_change: Interval | None
    top5: Interval | None
    top5_change: Interval | None
    agreement: Interval | None
    macs: int
    not_finite: list[str] = field(default_factory=list)

    @property
    def note(self) -> str:
        """What the reader has to know about answers that are not finite."""
        return note_of(self.recipe, self.not_finite, self.images)

    def __str__(self) -> str:
        return "  ".join(filter(None, (self.recipe, *self.cells()[1:])))

    def cells(self) -> list[str]:
        """The score as a line of the table."""
        top1, top5, agreement = (f"{100 * part.value:.2f}" if part else "-" for part in (self.top1, self.top5, self.agreement))
        move = str(self.top1_change) if self.top1_change else ""
        tokens = " > ".join(f"{count:.0f}" for count in self.tokens[-3:])
        return [self.recipe, top1, move, top5, agreement, tokens, f"{self.macs / 1e9:.2f}"]

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Score:
        """Read what `asdict` made."""
        return Score(**read_intervals(data, *SPANS))


HEADS = ["recipe", "top-1 %", "change", "top-5 %", "agree %", "tokens", "GMACs"]


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one data set; the first one is the unpruned model.

    skipped: (name, reason) of images that could not be read, all of them; notes: what the reader of the numbers should know.
    """

    model: str
    mode: str
    data: str
    data_fingerprint: str
    preset: str | None
    images: int
    classes: int
    image_size: tuple[int, int]
    device: str
    processes: int
    precision: str
    batch_size: int
    seed: int
    date: str
    versions: dict[str, str]
    interval_method: str
    notes: list[str]
    skipped: list[tuple[str, str]]
    scores: list[Score]

    def score(self, recipe: str = UNPRUNED) -> Score:
        """The score of a recipe, by its string."""
        for score in self.scores:
            if score.recipe == recipe:
                return score
        raise PruneError(f"no recipe {recipe!r}; there are {', '.join(score.recipe for score in self.scores)}")

    def __str__(self) -> str:
        title = f"{self.model} on {self.data}: {self.images} images, {self.mode}, {self.device}, {self.precision}"
        lines = [title, "", *columns([HEADS, *(score.cells() for score in self.scores)])]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"skipped {name}: {reason}" for name, reason in self.skipped[:SHOWN]]
        if self.skipped:
            rest = f"; {len(self.skipped) - SHOWN} more in results.json" if len(self.skipped) > SHOWN else ""
            lines.append(f"{len(self.skipped)} images could not be read and were skipped{rest}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """All of it as JSON text; `from_json` is the inverse."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Evaluation:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        scores = [Score.from_dict(score) for score in data.pop("scores")]
        size, skipped = tuple(data.pop("image_size")), [tuple(pair) for pair in data.pop("skipped")]
        return Evaluation(**data, image_size=size, skipped=skipped, scores=scores)

    @staticmethod
    def load(path: str | Path) -> Evaluation:
        """Read results.json, or the folder that holds it."""
        return read_result(path, Evaluation.from_json, "evaluate")


SHOWN = 10
"""Skipped images that are printed; results.json has them all."""


def columns(rows: list[list[str]]) -> list[str]:
    """Rows of text in columns, the first one to the left, the others to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in enumerate(zip(row, widths)))
        for row in rows
    ]


# ---- predictions for every image --------------------------------------------------------------------------------------

COLUMNS = ("recipe", "image", "label", "predicted", "correct", "probability", "top5", "label_name", "predicted_name")


def write_predictions(out: Path, recipes: Sequence[str], answers: Sequence[Chunk], names: Sequence[str] | None) -> list[Path]:
    """Write predictions.csv, and predictions.parquet if that is possible; returns the files.

    One line per recipe and image: the image's name, its label and the predicted class as places among the classes, whether they
    agree, the probability of the predicted class, the first five classes, and the names of label and predicted class. Empty where there
    is no label, no name, or no finite answer.
    """
    files = [out / "predictions.csv"]
    write(files[0], lambda part: write_csv(part, recipes, answers, names))
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return files
    files.append(out / "predictions.parquet")
    write(files[1], lambda part: write_parquet(part, recipes, answers, names))
    return files


def lines(recipe: str, chunk: Chunk, names: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """The lines of one recipe."""
    tops, chances = chunk.columns["top"].tolist(), chunk.columns["probability"].tolist()
    for name, label, top, chance in zip(chunk.names, chunk.labels, tops, chances, strict=True):
        finite = top[0] >= 0
        predicted = top[0] if finite else None
        correct = None if label is None else int(predicted == label)
        called = [None if index is None or names is None else names[index] for index in (label, predicted)]
        values = (recipe, name, label, predicted, correct, chance if finite else None, top if finite else [], *called)
        yield dict(zip(COLUMNS, values, strict=True))


def write_csv(path: Path, recipes: Sequence[str], answers: Sequence[Chunk], names: Sequence[str] | None) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for recipe, chunk in zip(recipes, answers, strict=True):
            for line in lines(recipe, chunk, names):
                spelled = {
                    "probability": "" if line["predicted"] is None else f"{line['probability']:.6f}",
                    "top5": " ".join(map(str, line["top5"])),
                }
                writer.writerow(line | spelled)


def write_parquet(path: Path, recipes: Sequence[str], answers: Sequence[Chunk], names: Sequence[str] | None) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = (
        pa.string(),
        pa.string(),
        pa.int32(),
        pa.int32(),
        pa.int8(),
        pa.float32(),
        pa.list_(pa.int32()),
        pa.string(),
        pa.string(),
    )
    schema = pa.schema(list(zip(COLUMNS, kinds, strict=True)))
    with parquet.ParquetWriter(str(path), schema) as file:
        for recipe, chunk in zip(recipes, answers, strict=True):
            file.write_table(pa.Table.from_pylist(list(lines(recipe, chunk, names)), schema=schema))
