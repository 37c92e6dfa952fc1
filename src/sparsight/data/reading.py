"""Decode and transform images ahead of the model, in threads or in processes of their own, and live with broken ones."""

from __future__ import annotations

import itertools
import multiprocessing
import stat
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import PruneError
from .fingerprint import digest

Item = TypeVar("Item")
Transform = Callable[[Image.Image], Tensor]
Wanted = Callable[[int], bool]


@dataclass(frozen=True)
class ImageRef:
    """An image that has not been read yet: its place in the data set, its name, its label if it has one, and how to read it."""

    place: int
    name: str
    label: int | None
    read: Callable[[], Image.Image]


class Source(ABC):
    """Images in a fixed order, each with a place, a name and perhaps a label.

    title: what to call it; classes: names of the labels; total: number of images, None where only reading to the end tells. size: side in
    pixels of square pictures that are made to be seen as they are, None for photos that a model's preprocessing brings to its own size.
    """

    title: str
    classes: list[str] | None
    note: str
    total: int | None

    @property
    def size(self) -> int | None:
        return None

    @abstractmethod
    def refs(self, wanted: Wanted) -> Iterator[ImageRef]:
        """References to the wanted places, in order. Nothing is decoded."""

    def ref(self, place: int) -> ImageRef:
        """Reference to the image at a place; streams have none."""
        raise NotImplementedError

    @abstractmethod
    def aligned(self, classes: Sequence[str] | None, outputs: int) -> Source:
        """The same images with labels as places among a checkpoint's logits; see `labels.correspond`."""

    @abstractmethod
    def fingerprint(self, times: bool = True) -> str:
        """Changes when the images or labels do; of files by name and size, and on request by the time of their last change."""

    def __str__(self) -> str:
        return f"{self.title}: {'a stream of' if self.total is None else self.total} images"


def mark(source: Source) -> str:
    """Fingerprint of a source with the meaning of its labels."""
    return digest(source.fingerprint(), source.classes)


@dataclass(frozen=True, eq=False)
class Group:
    """Images of neighbouring places: those that could be read, stacked, and the others with the reason."""

    refs: list[ImageRef]
    images: Tensor | None
    skipped: list[tuple[ImageRef, str]]

    @property
    def place(self) -> int:
        """The first place, readable or not."""
        return min(ref.place for ref in (*self.refs, *(ref for ref, _ in self.skipped)))


FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""What is opened, whatever a file is called. Pillow knows more, and for some of them (EPS) it starts other programs."""
MOST_RATIO = 200
"""How many times longer one side of an image may be than the other: resized by its short side, a longer one needs gigabytes."""


@cache
def formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow can read."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def decode(file: Path | IO[bytes], most: int | None = None) -> Image.Image:
    """The image as RGB; 16-bit grey is scaled to 8 bits. The one way by which every verb reads an image.

    most: pixels that it may have; an image says how many before it is decoded. Raises OSError or ValueError for what is no regular file,
    no image of a known format, too large, too long for its width, or of pixels whose range is not known.
    """
    if isinstance(file, Path) and not stat.S_ISREG(file.stat().st_mode):
        raise ValueError("not a regular file")
    with Image.open(file, formats=formats()) as image:
        if most is not None and image.width * image.height > most:
            raise ValueError(f"{image.width} x {image.height} pixels: over {most} in all")
        long, short = max(image.size), min(image.size)
        if long > MOST_RATIO * short:
            raise ValueError(f"{image.width} x {image.height} pixels: one side is over {MOST_RATIO} times the other")
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
            return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")
        if image.mode in ("I", "F"):
            raise ValueError("32-bit pixels, whose range is not known")
        return image.convert("RGB")


def attempt(read: Callable[[], Image.Image], transform: Transform) -> Tensor | str:
    """The transformed image, or why it cannot be read. An error of the transform is not hidden."""
    try:
        picture = read()
    except Exception as error:  # Pillow's decoders raise whatever their format meets
        return reason(error)
    return transform(picture)


def stacked(images: Sequence[Tensor]) -> Tensor:
    """Images as one batch. Raises PruneError if the transform made different sizes of them."""
    sizes = sorted({tuple(image.shape) for image in images})
    if len(sizes) > 1:
        raise PruneError(f"the transform makes {list(sizes[0])} of one image and {list(sizes[1])} of another; one size is needed")
    return torch.stack(list(images))


def readable(name: str) -> str:
    """A name as text: bytes that are no UTF-8 and control characters are spelled out, as in caf\\xe9.jpg."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def name_below(path: Path, folder: Path) -> str:
    """An image's name: the path below its folder."""
    return readable(path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name)


def reason(error: Exception) -> str:
    """What Pillow or the system says, without the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "not an image" if "cannot identify" in str(error) else str(error) or type(error).__name__


def ahead(jobs: Iterable[Callable[[], Item]], workers: int, depth: int) -> Iterator[Item]:
    """Results of the jobs in their order, computed by threads, at most `depth` of them ahead."""
    # DataLoader reads ahead in processes only, which cost seconds to start and cannot read a stream from where it stands
    waiting: deque[Future[Item]] = deque()
    todo = iter(jobs)
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                while len(waiting) < depth and (job := next(todo, None)) is not None:
                    waiting.append(pool.submit(job))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def by_threads(refs: Iterable[ImageRef], transform: Transform, size: int, threads: int) -> Iterator[Group]:
    """Groups of `size` neighbouring places, decoded by threads of this process."""
    jobs = (partial(look, ref, transform) for ref in refs)
    looks = ahead(jobs, threads, 2 * size)
    for _, group in itertools.groupby(looks, key=lambda pair: pair[0].place // size):
        yield together(list(group))


def look(ref: ImageRef, transform: Transform) -> tuple[ImageRef, Tensor | str]:
    """The ref with what became of it."""
    return ref, attempt(ref.read, transform)


def together(pairs: Sequence[tuple[ImageRef, Tensor | str]]) -> Group:
    """One group of the images that were read."""
    good = [(ref, image) for ref, image in pairs if isinstance(image, Tensor)]
    bad = [(ref, image) for ref, image in pairs if isinstance(image, str)]
    images = stacked([image for _, image in good]) if good else None
    return Group([ref for ref, _ in good], images, bad)


def by_processes(source: Source, places: Sequence[int], transform: Transform, size: int, workers: int) -> Iterator[Group]:
    """Groups of `size` neighbouring places, decoded by worker processes. Raises PruneError if one of them is killed."""
    from torch.utils.data import DataLoader

    batches = [list(batch) for _, batch in itertools.groupby(places, key=lambda place: place // size)]
    # Workers are forked where that is possible: transforms need not be picklable then.
    context = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    worker: Any = Worker(source, transform)
    loader = DataLoader(
        worker, batch_sampler=batches, num_workers=workers, collate_fn=separate, multiprocessing_context=context
    )  # fmt: skip
    try:
        for batch, (good, images, bad) in zip(batches, loader, strict=True):
            refs = {place: source.ref(place) for place in batch}
            yield Group([refs[place] for place in good], images, [(refs[place], why) for place, why in bad])
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise PruneError(
            f"a process that loads images was killed ({str(error).splitlines()[0]}), most often for lack of memory or of room in "
            "/dev/shm; what is finished is kept: give the same command again, with fewer --workers"
        ) from error


@dataclass(frozen=True, eq=False)
class Worker:
    """What a worker process does: read the image at a place."""

    source: Source
    transform: Transform

    def __getitem__(self, place: int) -> tuple[int, Tensor | str]:
        return place, attempt(self.source.ref(place).read, self.transform)


def separate(pairs: list[tuple[int, Tensor | str]]) -> tuple[list[int], Tensor | None, list[tuple[int, str]]]:
    """What a worker sends back: one stacked tensor, as each tensor would cost an open file."""
    good = [(place, image) for place, image in pairs if isinstance(image, Tensor)]
    bad = [(place, image) for place, image in pairs if isinstance(image, str)]
    return [place for place, _ in good], stacked([image for _, image in good]) if good else None, bad
