"""Read a folder of images: class folders or flat, an even subset, batches that survive unreadable files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from ..errors import PruneError, shown
from .fingerprint import digest
from .labels import correspond, sample
from .reading import ImageRef, Source, Transform, Wanted, ahead, attempt, decode, name_below, readable, stacked

Item = TypeVar("Item")
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test"))


@dataclass(frozen=True)
class Folder:
    """Images of a folder; `labels` index `classes`, both None where there are no class folders. `note` says what was left out."""

    path: Path
    paths: list[Path]
    labels: list[int] | None = None
    classes: list[str] | None = None
    note: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def fingerprint(self, times: bool = False) -> str:
        """Fingerprint of names below the folder, sizes and labels; with the times of last change on request."""
        facts = []
        for path in self.paths:
            found = stat_of(path)
            facts.append((path.relative_to(self.path).as_posix(), found.st_size, found.st_mtime_ns if times else 0))
        return digest(facts, self.labels)

    def name(self, place: int) -> str:
        """What the image at a place is called."""
        return name_below(self.paths[place], self.path)

    def ref(self, place: int) -> ImageRef:
        """The image at a place of the list."""
        path = self.paths[place]
        return ImageRef(place, self.name(place), None if self.labels is None else self.labels[place], partial(decode, path))

    def __str__(self) -> str:
        kinds = f" of {len(set(self.labels))} classes" if self.labels else ""
        return f"{readable(str(self.path))}: {len(self)} images{kinds}" + (f" ({self.note})" if self.note else "")


def open_folder(path: str | Path, limit: int | None = None) -> Folder:
    """List the images of a folder, at most `limit` of them, spread evenly over classes and within each.

    Layout: one folder per class (images may lie deeper in it), or images directly in the folder. The same folder and limit give
    the same list. Nothing is decoded. Raises PruneError for a missing or empty folder, a file, and a folder without images.
    """
    root = Path(path).expanduser()
    if limit is not None and limit < 1:
        raise PruneError(f"limit={limit} leaves no image; give 1 or more, or leave it out for all of {root}")
    # torchvision's ImageFolder wants class folders, follows links in circles, and opens by suffix what then stops the run
    folders, files = list_top(root)
    back = [readable(folder.name) for folder in folders if leads_back(folder, root)]
    groups = {
        readable(folder.name): found for folder in folders if not leads_back(folder, root) and (found := images_below(folder))
    }
    flat = [file for file in files if is_image(file)]
    if not groups and not flat:
        raise PruneError(f"data folder {root} has no images ({describe(folders, files)}); expected {EXPECTED}")
    if groups and set(groups) <= SPLITS:
        raise PruneError(f"data folder {root} holds the splits {', '.join(groups)}; give one of them, such as {root / min(groups)}")
    if not groups:
        return Folder(root, pick([flat], limit)[0])
    chosen = pick(list(groups.values()), limit)
    labels = [label for label, group in enumerate(chosen) for _ in group]
    notes = [f"{len(flat)} images beside the class folders are not used"] if flat else []
    notes += [f"{', '.join(back)}: a link back to the folder is not followed"] if back else []
    note = "; ".join(notes)
    return Folder(root, [file for group in chosen for file in group], labels, list(groups), note)


def stat_of(path: Path) -> os.stat_result:
    """Of a link to nothing, which is an image that cannot be read, that of the link."""
    return path.stat() if os.path.exists(path) else path.lstat()


EXPECTED = "one folder per class, or images directly inside (.jpg, .png, .webp, .bmp, .gif, .tif, .ppm)"


def list_top(root: Path) -> tuple[list[Path], list[Path]]:
    """Folders and everything else directly in the folder, by name, hidden ones left out."""
    if not os.path.exists(root):
        near = next((parent for parent in root.absolute().parents if os.path.exists(parent)), root)
        raise PruneError(f"data folder {shown(str(root))} does not exist ({shown(str(near))} does); give a folder of images")
    if not root.is_dir():
        raise PruneError(f"data folder {root} is a file; give the folder that holds the images, such as {root.parent}")
    try:
        entries = sorted((entry for entry in root.iterdir() if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise PruneError(f"data folder {root} cannot be listed ({error.strerror}); check its permissions") from None
    if not entries:
        raise PruneError(f"data folder {root} is empty; expected {EXPECTED}")
    folders = [entry for entry in entries if os.path.isdir(entry)]
    return folders, [entry for entry in entries if not os.path.isdir(entry)]


def leads_back(folder: Path, root: Path) -> bool:
    """Whether a folder is a link to where it lies, or above."""
    return folder.is_symlink() and root.resolve().is_relative_to(folder.resolve())


def describe(folders: list[Path], files: list[Path]) -> str:
    """What a folder without images holds instead."""
    names = ", ".join(readable(entry.name) for entry in (folders + files)[:3])
    return f"it holds {len(folders)} folders and {len(files)} files: {names}{', ...' if len(folders) + len(files) > 3 else ''}"


def is_image(file: Path) -> bool:
    """Whether the name looks like an image."""
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def images_below(folder: Path) -> list[Path]:
    """Images in the folder and below it, by path."""
    found = [Path(where) / name for where, _, names in os.walk(folder) for name in names]
    return sorted(file for file in found if is_image(file))


def pick(groups: list[list[Item]], limit: int | None) -> list[list[Item]]:
    """At most `limit` items, the same number from every group as far as it has them, evenly spaced within it."""
    if limit is None or limit >= sum(map(len, groups)):
        return groups
    quota = [0] * len(groups)
    while limit:
        open_ones = [index for index, group in enumerate(groups) if quota[index] < len(group)]
        share = max(1, min(limit // len(open_ones), min(len(groups[index]) - quota[index] for index in open_ones)))
        for index in even(open_ones, min(limit, len(open_ones))):
            quota[index] += share
            limit -= share
    return [even(group, count) for group, count in zip(groups, quota, strict=True)]


def spread(labels: Sequence[int] | None, total: int, limit: int) -> list[int]:
    """At most `limit` places, in order, the same number of every label as far as there are any."""
    groups: dict[int, list[int]] = {}
    for place in range(total):
        groups.setdefault(0 if labels is None else labels[place], []).append(place)
    return sorted(place for group in pick([groups[label] for label in sorted(groups)], limit) for place in group)


def even(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of the items, evenly spaced."""
    return [items[index * len(items) // count] for index in range(count)]


def align(folder: Folder, classes: Sequence[str] | None, outputs: int | None = None) -> Folder:
    """The folder with `labels` as positions among the checkpoint's logits and `classes` in their order.

    classes: the checkpoint's class names, or None; outputs: number of its logits, by default the number of names. `correspond`
    says how names match. Labels are None, and `note` says why, where no top-1 can be had. Images of folders without a match are
    left out. Raises PruneError if no folder matches.
    """
    if folder.labels is None or folder.classes is None:
        return folder
    outputs = len(classes) if outputs is None and classes else outputs or 0
    found = correspond(folder.classes, classes, outputs, f"class folder of {folder.path}")
    if isinstance(found, str):
        return unlabelled(folder, found)
    return add_note(relabel(folder, found.places, found.classes), found.note)


def relabel(folder: Folder, found: dict[str, int], classes: list[str]) -> Folder:
    """The folder with labels in the checkpoint's order, images without a class left out."""
    assert folder.labels is not None
    assert folder.classes is not None
    pairs = [(path, found.get(folder.classes[label], -1)) for path, label in zip(folder.paths, folder.labels, strict=True)]
    kept = [(path, label) for path, label in pairs if label >= 0]
    lost = [name for name in folder.classes if name not in found]
    done = replace(folder, paths=[path for path, _ in kept], labels=[label for _, label in kept], classes=classes)
    if not lost:
        return done
    return add_note(done, f"{len(pairs) - len(kept)} images of {sample(lost)} are left out, which are no classes of the checkpoint")


def unlabelled(folder: Folder, note: str) -> Folder:
    """The folder without labels."""
    return add_note(replace(folder, labels=None, classes=None), note)


def add_note(folder: Folder, note: str) -> Folder:
    """The folder with one more note."""
    return replace(folder, note="; ".join(filter(None, (folder.note, note))))


@dataclass(frozen=True)
class FolderSource(Source):
    """The images of a folder."""

    folder: Folder
    title: str
    classes: list[str] | None = field(init=False)
    note: str = field(init=False)
    total: int | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", self.folder.classes)
        object.__setattr__(self, "note", self.folder.note)
        object.__setattr__(self, "total", len(self.folder))

    def ref(self, place: int) -> ImageRef:
        return self.folder.ref(place)

    def refs(self, wanted: Wanted) -> Iterator[ImageRef]:
        return (self.ref(place) for place in range(len(self.folder)) if wanted(place))

    def aligned(self, classes: Sequence[str] | None, outputs: int) -> Source:
        return replace(self, folder=align(self.folder, classes, outputs))

    def fingerprint(self, times: bool = True) -> str:
        return self.folder.fingerprint(times)


@dataclass(frozen=True)
class Skipped:
    """An image that could not be read, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{readable(str(self.path))}: {self.reason}"


@dataclass
class Batches:
    """Iterate over (images [B, 3, H, W], indices into `folder.paths`); unreadable images are skipped and remembered.

    Every batch but the last has `size` images. Iterating again starts anew.
    """

    folder: Folder
    transform: Transform
    size: int = 32
    workers: int = field(default_factory=lambda: min(4, os.cpu_count() or 1))
    skipped: list[Skipped] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[Tensor, list[int]]]:
        self.skipped.clear()
        images: list[Tensor] = []
        indices: list[int] = []
        for index, image in self.stream():
            images.append(image)
            indices.append(index)
            if len(images) == self.size:
                yield stacked(images), indices
                images, indices = [], []
        if images:
            yield stacked(images), indices

    def stream(self) -> Iterator[tuple[int, Tensor]]:
        """Readable images in order, loaded ahead by at most two batches."""
        jobs = (partial(load_image, path, self.transform) for path in self.folder.paths)
        for index, outcome in enumerate(ahead(jobs, self.workers, 2 * self.size)):
            if isinstance(outcome, Skipped):
                self.skipped.append(outcome)
            else:
                yield index, outcome


def batches(folder: Folder, transform: Transform, size: int = 32, workers: int | None = None) -> Batches:
    """Batches of a folder's images, transformed, in the folder's order; `.skipped` names those that could not be read."""
    return Batches(folder, transform, size) if workers is None else Batches(folder, transform, size, max(1, workers))


def load_image(path: Path, transform: Transform) -> Tensor | Skipped:
    """The transformed image, or why it cannot be read."""
    outcome = attempt(partial(decode, path), transform)
    return Skipped(path, outcome) if isinstance(outcome, str) else outcome
