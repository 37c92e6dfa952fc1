"""What `sparsight compare` prints: a progress bar with the time left, the table, and what was left out."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..evaluation.measure import Step
from ..runs.comparison import Comparison, Row


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


def print_results(done: Comparison, out: Path) -> None:
    """The table, skipped images and where the files are."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140
    console.print(table(done))
    for name, reason in done.skipped:
        console.print(f"skipped {name}: {reason}", style="yellow", markup=False, soft_wrap=True)
    if done.skipped:
        console.print(f"{len(done.skipped)} images could not be read and were skipped", style="yellow")
    for note in done.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    names = ", ".join(str(out / name) for name in ("report.html", "results.json", "results.csv"))
    console.print(f"wrote {names}", markup=False, soft_wrap=True)


def table(done: Comparison) -> Table:
    """All rows; the best of each budget in bold green."""
    sheet = Table(title=str(done), title_justify="left", box=None, pad_edge=False, header_style="dim")
    heads = [
        "recipe",
        *(["top-1 %", "change", "top-5 %"] if done.labelled else []),
        "agree %",
        "cosine",
        "GMACs",
        "img/s",
        "speed-up",
        "MB",
    ]
    for name in heads:
        sheet.add_column(name, justify="left" if name == "recipe" else "right", no_wrap=name != "recipe", overflow="fold")
    best = {name: done.best(name) for name in ("top1", "top5", "agreement", "cosine", "speedup")}
    group = done.rows[0].group
    for row in done.rows:
        if row.group != group:
            sheet.add_section()
            sheet.add_row()
        group = row.group
        sheet.add_row(*cells(row, done.labelled, best))
    return sheet


def cells(row: Row, labelled: bool, best: dict[str, set[str]]) -> list[str]:
    """The row as text."""

    def mark(text: str, measure: str) -> str:
        return f"[bold green]{text}[/]" if row.recipe in best[measure] else text

    found = [row.recipe]
    if labelled:
        move = (
            f"{100 * row.top1_change.value:+.1f} ({100 * row.top1_change.low:+.1f} to {100 * row.top1_change.high:+.1f})"
            if row.top1_change
            else ""
        )
        found += [mark(percent(row.top1), "top1"), move, mark(percent(row.top5), "top5")]
    found.append(mark(percent(row.agreement.value if row.agreement else None), "agreement"))
    found += [mark(f"{row.cosine:.3f}", "cosine"), f"{row.gmacs:.2f}", f"{row.images_per_second:.1f}"]
    speed = mark(f"{row.speedup.median:.2f}", "speedup")
    return [*found, f"{speed} ({row.speedup.low:.2f}-{row.speedup.high:.2f})", f"{row.peak_memory / 1e6:.0f}"]


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
