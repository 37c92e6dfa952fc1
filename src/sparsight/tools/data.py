"""Read a folder of images: class folders or flat, an even subset, batches that survive unreadable files."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from ..errors import PruneError

Item = TypeVar("Item")
Transform = Callable[[Image.Image], Tensor]
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test"))
SYNSET = re.compile(r"n\d{8}")


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

    def __str__(self) -> str:
        kinds = f" of {len(set(self.labels))} classes" if self.labels else ""
        return f"{self.path}: {len(self)} images{kinds}" + (f" ({self.note})" if self.note else "")


def open_folder(path: str | Path, limit: int | None = None) -> Folder:
    """List the images of a folder, at most `limit` of them, spread evenly over classes and within each.

    Layout: one folder per class (images may lie deeper in it), or images directly in the folder. The same folder and limit give
    the same list. Nothing is decoded. Raises PruneError for a missing or empty folder, a file, and a folder without images.
    """
    root = Path(path).expanduser()
    if limit is not None and limit < 1:
        raise PruneError(f"limit={limit} leaves no image; give 1 or more, or leave it out for all of {root}")
    folders, files = list_top(root)
    groups = {folder.name: found for folder in folders if (found := images_below(folder))}
    flat = [file for file in files if is_image(file)]
    if not groups and not flat:
        raise PruneError(f"data folder {root} has no images ({describe(folders, files)}); expected {EXPECTED}")
    if groups and set(groups) <= SPLITS:
        raise PruneError(f"data folder {root} holds the splits {', '.join(groups)}; give one of them, such as {root / min(groups)}")
    if not groups:
        return Folder(root, pick([flat], limit)[0])
    chosen = pick(list(groups.values()), limit)
    labels = [label for label, group in enumerate(chosen) for _ in group]
    note = f"{len(flat)} images beside the class folders are not used" if flat else ""
    return Folder(root, [file for group in chosen for file in group], labels, list(groups), note)


EXPECTED = "one folder per class, or images directly inside (.jpg, .png, .webp, .bmp, .gif, .tif, .ppm)"


def list_top(root: Path) -> tuple[list[Path], list[Path]]:
    """Folders and files directly in the folder, by name, hidden ones left out."""
    if not root.exists():
        near = next((parent for parent in root.absolute().parents if parent.exists()), root)
        raise PruneError(f"data folder {root} does not exist ({near} does); give a folder of images")
    if not root.is_dir():
        raise PruneError(f"data folder {root} is a file; give the folder that holds the images, such as {root.parent}")
    try:
        entries = sorted((entry for entry in root.iterdir() if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise PruneError(f"data folder {root} cannot be listed ({error.strerror}); check its permissions") from None
    if not entries:
        raise PruneError(f"data folder {root} is empty; expected {EXPECTED}")
    return [entry for entry in entries if entry.is_dir()], [entry for entry in entries if entry.is_file()]


def describe(folders: list[Path], files: list[Path]) -> str:
    """What a folder without images holds instead."""
    shown = ", ".join(entry.name for entry in (folders + files)[:3])
    return f"it holds {len(folders)} folders and {len(files)} files: {shown}{', ...' if len(folders) + len(files) > 3 else ''}"


def is_image(file: Path) -> bool:
    """Whether the name looks like an image."""
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def images_below(folder: Path) -> list[Path]:
    """Images in the folder and below it, by path."""
    found = [Path(where) / name for where, _, names in os.walk(folder) for name in names]
    return sorted(file for file in found if is_image(file))


def pick(groups: list[list[Path]], limit: int | None) -> list[list[Path]]:
    """At most `limit` files, the same number from every group as far as it has them, evenly spaced within it."""
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


def even(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of the items, evenly spaced."""
    return [items[index * len(items) // count] for index in range(count)]


def align(folder: Folder, classes: Sequence[str] | None, outputs: int | None = None) -> Folder:
    """The folder with `labels` as positions among the checkpoint's logits and `classes` in their order.

    classes: the checkpoint's class names, or None; outputs: number of its logits, by default the number of names. Names match
    as they are, then without regard to case, "_", "-" and synonyms after a comma; ImageNet synset folders (n01440764) match by
    timm's tables. Without names, as many sorted folders as logits are taken in order. Labels are None, and `note` says why, where
    no top-1 can be had. Images of folders without a match are left out. Raises PruneError if no folder matches.
    """
    if folder.labels is None or folder.classes is None:
        return folder
    outputs = len(classes) if outputs is None and classes else outputs or 0
    if not outputs:
        return unlabelled(folder, "no top-1: the model has no classifier")
    found = match(folder.classes, classes or [])
    if not found and all(SYNSET.fullmatch(name) for name in folder.classes):
        classes = synsets(outputs) or classes
        found = match(folder.classes, classes or [])
    if not classes:
        if len(folder.classes) != outputs:
            reason = f"the checkpoint has {outputs} classes without names, the folder {len(folder.classes)}"
            return unlabelled(folder, f"no top-1: {reason}")
        return add_note(folder, "the checkpoint has no class names; sorted folders are taken in the order of its logits")
    if not found:
        raise PruneError(
            f"no class folder of {folder.path} is a class of the checkpoint: folders {sample(folder.classes)}, "
            f"classes {sample(classes)}; rename the folders or choose another checkpoint"
        )
    return relabel(folder, found, list(classes))


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


def match(names: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """Index among the classes of every name that has one."""
    exact = {name: index for index, name in enumerate(classes)}
    loose: dict[str, set[int]] = {}
    for index, name in enumerate(classes):
        for word in {plain(name), *map(plain, name.split(","))}:
            loose.setdefault(word, set()).add(index)
    found = {}
    for name in names:
        places = loose.get(plain(name), set())
        if name in exact:
            found[name] = exact[name]
        elif len(places) == 1:
            found[name] = next(iter(places))
    return found


def plain(name: str) -> str:
    """The name without case and separators."""
    return " ".join(re.split(r"[\s_\-]+", name.casefold().strip()))


def synsets(outputs: int) -> list[str] | None:
    """ImageNet synset ids in the order of a classifier with so many outputs, or None if that is no known ImageNet."""
    try:
        from timm.data import ImageNetInfo, infer_imagenet_subset
    except ImportError:
        return None
    subset = infer_imagenet_subset({"num_classes": outputs})
    return list(ImageNetInfo(subset).label_names()) if subset else None


def sample(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")


def unlabelled(folder: Folder, note: str) -> Folder:
    """The folder without labels."""
    return add_note(replace(folder, labels=None, classes=None), note)


def add_note(folder: Folder, note: str) -> Folder:
    """The folder with one more note."""
    return replace(folder, note="; ".join(filter(None, (folder.note, note))))


@dataclass(frozen=True)
class Skipped:
    """An image that could not be read, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


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
                yield torch.stack(images), indices
                images, indices = [], []
        if images:
            yield torch.stack(images), indices

    def stream(self) -> Iterator[tuple[int, Tensor]]:
        """Readable images in order, loaded ahead by at most two batches."""
        waiting: deque[tuple[int, Future[Tensor | Skipped]]] = deque()
        todo = iter(range(len(self.folder)))
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                while True:
                    while len(waiting) < 2 * self.size and (index := next(todo, None)) is not None:
                        waiting.append((index, pool.submit(load_image, self.folder.paths[index], self.transform)))
                    if not waiting:
                        return
                    index, future = waiting.popleft()
                    outcome = future.result()
                    if isinstance(outcome, Skipped):
                        self.skipped.append(outcome)
                    else:
                        yield index, outcome
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def batches(folder: Folder, transform: Transform, size: int = 32, workers: int | None = None) -> Batches:
    """Batches of a folder's images, transformed, in the folder's order; `.skipped` names those that could not be read."""
    return Batches(folder, transform, size) if workers is None else Batches(folder, transform, size, max(1, workers))


def load_image(path: Path, transform: Transform) -> Tensor | Skipped:
    """The transformed image, or why it cannot be read."""
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise whatever their format meets
        return Skipped(path, reason(error))
    return transform(picture)


def reason(error: Exception) -> str:
    """What Pillow or the system says, without the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "not an image" if "cannot identify" in str(error) else str(error) or type(error).__name__
