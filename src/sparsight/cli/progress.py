"""Progress of long runs on stderr: a bar with the time left on a terminal, lines elsewhere, and how to go on after Ctrl-C."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..evaluation.measure import Step


class Watch:
    """Listens to a comparison. On a terminal it draws a bar; elsewhere it writes one line for each finished row."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.console = Console(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("{task.fields[rows]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}% {task.fields[left]}"),
            TextColumn("{task.description}"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("loading", total=None, rows="", left="")
        self.finished = self.restored = self.total = 0
        self.start: float | None = None

    def __call__(self, step: Step) -> None:
        self.total = step.total
        if step.row is not None:
            self.finished += 1
            self.restored += step.restored
            if not self.console.is_terminal:
                found = " (finished before)" if step.restored else ""
                print(f"{self.finished}/{step.total} {step.row}{found}", file=sys.stderr, flush=True)
        if self.start is None and not step.restored:
            self.start, self.offset = time.monotonic(), step.done
        self.bar.update(
            self.task,
            total=step.total,
            completed=step.done,
            description=step.text,
            rows=f"{self.finished}/{step.total} rows",
            left=self.time_left(step),
        )

    def time_left(self, step: Step) -> str:
        """Time for the rest at the pace of this run; rows that were finished before do not count."""
        if self.start is None or step.done - self.offset < 0.3:
            return ""
        seconds = (time.monotonic() - self.start) / (step.done - self.offset) * (step.total - step.done)
        minutes, seconds = divmod(int(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"

    def __enter__(self) -> Watch:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()
        if isinstance(error, KeyboardInterrupt):
            rows = f"{self.finished} of {self.total} rows are finished in {self.out}" if self.total else "nothing was measured yet"
            print(f"stopped: {rows}; give the same command again to go on from there", file=sys.stderr)
            sys.exit(130)


class Count:
    """Listens to a run over images: a bar on a terminal, of the first process only."""

    def __init__(self, out: Path, resumes: bool = True) -> None:
        from ..runs.workers import leads

        self.out, self.resumes = out, resumes
        console = Console(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f} images"),
            TimeRemainingColumn(),
            console=console,
            disable=not (console.is_terminal and leads()),
            transient=True,
        )
        self.task = self.bar.add_task("loading", total=None)

    def __call__(self, done: int, total: int | None, text: str) -> None:
        self.bar.update(self.task, completed=done, total=total, description=text)

    def __enter__(self) -> Count:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()
        if isinstance(error, KeyboardInterrupt):
            rest = f"what is finished is in {self.out}; give the same command again to go on from there"
            print(f"stopped: {rest if self.resumes else 'nothing was written'}", file=sys.stderr)
            sys.exit(130)
