"""Data sets of the Hugging Face library: streamed from the Hub, or from a saved folder or Parquet files without network."""

from __future__ import annotations

import importlib
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from ..errors import PruneError
from ..load.checkpoint import check_reach, one_line
from .fingerprint import digest
from .images import spread
from .labels import correspond
from .reading import ImageRef, Source, Wanted, decode

IMAGES = ("image", "img", "jpg", "jpeg", "png", "picture")
LABELS = ("label", "labels", "fine_label", "cls", "class")
IMAGENET = 1000
"""Data sets of ImageNet name their labels in words of their own, but number them in the order of the synsets."""
PREFERRED = ("test", "validation", "val", "valid", "train")


@dataclass(frozen=True)
class Columns:
    """Names of the columns, and of the classes if the data set has names for them."""

    image: str
    label: str | None
    classes: list[str] | None


@dataclass(frozen=True)
class Labelled(Source):
    """A data set of the library. places: the logit of each of its labels, None if they are used as they are."""

    rows: Any
    columns: Columns
    title: str
    classes: list[str] | None = None
    note: str = ""
    places: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Table(Labelled):
    """A data set on disk."""

    @property
    def total(self) -> int:  # type: ignore[override]
        return len(self.rows)

    def ref(self, place: int) -> ImageRef:
        return make_ref(self.rows[place], place, self)

    def refs(self, wanted: Wanted) -> Iterator[ImageRef]:
        return (self.ref(place) for place in range(len(self.rows)) if wanted(place))

    def aligned(self, classes: Sequence[str] | None, outputs: int) -> Source:
        done = aligned(self, classes, outputs)
        if done.places is None or min(done.places) >= 0 or self.columns.label is None:
            return done
        label = self.columns.label
        kept = [place for place, value in enumerate(self.rows[label]) if logit({label: value}, done) != -1]
        return replace(done, rows=self.rows.select(kept))

    def fingerprint(self, times: bool = True) -> str:
        return digest(str(self.rows._fingerprint), len(self.rows), self.places)


@dataclass(frozen=True)
class Stream(Labelled):
    """A data set that is read from the network as it goes, from the beginning, at most `limit` images."""

    limit: int | None = None
    total: int | None = None

    def refs(self, wanted: Wanted) -> Iterator[ImageRef]:
        rows = itertools.islice(self.labelled(), self.limit)
        return (make_ref(row, place, self) for place, row in enumerate(rows) if wanted(place))

    def labelled(self) -> Iterator[Any]:
        """Rows whose label is a class; a broken connection is told."""
        rows = iter(self.rows)
        while True:
            try:
                row = next(rows, None)
            except Exception as error:  # whatever the network, the server or the file format meets
                raise PruneError(
                    f"the stream {self.title} broke off ({one_line(error)}); what is finished is kept: give the same command again"
                ) from error
            if row is None:
                return
            if logit(row, self) != -1:
                yield row

    def aligned(self, classes: Sequence[str] | None, outputs: int) -> Source:
        return aligned(self, classes, outputs)

    def fingerprint(self, times: bool = True) -> str:
        return digest(self.title, str(getattr(self.rows.info, "version", "")), self.limit, self.places)


Kind = TypeVar("Kind", Table, Stream)


def aligned(source: Kind, classes: Sequence[str] | None, outputs: int) -> Kind:
    """The source with places of its labels among the checkpoint's logits."""
    columns = source.columns
    if columns.label is None:
        return source
    if columns.classes is None:
        note = f"labels of {source.title} have no names; they count as places among the checkpoint's classes"
        return replace(source, classes=list(classes) if classes else None, note=note)
    try:
        found = correspond(columns.classes, classes, outputs, f"label of {source.title}", folders=False)
    except PruneError:
        if not len(columns.classes) == outputs == IMAGENET:
            raise
        note = f"the 1000 labels of {source.title} are taken in the order of ImageNet's synsets"
        return replace(source, classes=list(classes) if classes else None, note=note)
    if isinstance(found, str):
        return replace(source, columns=replace(columns, label=None), classes=None, note=found)
    places = tuple(found.places.get(name, -1) for name in columns.classes)
    lost = [name for name, place in zip(columns.classes, places, strict=True) if place < 0]
    notes = [found.note, f"images of {len(lost)} labels that are no classes of the checkpoint are left out" if lost else ""]
    return replace(source, classes=found.classes, places=places, note="; ".join(filter(None, notes)))


def make_ref(row: Any, place: int, source: Table | Stream) -> ImageRef:
    """A row as a ref."""
    cell = row[source.columns.image]
    name = str((cell or {}).get("path") or "").rsplit("/", 1)[-1]
    return ImageRef(place, f"{place:08d}{'-' if name else ''}{name}", logit(row, source), partial(read_cell, cell))


def logit(row: Any, source: Table | Stream) -> int | None:
    """The label of a row as a place among the logits: None where it has none, -1 where it is no class of the checkpoint."""
    label = None if source.columns.label is None else row[source.columns.label]
    if label is None or label < 0:
        return None
    return int(label) if source.places is None else source.places[label]


def read_cell(cell: Any) -> Image.Image:
    """The image of an undecoded cell {bytes, path}."""
    if cell is None:
        raise ValueError("no image in this row")
    if cell.get("bytes") is not None:
        return decode(io.BytesIO(cell["bytes"]))
    if Path(cell["path"]).is_file():
        return decode(Path(cell["path"]))
    from datasets.utils.file_utils import xopen

    with xopen(cell["path"], "rb") as file:  # a place on the Hub
        return decode(io.BytesIO(file.read()))


def table(path: Path, split: str | None, limit: int | None) -> Table:
    """A folder of `save_to_disk`, a Parquet file or a folder of Parquet files."""
    datasets = need()
    try:
        if path.is_file() or any(path.glob("*.parquet")):
            files = [path] if path.is_file() else sorted(path.glob(f"{split or ''}*.parquet")) or sorted(path.glob("*.parquet"))
            rows = datasets.Dataset.from_parquet([str(file) for file in files])
        else:
            rows = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever a damaged or foreign file makes the library meet
        raise PruneError(f"data set {path} cannot be read ({one_line(error)}); save it again with save_to_disk") from error
    rows = choose(rows, split, str(path)) if isinstance(rows, dict) else rows
    columns = find_columns(rows.features, str(path))
    rows = rows.cast_column(columns.image, datasets.Image(decode=False))
    if limit is not None:
        rows = rows.select(spread(rows[columns.label] if columns.label else None, len(rows), limit))
    if not len(rows):
        raise PruneError(f"data set {path} has no rows")
    return Table(rows, columns, str(path), columns.classes)


def stream(name: str, split: str | None, limit: int | None) -> Stream:
    """A data set of the Hub by NAME[@CONFIG][:SPLIT]."""
    datasets = need()
    base, _, inside = name.partition(":")
    base, _, config = base.partition("@")
    split = split or inside or None
    try:
        check_reach(base, "dataset")
        rows = datasets.load_dataset(base, config or None, split=split, streaming=True)
    except Exception as error:  # the hub client has errors of its own for every kind of trouble
        raise PruneError(
            f"data set {base} cannot be streamed from the Hugging Face Hub ({one_line(error)}); without network, run on a machine that "
            f"has it: python -c \"import datasets; datasets.load_dataset('{base}'{f', {config!r}' if config else ''}, "
            f"split='{split or 'test'}').save_to_disk('DIR')\", bring DIR here and give it with --data DIR"
        ) from error
    rows = choose(rows, None, base) if isinstance(rows, dict) else rows
    features = rows.features if rows.features is not None else rows._resolve_features().features
    columns = find_columns(features, base)
    return Stream(
        rows.cast_column(columns.image, datasets.Image(decode=False)), columns, f"hf:{name}", columns.classes, limit=limit
    )


def choose(splits: Any, split: str | None, title: str) -> Any:
    """The split that is asked for, else the one that is for testing; a PruneError with those that there are."""
    if split is not None and split not in splits:
        raise PruneError(f"data set {title} has no split {split!r}; it has {', '.join(splits)}")
    return splits[split or next((name for name in PREFERRED if name in splits), next(iter(splits)))]


def find_columns(features: Any, title: str) -> Columns:
    """The columns that hold images and labels, by their types, else by their names."""
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    image = first([name for name, kind in kinds.items() if kind == "Image"], [name for name in IMAGES if name in kinds])
    if image is None:
        raise PruneError(f"data set {title} has no column of images; its columns are {', '.join(kinds)}")
    label = first([name for name, kind in kinds.items() if kind == "ClassLabel"], [name for name in LABELS if name in kinds])
    named = label is not None and kinds[label] == "ClassLabel"
    return Columns(image, label, list(features[label].names) if named else None)


def first(*groups: Iterable[str]) -> str | None:
    """The first name of the first group that has one."""
    return next(iter(itertools.chain(*groups)), None)


def need() -> Any:
    """The library; a PruneError that names the extra to install where it is missing."""
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise PruneError("Hugging Face data sets need datasets; pip install 'sparsight[eval]'") from None
