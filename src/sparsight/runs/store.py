"""Finished work on disk: written whole or not at all, found again under a key made of everything that matters."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..data.images import Folder
from ..errors import PruneError
from ..load.answers import Answers
from .comparison import Row

Finished = TypeVar("Finished")

PART = ".part"
"""Ending of a file that is being written; what a killed run left behind is removed by the next one."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def digest(*parts: object) -> str:
    """A short fingerprint of plain data."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def fingerprint_model(model: nn.Module) -> str:
    """Fingerprint of the weights and of the way they are put together."""
    state = hashlib.blake2b(repr(model).encode(), digest_size=8)
    for name, tensor in model.state_dict().items():
        state.update(name.encode())
        state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return state.hexdigest()


def fingerprint_data(folder: Folder, times: bool = False) -> str:
    """Fingerprint of the list of images: names below the folder, sizes and labels; with the times of last change on request."""
    facts = []
    for path in folder.paths:
        stat = path.stat()
        facts.append((path.relative_to(folder.path).as_posix(), stat.st_size, stat.st_mtime_ns if times else 0))
    return digest(facts, folder.labels)


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Let `save` write a file beside `path`, then move it there in one step; nothing stays if it fails or is interrupted.

    Raises PruneError if the disk is full.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        save(part)
        os.replace(part, path)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise PruneError(
            f"no room for {path.name} in {path.parent} ({error.strerror}); what is finished there is kept: make room and give the "
            "same command again, or give another folder with --out"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write(path, lambda part: part.write_text(text, encoding="utf-8"))


@dataclass(frozen=True)
class Shelf:
    """The folder OUT/rows of one set of arguments: finished rows and the answers of the unpruned model."""

    folder: Path
    key: str

    def row_file(self, recipe: str) -> Path:
        name = re.sub(r"[^\w.=-]+", "_", recipe)[:80]
        return self.folder / f"{name}-{digest(self.key, recipe)}.json"

    @property
    def answers_file(self) -> Path:
        return self.folder / f"unpruned-{self.key}.safetensors"

    def find(self, name: str, read: Callable[[dict[str, Any]], Finished]) -> Finished | None:
        """The finished row of that name, as `read` makes it from what was written; None if there is none that can be read."""
        try:
            return read(json.loads(self.row_file(name).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def row(self, recipe: str) -> Row | None:
        """The finished row of a recipe in a comparison."""
        return self.find(recipe, Row.from_dict)

    def keep_row(self, row: Row) -> None:
        write_text(self.row_file(row.recipe), json.dumps(asdict(row)) + "\n")

    def answers(self) -> Answers | None:
        """The unpruned model's answers; None if there are none that can be read."""
        try:
            return Answers.load(self.answers_file)
        except Exception:  # a damaged cache is no error: it is made anew
            return None

    def keep_answers(self, answers: Answers) -> None:
        write(self.answers_file, answers.save)


def claim(out: Path, inner: str = "rows") -> list[Path]:
    """Make OUT and OUT/rows (or what `inner` says), prove that they can be written, and clear away what a killed run left half-written.

    Returns the folders that were made, innermost first. Raises PruneError if OUT cannot be used.
    """
    rows = out / inner
    made = [path for path in (rows, *rows.parents) if not path.exists()]
    try:
        rows.mkdir(parents=True, exist_ok=True)
        for folder in (out, rows):
            for part in folder.glob(f"*{PART}"):
                part.unlink(missing_ok=True)
            probe = folder / f"probe{PART}"
            probe.touch()
            probe.unlink()
    except OSError as error:
        release(made)
        raise PruneError(f"output folder {out} cannot be written ({error.strerror}); give another one with --out") from None
    return made


def release(made: list[Path]) -> None:
    """Take back the folders that `claim` made, as far as they are empty."""
    for path in made:
        try:
            path.rmdir()
        except OSError:
            return
