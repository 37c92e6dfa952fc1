"""Training and TrainPlan: what a run has come to, and what it would do."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from ..runs.intervals import Interval, read_intervals
from .memory import Memory


@dataclass(frozen=True)
class LogLine:
    """News of the steps since the line before: mean loss and its parts, learning rate and tokens at the last of them. top1: on the test
    images, where they were asked."""

    step: int
    epoch: float
    loss: float
    parts: dict[str, float]
    lr: float
    tokens: list[int]
    top1: float | None = None


@dataclass(frozen=True)
class TrainPlan:
    """What a run would do. macs: per image, as pruned and unpruned; counts: tokens after each site at the end."""

    model: str
    recipe: str
    preset: str
    data: str
    images: int
    classes: int
    test: str
    epochs: int
    steps: int
    batch_size: int
    processes: int
    accumulated: int
    micro: int
    rate: float
    counts: list[int]
    macs: int
    unpruned_macs: int
    memory: Memory
    parameters: int
    trained: int
    resumes: int
    notes: list[str]

    def __str__(self) -> str:
        every = self.steps // self.epochs
        shares = f"{self.processes} process{'es' * (self.processes > 1)} x {self.accumulated} forward{'s' * (self.accumulated > 1)} x {self.micro}"
        lines = [
            f"{self.model} under {self.recipe}, preset {self.preset}",
            f"images: {self.images} of {self.classes} classes ({self.data}); test: {self.test or 'none'}",
            f"steps: {self.steps} = {self.epochs} epochs x {every}, of {self.batch_size} images ({shares}), learning rate {self.rate:.3g}",
            f"tokens: {' -> '.join(map(str, self.counts)) or 'all'}; {self.macs / 1e9:.3f} GMACs a forward, {100 * self.macs / self.unpruned_macs:.1f}% of "
            f"{self.unpruned_macs / 1e9:.3f}; training about {3 * self.macs * self.batch_size * self.steps / 1e15:.3f} PMACs",
            f"parameters: {self.parameters / 1e6:.1f} M, {self.trained / 1e6:.1f} M trained; memory of a process: {self.memory}",
            *([f"goes on from step {self.resumes}"] if self.resumes else []),
            *self.notes,
        ]
        return "\n".join(lines)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


@dataclass(frozen=True)
class Training:
    """A finished training. before, after: top-1 on the test images, pruned, with the paired change; None without test images.

    log: the loss over the steps. skipped: (name, why) of training images that could not be read. hits: for each test image 1 where the first
    class is right after training, 0 where it is not, -1 where there is no telling.
    """

    model: str
    recipe: str
    preset: str
    settings: dict[str, Any]
    data: str
    images: int
    classes: int
    test: str
    test_images: int
    image_size: tuple[int, int]
    steps: int
    before: Interval | None
    after: Interval | None
    change: Interval | None
    macs: int
    unpruned_macs: int
    processes: int
    device: str
    seconds: float
    date: str
    versions: dict[str, str]
    facts: dict[str, Any]
    notes: list[str]
    skipped: list[tuple[str, str]]
    log: list[LogLine]
    hits: list[int]

    @property
    def loss(self) -> float:
        """The mean loss of the last steps."""
        return self.log[-1].loss

    def __str__(self) -> str:
        accuracy = ""
        if self.before is not None and self.after is not None:
            accuracy = f", top-1 {100 * self.before.value:.1f}% before, {100 * self.after.value:.1f}% after ({self.change} points)"
        return f"{self.model} under {self.recipe}: {self.steps} steps, loss {self.log[0].loss:.3f} at first, {self.loss:.3f} at last{accuracy}"

    def to_json(self) -> str:
        """JSON text; `from_json` is the inverse."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Training:
        """Read what `to_json` wrote."""
        data = read_intervals(json.loads(text), "before", "after", "change")
        data["image_size"] = tuple(data["image_size"])
        data["skipped"] = [(name, why) for name, why in data["skipped"]]
        data["log"] = [LogLine(**line) for line in data["log"]]
        return Training(**data)
