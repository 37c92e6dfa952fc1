"""What was predicted for each image under each recipe, as CSV and, where pyarrow is installed, as Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..runs.chunks import Chunk
from ..runs.store import write

COLUMNS = ("recipe", "image", "label", "predicted", "correct", "probability", "top5")


def write_predictions(out: Path, recipes: Sequence[str], answers: Sequence[Chunk]) -> list[Path]:
    """Write predictions.csv, and predictions.parquet if that is possible; returns the files.

    One line per recipe and image: the image's name, its label and the predicted class as places among the classes, whether they
    agree, the probability of the predicted class, and the first five classes. Empty where there is no label.
    """
    files = [out / "predictions.csv"]
    write(files[0], lambda part: write_csv(part, recipes, answers))
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return files
    files.append(out / "predictions.parquet")
    write(files[1], lambda part: write_parquet(part, recipes, answers))
    return files


def lines(recipe: str, chunk: Chunk) -> Iterator[dict[str, Any]]:
    """The lines of one recipe."""
    tops, chances = chunk.columns["top"].tolist(), chunk.columns["probability"].tolist()
    for name, label, top, chance in zip(chunk.names, chunk.labels, tops, chances, strict=True):
        correct = None if label is None else int(top[0] == label)
        values = (recipe, name, label, top[0], correct, chance, top)
        yield dict(zip(COLUMNS, values, strict=True))


def write_csv(path: Path, recipes: Sequence[str], answers: Sequence[Chunk]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for recipe, chunk in zip(recipes, answers, strict=True):
            for line in lines(recipe, chunk):
                spelled = {"probability": f"{line['probability']:.6f}", "top5": " ".join(map(str, line["top5"]))}
                writer.writerow(line | spelled)


def write_parquet(path: Path, recipes: Sequence[str], answers: Sequence[Chunk]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = (pa.string(), pa.string(), pa.int32(), pa.int32(), pa.int8(), pa.float32(), pa.list_(pa.int32()))
    schema = pa.schema(list(zip(COLUMNS, kinds, strict=True)))
    with parquet.ParquetWriter(str(path), schema) as file:
        for recipe, chunk in zip(recipes, answers, strict=True):
            file.write_table(pa.Table.from_pylist(list(lines(recipe, chunk)), schema=schema))
