"""Per-image answers in chunks on disk: what an interrupted run has finished is found again, by whichever process asks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..data.reading import Group
from ..errors import PruneError
from .store import digest, write

FOLDER = "chunks"


@dataclass(eq=False)
class Chunk:
    """Answers on the images of some places, in order. Columns are tensors whose first dimension is the images that were read.

    skipped: (place, name, reason) of images that could not be read.
    """

    places: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)
    skipped: list[tuple[int, str, str]] = field(default_factory=list)
    columns: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.places)

    def add(self, group: Group, columns: Mapping[str, Tensor]) -> None:
        """Append a group of images with its columns."""
        self.skipped += [(ticket.place, ticket.name, why) for ticket, why in group.skipped]
        self.extend([t.place for t in group.tickets], [t.name for t in group.tickets], [t.label for t in group.tickets], columns)

    def extend(
        self, places: Sequence[int], names: Sequence[str], labels: Sequence[int | None], columns: Mapping[str, Tensor]
    ) -> None:
        """Append rows."""
        self.places += places
        self.names += names
        self.labels += labels
        for name, tensor in columns.items():
            self.columns[name] = joined(self.columns[name], tensor) if name in self.columns else tensor

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        from safetensors.torch import save

        note = {name: json.dumps(getattr(self, name)) for name in ("places", "names", "labels", "skipped")}
        path.write_bytes(save({name: tensor.contiguous() for name, tensor in self.columns.items()}, metadata=note))

    @staticmethod
    def load(path: Path) -> Chunk:
        """Read what `save` wrote."""
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            note = {name: json.loads(text) for name, text in file.metadata().items()}
            columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        return Chunk(note["places"], note["names"], note["labels"], [(p, n, why) for p, n, why in note["skipped"]], columns)

    @staticmethod
    def merge(chunks: Sequence[Chunk]) -> Chunk:
        """All chunks as one, by place."""
        whole = Chunk()
        for chunk in chunks:
            whole.extend(chunk.places, chunk.names, chunk.labels, {})
            whole.skipped += chunk.skipped
        full = [chunk for chunk in chunks if len(chunk)]
        for name in full[0].columns if full else ():
            width = max((chunk.columns[name].shape[1] for chunk in full if chunk.columns[name].dim() == 2), default=0)
            whole.columns[name] = torch.cat([widened(chunk.columns[name], width) for chunk in full])
        return whole


def joined(before: Tensor, after: Tensor) -> Tensor:
    """Rows of both; where they differ in length (counts per image), the shorter ones are filled with -1."""
    width = max(before.shape[1], after.shape[1]) if before.dim() == 2 else 0
    return torch.cat([widened(before, width), widened(after, width)])


def widened(rows: Tensor, width: int) -> Tensor:
    """Rows [n, w] filled with -1 up to the width."""
    return (
        rows if rows.dim() != 2 or rows.shape[1] == width else torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=-1)
    )


@dataclass(frozen=True)
class Shelf:
    """The chunks in OUT/chunks of one set of arguments. A task is a recipe, or whatever else is asked of every image."""

    folder: Path
    key: str

    def file(self, task: str, number: int) -> Path:
        name = re.sub(r"[^\w.=-]+", "_", task)[:60]
        return self.folder / f"{name}-{digest(self.key, task)}-{number:06d}.safetensors"

    def has(self, task: str, number: int) -> bool:
        """Whether the chunk is there and can be read; a damaged one is thrown away."""
        path = self.file(task, number)
        if not path.exists():
            return False
        try:
            Chunk.load(path)
        except Exception:  # whatever a damaged file makes the reader raise: the chunk is made anew
            path.unlink(missing_ok=True)
            return False
        return True

    def keep(self, task: str, number: int, chunk: Chunk) -> None:
        write(self.file(task, number), chunk.save)

    def collect(self, task: str, count: int) -> Chunk:
        """All `count` chunks of a task as one. Raises PruneError if one of them has gone."""
        missing = [number for number in range(count) if not self.file(task, number).exists()]
        if missing:
            raise PruneError(f"{len(missing)} of {count} chunks of {task} are not in {self.folder}; give the same command again")
        return Chunk.merge([Chunk.load(self.file(task, number)) for number in range(count)])
