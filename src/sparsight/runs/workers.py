"""Several processes on one or many machines, started by `accelerate launch` or `torchrun`: each takes its share of the chunks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import PruneError
from .store import write

PATIENCE = timedelta(hours=24)
"""How long a process waits for the others; a dead one is noticed by the launcher, which ends them all."""


def leads() -> bool:
    """Whether this is the only process or the first one: the one that prints."""
    return int(os.environ.get("RANK", "0")) == 0


@dataclass(frozen=True)
class Workers:
    """The processes of a run. `state` is Accelerate's, None for a single process."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    state: Any = None

    @staticmethod
    def join(device: str) -> Workers:
        """Meet the other processes, if the launcher started several; each gets a device of its own."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return Workers(device=device)
        try:
            from accelerate import PartialState
        except ImportError:
            raise PruneError("a run of several processes needs accelerate; pip install 'sparsight[eval]'") from None
        state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
        own = str(state.device) if device != "cpu" else "cpu"
        return Workers(state.process_index, state.num_processes, own, state)

    def mine(self, number: int) -> bool:
        """Whether a chunk is this process's share."""
        return number % self.size == self.rank

    def share(self, value: Any) -> Any:
        """The first process's value, on all of them."""
        if self.state is None:
            return value
        box = [value]
        self.talk(lambda: torch.distributed.broadcast_object_list(box, src=0))
        return box[0]

    def bring(self, folder: Path, names: Iterable[str]) -> None:
        """Bring the named files of all processes to the first one, which may not see the other machines' disks."""
        if self.state is None:
            return
        seen = set(self.share([path.name for path in folder.iterdir()] if self.rank == 0 else None))
        own = {name: (folder / name).read_bytes() for name in names if name not in seen}
        boxes: list[Any] | None = [None] * self.size if self.rank == 0 else None
        self.talk(lambda: torch.distributed.gather_object(own, boxes, dst=0))
        for box in boxes or []:
            for name, content in box.items():
                write(folder / name, partial(put, content=content))

    def talk(self, call: Callable[[], None]) -> None:
        """A collective call; a PruneError if another process is gone."""
        try:
            call()
        except RuntimeError as error:
            raise PruneError(
                f"another process of this run has ended ({str(error).strip().splitlines()[0][:200]}); its own message says why. What is "
                "finished is kept: give the same command again"
            ) from error


def put(part: Path, content: bytes) -> None:
    part.write_bytes(content)
