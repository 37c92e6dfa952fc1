"""open_source(data): images with labels from a folder, from ImageNet's layout or from a Hugging Face data set, one interface for all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import PruneError
from .demo_sets import DEMO, open_demo
from .imagenet import flat_labels
from .images import SPLITS, Folder, FolderSource, list_top, open_folder, spread
from .reading import Source, readable

HUB = "hf:"


def open_source(
    data: str | Path, split: str | None = None, limit: int | None = None, *, nested: bool = False, ignore: Sequence[str] = ()
) -> Source:
    """Open a data set; nothing is decoded yet.

    data: a folder of images (one folder per class, or ImageNet's flat validation folder with its list of labels); a folder written
    by `save_to_disk` of Hugging Face datasets; a Parquet file or a folder of them; "hf:NAME", "hf:NAME@CONFIG", either
    with ":SPLIT", which is streamed from the Hugging Face Hub; or "demo:KIND", made of the packaged photos (`demo_sets`). split: DATA/split, or the split of a data set.
    limit: so many images, spread over the classes; of a stream the first ones. nested: in a folder, the class is the whole path
    to an image; ignore: class folders that do not count. Raises PruneError for what cannot be read.
    """
    if limit is not None and limit < 1:
        raise PruneError(f"limit={limit} leaves no image; give 1 or more, or leave it out for all of {data}")
    text = str(data)
    path = Path(text.removeprefix(HUB)).expanduser()
    if text.startswith(DEMO):
        if split is not None:
            raise PruneError(f"{text} has no splits; leave --split out")
        return open_demo(text, limit)
    if text.startswith(HUB) and not os.path.exists(path):
        from .hub import stream

        return stream(text.removeprefix(HUB), split, limit)
    if is_table(path):
        from .hub import table

        return table(path, split, limit)
    folder = labelled_folder(path if split is None else split_folder(path, split))
    if nested or ignore:
        folder = regroup(folder, nested, ignore)
    return FolderSource(folder if limit is None else limited(folder, limit), readable(str(folder.path)))


def is_table(path: Path) -> bool:
    """Whether the path holds a saved data set or Parquet files."""
    if os.path.isfile(path):
        return path.suffix == ".parquet"
    names = ("dataset_info.json", "dataset_dict.json", "state.json")
    return os.path.isdir(path) and (any((path / name).is_file() for name in names) or any(path.glob("*.parquet")))


def split_folder(path: Path, split: str) -> Path:
    """DATA/split; a PruneError with the splits that there are."""
    if (path / split).is_dir():
        return path / split
    folders, _ = list_top(path)
    found = [folder.name for folder in folders if folder.name in SPLITS]
    raise PruneError(f"data folder {path} has no split {split!r}; it has {', '.join(found) or 'no splits: leave --split out'}")


def labelled_folder(path: Path) -> Folder:
    """A folder of images, with ImageNet's own labels where its validation images lie flat."""
    folder = open_folder(path)
    if folder.labels is None and (found := flat_labels(folder.path, [file.name for file in folder.paths])) is not None:
        names = sorted(set(found))
        folder = replace(folder, labels=[names.index(name) for name in found], classes=names)
    return folder


def regroup(folder: Folder, nested: bool, ignore: Sequence[str]) -> Folder:
    """The folder with classes by the whole path below it (or by its first part), without those to ignore."""
    parts = [path.relative_to(folder.path).parts[:-1] for path in folder.paths]
    names = [readable("/".join(part if nested else part[:1])) for part in parts]
    kept = [place for place, name in enumerate(names) if name and name not in ignore]
    if not kept:
        raise PruneError(f"data folder {folder.path} has no class folders; this data set expects one folder per class")
    classes = sorted({names[place] for place in kept})
    index = {name: label for label, name in enumerate(classes)}
    paths = [folder.paths[place] for place in kept]
    return replace(folder, paths=paths, labels=[index[names[place]] for place in kept], classes=classes)


def limited(folder: Folder, limit: int) -> Folder:
    """At most `limit` images, spread evenly over the classes."""
    chosen = spread(folder.labels, len(folder), limit)
    labels = None if folder.labels is None else [folder.labels[place] for place in chosen]
    return replace(folder, paths=[folder.paths[place] for place in chosen], labels=labels)
