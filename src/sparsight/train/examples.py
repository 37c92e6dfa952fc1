"""Training images: which comes when, augmented by random numbers of its own, read by any number of processes."""

from __future__ import annotations

import itertools
import multiprocessing
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.images import FolderSource
from ..data.reading import Source, Transform, reason, stacked
from ..errors import PruneError
from ..load.models import Loaded
from .settings import TrainSettings

Place = tuple[int, int, int]
"""Epoch, position in the epoch's order, image."""

TRIES = 100
"""Unreadable images in a row after which a run gives up."""


@dataclass(frozen=True, eq=False)
class Batch:
    """images [B, 3, H, W], labels [B]; skipped: (name, why) of images that could not be read, in whose place the next ones stand."""

    images: Tensor
    labels: Tensor
    skipped: list[tuple[str, str]]


def seed_all(*parts: int) -> None:
    """Seed Python's, NumPy's and torch's random numbers by whole numbers from 0 on: nothing about them has to be remembered."""
    first, second, third = (int(word) for word in np.random.SeedSequence(parts).generate_state(3))
    random.seed(first)
    np.random.seed(second)
    torch.manual_seed(third)


@contextmanager
def own_random() -> Iterator[None]:
    """Random numbers of the process are afterwards as they were."""
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


@dataclass(frozen=True)
class Order:
    """Which images every process sees in which step. count: images of the data set; micro: images of one forward of one process.

    A step has the same images whatever the number of processes: they share it out. What is left over at the end of an epoch comes up in
    another one. repeats: each image so often, as timm's RepeatAugSampler has it.
    """

    count: int
    batch_size: int
    micro: int
    rank: int
    world: int
    seed: int
    repeats: int

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return len(self.sampler(0)) * self.world // self.batch_size

    @property
    def accumulated(self) -> int:
        """Forwards of a step."""
        return self.batch_size // (self.micro * self.world)

    def sampler(self, epoch: int) -> Any:
        """The sampler of an epoch."""
        from timm.data.distributed_sampler import RepeatAugSampler
        from torch.utils.data import DistributedSampler

        items: Any = range(self.count)
        if self.repeats > 1:
            made: Any = RepeatAugSampler(items, num_replicas=self.world, rank=self.rank, num_repeats=self.repeats)
            made.set_epoch(self.seed * 100_003 + epoch)
            return made
        made = DistributedSampler(items, num_replicas=self.world, rank=self.rank, seed=self.seed * 100_003, drop_last=True)
        made.set_epoch(epoch)
        return made

    def forwards(self, epoch: int, first: int = 0) -> list[list[Place]]:
        """The places of every forward of an epoch, from step `first` on."""
        order = list(self.sampler(epoch))
        places = [(epoch, number * self.world + self.rank, image) for number, image in enumerate(order)]
        start = first * self.accumulated
        return [places[at * self.micro : (at + 1) * self.micro] for at in range(start, self.steps * self.accumulated)]


@dataclass(frozen=True, eq=False)
class Examples:
    """What a loader asks for an image: (image, label, what was skipped)."""

    source: Source
    transform: Transform
    seed: int

    def __getitem__(self, place: Place) -> tuple[Tensor, int, list[tuple[str, str]]]:
        epoch, position, index = place
        total, skipped = self.source.total or 0, list[tuple[str, str]]()
        for moved in range(min(TRIES, total)):
            ref = self.source.ref((index + moved) % total)
            try:
                if ref.label is None or ref.label < 0:
                    raise ValueError("no label")
                picture = ref.read()
            except Exception as error:  # Pillow's decoders raise whatever their format meets
                skipped.append((ref.name, reason(error)))
                continue
            seed_all(self.seed, epoch, position)
            return self.transform(picture), ref.label, skipped
        raise PruneError(f"{len(skipped)} images in a row of {self.source.title} cannot be used ({skipped[0][0]}: {skipped[0][1]})")


def collate(items: Sequence[tuple[Tensor, int, list[tuple[str, str]]]]) -> Batch:
    """Examples as one batch."""
    images, labels, skipped = zip(*items, strict=True)
    return Batch(stacked(images), torch.tensor(labels), list(itertools.chain.from_iterable(skipped)))


def read_ahead(examples: Examples, forwards: list[list[Place]], workers: int) -> Iterator[Batch]:
    """The batches of an epoch, read by worker processes, or by this one. Raises PruneError if a worker is killed."""
    from torch.utils.data import DataLoader

    context = "fork" if workers and "fork" in multiprocessing.get_all_start_methods() else None
    source: Any = examples
    loader = DataLoader(
        source, batch_sampler=forwards, num_workers=workers, collate_fn=collate, multiprocessing_context=context,
        pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise PruneError(
            f"a process that loads images was killed ({str(error).splitlines()[0]}), most often for lack of memory or of room in "
            "/dev/shm; give the same command again, with fewer --workers"
        ) from error


def training_transform(loaded: Loaded, settings: TrainSettings, look: dict[str, Any]) -> Transform:
    """timm's augmentation at the model's size and with its colours. look: mean, std and interpolation of its preprocessing."""
    from timm.data import create_transform

    made: Transform = create_transform(
        input_size=(3, *loaded.image_size),
        is_training=True,
        train_crop_mode=settings.crop,
        scale=settings.crop_scale,
        hflip=settings.flip,
        color_jitter=settings.color_jitter or None,
        auto_augment=settings.auto_augment or None,
        interpolation=settings.interpolation or look["interpolation"],
        mean=look["mean"],
        std=look["std"],
        re_prob=settings.erase,
        re_mode=settings.erase_mode,
        re_count=settings.erase_count,
    )
    return made


def check_labels(source: Source) -> None:
    """Raise PruneError for images that nobody can be trained on."""
    if source.total is None:
        raise PruneError(
            f"{source.title} is a stream, whose images cannot be shuffled; save it with save_to_disk and give the folder with --data"
        )
    unnamed = isinstance(source, FolderSource) and source.folder.labels is None
    if unnamed or getattr(getattr(source, "columns", None), "label", "") is None:
        raise PruneError(
            f"{source.title} has no labels{f' ({source.note})' * bool(source.note)}; training needs one folder per class, or a label column"
        )
