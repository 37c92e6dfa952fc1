"""Checkpoints: weights as safetensors with the recipe inside, the optimiser's state beside them; whole or not there at all."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import PruneError, shown
from ..load.checkpoint import one_line
from ..runs.store import FULL
from ..saving.forms import packed

CHECKPOINTS = "checkpoints"
HALF = ".half"
"""Ending of a folder that is being written."""

WEIGHTS, AVERAGE, STATE, FACTS = "weights.safetensors", "average.safetensors", "state.pt", "facts.json"
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything from which a run goes on.

    step: optimiser steps that are behind. weights: of the learner; average: their moving average. state: of optimiser and scaler, and
    what else the loop remembers, as plain values and tensors.
    """

    step: int
    weights: Tensors
    average: Tensors | None
    state: dict[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run. facts: what the run is of; those of another run are refused. keep: how many stay."""

    folder: Path
    facts: dict[str, Any]
    keep: int = 2

    def steps(self) -> list[int]:
        """Steps at which there are checkpoints, the last one last."""
        if not self.folder.is_dir():
            return []
        return sorted(int(one.name) for one in self.folder.iterdir() if one.name.isdigit() and (one / FACTS).is_file())

    def check(self) -> None:
        """Raise PruneError if the folder holds a run of something else."""
        for step in self.steps():
            file = self.folder / f"{step:08d}" / FACTS
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise PruneError(
                    f"checkpoint {file.parent} cannot be read ({shown(str(error))}); delete it, or give another --out"
                ) from None
            differ = differences(self.facts, found)
            if differ:
                raise PruneError(
                    f"{self.folder.parent} holds a run of something else ({'; '.join(differ[:4])}{'; ...' if len(differ) > 4 else ''}); give "
                    "another --out, or delete the folder to begin anew"
                )

    def clear(self) -> None:
        """Take away what a killed run left half-written."""
        for part in self.folder.glob(f"*{HALF}"):
            shutil.rmtree(part, ignore_errors=True)

    def save(self, found: Checkpoint) -> None:
        """Write a checkpoint in one step, then let the oldest go. Raises PruneError if the disk is full: the ones before it stay."""
        place = self.folder / f"{found.step:08d}"
        if place.is_dir():
            return
        part = self.folder / f"{found.step:08d}.{os.getpid()}{HALF}"
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            note = {"recipe": str(self.facts.get("recipe")), "settings": json.dumps(self.facts.get("settings"))}
            (part / WEIGHTS).write_bytes(packed(found.weights, note))
            if found.average is not None:
                (part / AVERAGE).write_bytes(packed(found.average, note))
            buffer = io.BytesIO()
            torch.save(found.state, buffer)
            (part / STATE).write_bytes(buffer.getbuffer())
            (part / FACTS).write_text(json.dumps(self.facts, indent=1) + "\n", encoding="utf-8")
            os.replace(part, place)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise PruneError(
                f"no room for the checkpoint of step {found.step} in {self.folder} ({error.strerror}); the ones before it are kept: make "
                "room and give the same command again"
            ) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        for step in self.steps()[: -self.keep]:
            shutil.rmtree(self.folder / f"{step:08d}", ignore_errors=True)

    def load(self, step: int) -> Checkpoint:
        """Read a checkpoint, onto the CPU. Nothing in it is run."""
        from safetensors.torch import load_file

        place = self.folder / f"{step:08d}"
        try:
            weights = load_file(place / WEIGHTS)
            average = load_file(place / AVERAGE) if (place / AVERAGE).is_file() else None
            state = torch.load(place / STATE, weights_only=True, map_location="cpu")
        except Exception as error:  # whatever a damaged file makes a reader raise
            raise PruneError(
                f"checkpoint {place} cannot be read ({one_line(error)}); delete it to go on from the one before"
            ) from error
        return Checkpoint(step, weights, average, state)


def differences(now: Mapping[str, Any], then: Mapping[str, Any], where: str = "") -> list[str]:
    """What differs between two descriptions, as text."""
    found = []
    for name in sorted({*now, *then}):
        old, new = then.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(new, old, f"{name}.")
        elif old != new:
            found.append(f"{where.removeprefix('settings.')}{name} was {shown(str(old))}, is {shown(str(new))}")
    return found


def first_does(accelerator: Any, action: Callable[[], None]) -> None:
    """Let the first process do something; where it cannot, all raise the same PruneError."""
    error: list[str | None] = [None]
    if accelerator.is_main_process:
        try:
            action()
        except PruneError as fault:
            if accelerator.num_processes == 1:
                raise
            error = [str(fault)]
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(error)
        if error[0] is not None:
            raise PruneError(error[0])
