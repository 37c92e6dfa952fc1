"""Top-1 of a model in training, on all its processes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..data.reading import Source, Transform, ahead, look
from ..runs.sweep import THREADS

Hits = list[int]
"""Per image: 1 where the first class is right, 0 where it is not, -1 where there is no telling (unreadable, or without a label)."""


def hits(
    learner: nn.Module,
    source: Source,
    transform: Transform,
    image_size: tuple[int, int],
    accelerator: Any,
    size: int,
    listen: Callable[[int], None] = lambda _: None,
) -> Hits:
    """Ask a model that gives {"logits"} about all images of a source; every process gets all the answers. The model is then as it was."""
    total = source.total or 0
    mine = range(accelerator.process_index, total, accelerator.num_processes)
    found = torch.zeros(total, dtype=torch.long, device=accelerator.device)
    modes = [(module, module.training) for module in learner.modules()]
    learner.eval()
    looks = ahead((partial(look, source.ref(place), transform) for place in mine), THREADS, 2 * size)
    rounds = math.ceil(math.ceil(total / accelerator.num_processes) / size)
    try:
        for done in range(rounds):
            group = [
                (ref, image) for ref, image in itertools.islice(looks, size) if isinstance(image, Tensor) and ref.label is not None
            ]
            if (
                group or accelerator.num_processes > 1
            ):  # a process without images left asks about nothing, as the others wait for it
                images = torch.stack([image for _, image in group]) if group else torch.zeros(1, 3, *image_size)
                answer(learner, images, [(ref.place, ref.label or 0) for ref, _ in group], found, accelerator)
            listen(min(total, (done + 1) * size * accelerator.num_processes))
    finally:
        for module, training in modes:
            module.training = training
    whole = accelerator.reduce(found, "sum")
    return [int(value) - 2 if value else -1 for value in whole.tolist()]


def answer(learner: nn.Module, images: Tensor, known: Sequence[tuple[int, int]], found: Tensor, accelerator: Any) -> None:
    """Put 2 for a wrong answer and 3 for a right one at the images' places. known: (place, label) of each."""
    with torch.no_grad(), accelerator.autocast():
        logits = learner(images.to(found.device))["logits"]
    if known:
        places, labels = (torch.tensor(column, device=found.device) for column in zip(*known, strict=True))
        found[places] = 2 + (logits.argmax(dim=-1) == labels).long()
