"""One search from its checked parts to its files: what the kinds of models share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..data.fingerprint import digest
from ..errors import PruneError
from ..runs.store import claim, release
from ..runs.sweep import Listener
from .finish import Report, finish
from .result import Tuning
from .search import Exam, Search
from .space import Space, Stack
from .targets import Target
from .trials import LOCKS, Trials, open_storage


@dataclass(frozen=True)
class Order:
    """How a search runs. trials: that have to be finished; storage: URL of Optuna's, None for the journal in `out`."""

    target: Target
    trials: int
    out: Path
    storage: str | None
    seed: int
    strict: bool
    listen: Listener


def check_trials(trials: int) -> int:
    if trials < 1:
        raise PruneError(f"trials={trials} finds nothing; give 1 or more")
    return trials


@contextmanager
def shared_folder(out: Path) -> Iterator[None]:
    """Make OUT, which other workers may be using; take it back if a fault shows before anything is kept there."""
    made = claim(out, shared=True)
    try:
        yield
    except PruneError:
        release(made)
        raise


def run(
    order: Order,
    space: Space,
    exam: Exam,
    report: Report,
    base: list[float],
    given: Sequence[Stack],
    key: str,
    facts: Callable[[], dict[str, Any]],
) -> Tuning:
    """Search, measure the front on the report's items, write the files. base: outcomes of the unpruned model; given: recipes of one's
    own; key: what trials depend on beside the space; facts: what the result says beside its rows. Raises PruneError if no recipe meets
    the target, with the nearest, after everything is written (unless the order is not strict)."""
    shared = Trials(open_storage(order.storage, order.out), digest(key, str(space)), order.out, order.seed)
    try:
        search = Search(space, exam, shared, order.target, order.trials, base, order.listen)
        found = search.run()
        rows = finish(found, order.target, exam, report, given, base, shared.name, order.listen)
        known = facts()
        known["notes"] = [*known["notes"], *search.notes]
        done = Tuning(
            target=str(order.target), met=rows.met, space=str(space), rows=rows.rows, given=rows.given, contests=rows.contests,
            trials=found, **known,
        )  # fmt: skip
        with FileLock(order.out / LOCKS / "report.lock"):
            done.save(order.out)
    finally:
        shared.close()
    if order.strict and not done.met:
        raise PruneError(f"{done.verdict}; all of it is in {order.out}")
    return done
