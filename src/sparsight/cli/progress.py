"""Progress of long runs on stderr: a bar with the time left on a terminal, lines elsewhere, and how to go on after an interruption."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ..runs.sweep import Step
from ..runs.workers import leads

QUIET = 10.0
"""Seconds between two lines about one and the same thing, where there is no terminal."""


class Watch:
    """Listens to a run, in the first process only. On a terminal it draws a bar; elsewhere it writes a line for each finished row and,
    where images are counted, one now and then."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.console = Console(stderr=True, highlight=False)
        self.plain = leads() and not self.console.is_terminal
        self.bar = Progress(
            TextColumn("{task.fields[count]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}% {task.fields[left]}"),
            TextColumn("{task.description}"),
            console=self.console,
            disable=not (self.console.is_terminal and leads()),
            transient=True,
        )
        self.task = self.bar.add_task("loading", total=None, count="", left="")
        self.last: Step | None = None
        self.finished = 0
        self.said, self.text = 0.0, ""
        self.start: float | None = None
        self.unit = ""

    def __call__(self, step: Step) -> None:
        self.last = step
        self.finished += step.row is not None
        if self.plain:
            self.say(step)
        if (self.start is None or step.unit != self.unit) and not step.restored:
            self.start, self.offset, self.unit = time.monotonic(), step.done, step.unit
        done = self.finished if step.unit == "rows" else int(step.done)
        count = f"{done}/{'?' if step.total is None else step.total} {step.unit}"
        self.bar.update(
            self.task, total=step.total, completed=step.done, description=step.text, count=count, left=self.time_left(step)
        )

    def say(self, step: Step) -> None:
        """A line about a finished row; about images at the beginning, at the end, and every ten seconds."""
        if step.row is not None:
            print(f"{self.finished}/{step.total} {step.row}{' (finished before)' * step.restored}", file=sys.stderr, flush=True)
            return
        now, total = time.monotonic(), step.total
        news = step.unit == "images" and (step.text != self.text or step.done == total)
        if not news and now - self.said < QUIET:
            return
        self.said, self.text = now, step.text
        if step.unit == "images":
            print(f"{step.text}: {step.done:.0f}{'' if total is None else f' of {total}'} images", file=sys.stderr, flush=True)
        elif total and step.done:
            left = self.time_left(step)
            print(f"{100 * step.done / total:.0f}% {step.text}{f', {left}' * bool(left)}", file=sys.stderr, flush=True)

    def time_left(self, step: Step) -> str:
        """Time for the rest at the pace of this run; what was finished before does not count."""
        if self.start is None or step.total is None or step.done - self.offset < 0.02 * step.total:
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
            print(f"stopped: {self.left()}", file=sys.stderr)
            sys.exit(143 if error.args else 130)

    def left(self) -> str:
        if self.last is None:
            return "nothing was measured yet"
        rows = f"{self.finished} of {self.last.total} rows are finished" if self.last.unit == "rows" else "what is finished is"
        return f"{rows} in {self.out}; give the same command again to go on from there"
