"""Finished work on disk: written whole or not at all, found again under a key made of everything that matters, read back."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..data.fingerprint import digest as digest
from ..data.reading import Group
from ..errors import PruneError, shown

Finished = TypeVar("Finished")

UNPRUNED = "unpruned"
"""What the row without a recipe is called."""

PART = ".part"
"""Ending of a file that is being written; what a killed run left behind is removed by the next one."""

STALE = 60.0
"""Seconds after which nobody is still writing a file."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


# ---- files ------------------------------------------------------------------------------------------------------------


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Raise PruneError if the disk is full while a file is written."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise PruneError(
            f"no room for {path.name} in {path.parent} ({error.strerror}); what is finished there is kept: make room and give the "
            "same command again, or give another folder with --out"
        ) from error


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Let `save` write a file beside `path`, then move it there in one step; nothing stays if it fails or is interrupted.

    Raises PruneError if the disk is full.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        with room_for(path):
            save(part)
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_result(path: str | Path, parse: Callable[[str], Finished], verb: str, name: str = "results.json") -> Finished:
    """What `parse` makes of a file's text; of a folder the file `name`. Raises PruneError if it is no result of the verb."""
    file = Path(path)
    try:
        return parse((file / name if file.is_dir() else file).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PruneError(f"{file} is no result of {verb}: {error}") from None


def claim(out: Path, inner: str = "rows", shared: bool = False) -> list[Path]:
    """Make OUT and OUT/rows (or what `inner` says), prove that they can be written, and clear away what a killed run left half-written.

    shared: others may be writing there now, so that only what is older than `STALE` seconds is cleared away. Returns the folders that
    were made, innermost first. Raises PruneError if OUT cannot be used.
    """
    rows = out / inner
    made = [path for path in (rows, *rows.parents) if not os.path.exists(path)]
    try:
        rows.mkdir(parents=True, exist_ok=True)
        for folder in (out, rows):
            for part in folder.glob(f"*{PART}"):
                if not shared or age(part) > STALE:
                    part.unlink(missing_ok=True)
            probe = folder / f"probe.{os.getpid()}{PART}"
            probe.touch()
            probe.unlink()
    except OSError as error:
        release(made)
        raise PruneError(
            f"output folder {shown(str(out))} cannot be written ({error.strerror}); give another one with --out"
        ) from None
    return made


def age(path: Path) -> float:
    """Seconds since a file was written; 0 for one that is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def release(made: list[Path]) -> None:
    """Take back the folders that `claim` made, as far as they are empty."""
    for path in made:
        try:
            path.rmdir()
        except OSError:
            return


def fingerprint_model(model: nn.Module) -> str:
    """Fingerprint of the weights and of the way they are put together."""
    state = hashlib.blake2b(repr(model).encode(), digest_size=8)
    for name, tensor in model.state_dict().items():
        state.update(name.encode())
        state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return state.hexdigest()


# ---- finished work ----------------------------------------------------------------------------------------------------


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
        self.skipped += [(ref.place, ref.name, why) for ref, why in group.skipped]
        self.extend([r.place for r in group.refs], [r.name for r in group.refs], [r.label for r in group.refs], columns)

    def extend(
        self, places: Sequence[int], names: Sequence[str], labels: Sequence[int | None], columns: Mapping[str, Tensor]
    ) -> None:
        """Append rows."""
        self.places += places
        self.names += names
        self.labels += labels
        for name, tensor in columns.items():
            self.columns[name] = joined([self.columns[name], tensor]) if name in self.columns else tensor

    def part(self, rows: Sequence[int]) -> Chunk:
        """Some of the rows."""
        columns = {name: tensor[list(rows)] for name, tensor in self.columns.items()}
        places, names, labels = ([values[row] for row in rows] for values in (self.places, self.names, self.labels))
        return Chunk(places, names, labels, self.skipped, columns)  # type: ignore[arg-type]

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
            whole.columns[name] = joined([chunk.columns[name] for chunk in full])
        return whole


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Rows of all parts; where they differ in length (counts per image), the shorter ones are filled with -1."""
    if parts[0].dim() != 2:
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1]), value=-1) for part in parts])


@dataclass(frozen=True)
class ResultStore:
    """Finished work of one set of arguments, which the key stands for: rows as JSON, answers on images in numbered chunks."""

    folder: Path
    key: str

    def file(self, name: str, ending: str = ".json") -> Path:
        """Where something of that name is kept."""
        return self.folder / f"{re.sub(r'[^A-Za-z0-9_.=-]+', '_', name)[:80]}-{digest(self.key, name)}{ending}"

    def find(self, name: str, read: Callable[[dict[str, Any]], Finished]) -> Finished | None:
        """The finished row of that name, as `read` makes it from what was written; None if there is none that can be read."""
        try:
            return read(json.loads(self.file(name).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, name: str, data: Mapping[str, Any]) -> None:
        """Keep a row that `find` will find."""
        write_text(self.file(name), json.dumps(data) + "\n")

    def chunk_file(self, name: str, number: int) -> Path:
        """Where a chunk is kept. The name is that of a recipe, or of whatever else is asked of every image."""
        return self.file(name, f"-{number:06d}.safetensors")

    def has_chunk(self, name: str, number: int) -> bool:
        """Whether the chunk is there and can be read; a damaged one is thrown away."""
        path = self.chunk_file(name, number)
        if not path.exists():
            return False
        try:
            Chunk.load(path)
        except Exception:  # whatever a damaged file makes the reader raise: the chunk is made anew
            path.unlink(missing_ok=True)
            return False
        return True

    def keep_chunk(self, name: str, number: int, chunk: Chunk) -> None:
        """Keep a chunk of answers."""
        write(self.chunk_file(name, number), chunk.save)

    def collect(self, name: str, count: int) -> Chunk:
        """All `count` chunks of that name as one. Raises PruneError if one of them has gone."""
        missing = [number for number in range(count) if not self.chunk_file(name, number).exists()]
        if missing:
            raise PruneError(f"{len(missing)} of {count} chunks of {name} are not in {self.folder}; give the same command again")
        return Chunk.merge([Chunk.load(self.chunk_file(name, number)) for number in range(count)])
