"""The log of a run: one JSON object a line, TensorBoard on request; after a resume it is that of an undisturbed run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PruneError
from ..runs.store import room_for, write_text
from .result import LogLine

LOG = "log.jsonl"


@dataclass(eq=False)
class Log:
    """Lines in OUT/log.jsonl. board: TensorBoard's writer, None without. writes: whether this process does."""

    file: Path
    board: Any = None
    writes: bool = True
    lines: list[LogLine] = field(default_factory=list)

    @staticmethod
    def open(out: Path, step: int, tensorboard: bool, writes: bool) -> Log:
        """Go on with the log of a run at a step: what was written after it is taken out."""
        log = Log(out / LOG, None, writes)
        if not writes:
            return log
        log.lines = [line for line in read_log(log.file) if line.step <= step]
        write_text(log.file, "".join(map(as_text, log.lines)))
        if tensorboard:
            log.board = summary_writer()(str(out / "tensorboard"), purge_step=step + 1)
        return log

    def add(self, line: LogLine) -> None:
        """Append a line. Raises PruneError if the disk is full."""
        self.lines.append(line)
        if not self.writes:
            return
        with room_for(self.file), self.file.open("a", encoding="utf-8") as file:
            file.write(as_text(line))
        if self.board is not None:
            values = {"loss": line.loss, "learning rate": line.lr, **{f"loss/{name}": value for name, value in line.parts.items()}}
            values |= {f"tokens/site {site}": count for site, count in enumerate(line.tokens)}
            for name, value in {**values, **({} if line.top1 is None else {"top-1": line.top1})}.items():
                self.board.add_scalar(name, value, line.step)
            self.board.flush()

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def as_text(line: LogLine) -> str:
    return json.dumps(asdict(line)) + "\n"


def read_log(file: Path) -> list[LogLine]:
    """The whole lines of a log; a killed run may have left half of one."""
    found = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            found.append(LogLine(**json.loads(text)))
        except (ValueError, TypeError):
            break
    return found


def summary_writer() -> Any:
    """TensorBoard's writer; a PruneError that names the extra to install where it is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise PruneError("--tensorboard needs tensorboard; pip install 'sparsight[train]'") from None
    return SummaryWriter
