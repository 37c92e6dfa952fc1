"""Trials that several processes and machines share: Optuna's storage, who works on what, and what a killed worker left is done again."""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from ..data.fingerprint import digest
from ..errors import PruneError, shown
from ..runs.store import FULL

JOURNAL = "trials.log"
LOCKS = "locks"
"""Folder of what workers hold: a file each while they live, and those of the study, the journal and the report."""
MOST_TRIES = 3
"""Times that a trial is begun before it is given up."""
BEAT, PATIENCE = 30, 180
"""Seconds between two signs of life of a worker in a data base, and after which it counts as dead."""
WARM = 12
"""Trials that are drawn blindly before the sampler learns from them."""

OWNER, RETRY, TRIES, WHY, STOPPED, INVALID = "worker", "retry of", "tries", "why", "stopped", "cannot be"
"""Names under which a trial knows who works on it, which one it repeats and how often, and why it ended before its end."""


def need() -> Any:
    """Optuna, without its chatter; a PruneError that names the extra to install where it is missing."""
    try:
        import optuna
    except ImportError:
        raise PruneError("tune needs optuna; pip install 'sparsight[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def open_storage(storage: str | None, out: Path) -> Any:
    """The storage of that URL, or the journal in the folder. Raises PruneError if it cannot be opened."""
    optuna = need()
    if storage is None:
        path = out / JOURNAL
        # a lock of the system, which a killed process cannot keep
        (out / LOCKS).mkdir(exist_ok=True)
        lock: Any = FileLock(out / LOCKS / f"{JOURNAL}.lock")
        with lock:
            mend(path)
        backend = optuna.storages.journal.JournalFileBackend(str(path), lock_obj=lock)
        return optuna.storages.JournalStorage(backend)
    if "://" not in storage:
        raise PruneError(f"storage={shown(storage)} is no URL; give one such as sqlite:///trials.db, or leave it out")
    try:
        with quiet():
            return optuna.storages.RDBStorage(storage, heartbeat_interval=BEAT, grace_period=PATIENCE)
    except Exception as error:  # whatever SQLAlchemy, its driver or the network meets
        known = re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", storage)  # without its password
        raise PruneError(f"storage={shown(known)} cannot be opened: {shown(str(error).splitlines()[0], 200)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's warnings that signs of life are experimental and meant for a loop of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", need().exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage")
        yield


def mend(path: Path) -> None:
    """Cut off a last line of the journal that a full disk has left without its end."""
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        os.truncate(path, text.rfind(b"\n") + 1)


@contextmanager
def room(out: Path) -> Iterator[None]:
    """Raise PruneError where the disk is full, instead of what Optuna meets."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise PruneError(
            f"no room for trials in {out} ({os.strerror(error.errno or errno.ENOSPC)}); what is finished there is kept: make room and give "
            "the same command again"
        ) from error


@dataclass(eq=False)
class Trials:
    """The trials of one study, as one worker sees them. key: what the study depends on. seed: of what trials draw."""

    storage: Any
    key: str
    out: Path
    seed: int
    directions: tuple[str, str] = ("maximize", "minimize")
    name: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}")

    def __post_init__(self) -> None:
        optuna = need()
        self.states = optuna.trial.TrialState
        (self.out / LOCKS).mkdir(parents=True, exist_ok=True)
        self.alive = FileLock(self.mark(self.name))
        self.alive.acquire()
        self.guard = FileLock(self.out / LOCKS / "study.lock")
        with self.guard:
            self.study = optuna.create_study(
                storage=self.storage, study_name=f"sparsight-{self.key}", directions=list(self.directions), sampler=self.sampler(0),
                load_if_exists=True,
            )  # fmt: skip

    def close(self) -> None:
        """This worker works no more."""
        self.alive.release()
        Path(self.mark(self.name)).unlink(missing_ok=True)

    def mark(self, worker: str) -> str:
        """The file that a worker holds while it lives."""
        return str(self.out / LOCKS / f"worker-{worker}.lock")

    # ---- what there is ------------------------------------------------------------------------------------------------

    def all(self) -> list[Any]:
        return self.study.get_trials(deepcopy=False)  # type: ignore[no-any-return]

    def finished(self) -> list[Any]:
        """Trials that count: measured to the end, or stopped because others are better."""
        return [trial for trial in self.all() if self.counts(trial)]

    def counts(self, trial: Any) -> bool:
        return trial.state == self.states.COMPLETE or (trial.state == self.states.PRUNED and STOPPED in trial.user_attrs)

    def running(self) -> list[Any]:
        return [trial for trial in self.all() if trial.state == self.states.RUNNING]

    # ---- begin --------------------------------------------------------------------------------------------------------

    def begin(self, seeds: list[dict[str, str]]) -> None:
        """Let the search start with these draws, whichever worker comes first; in an order of the seed's."""
        seeds = Random(self.seed).sample(seeds, len(seeds))
        with self.guard, room(self.out):
            if not self.all():
                for seed in seeds:
                    self.study.enqueue_trial(seed)

    def ask(self, wanted: int) -> Any | None:
        """A trial to work on; None if so many are finished or under way."""
        with self.guard, room(self.out), quiet():
            self.revive()
            if len(self.finished()) + len(self.running()) >= wanted:
                return None
            trial = self.study.ask()
            trial.set_user_attr(OWNER, self.name)
        self.study.sampler = self.sampler(trial.number)
        return trial

    def sampler(self, number: int) -> Any:
        """The sampler of one trial: its draws depend on the seed, the number and the trials before, and not on who draws."""
        seed = int(digest("trial", self.seed, number), 16) % 2**32
        return need().samplers.TPESampler(seed=seed, multivariate=False, n_startup_trials=WARM, constant_liar=True)

    @contextmanager
    def beating(self, trial: Any) -> Iterator[None]:
        """Signs of life while a trial runs, for workers that share a data base and no folder."""
        record = getattr(self.storage, "record_heartbeat", None)
        if record is None:
            yield
            return
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT):
                record(trial._trial_id)

        record(trial._trial_id)
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    # ---- end ----------------------------------------------------------------------------------------------------------

    def tell(self, trial: Any, values: tuple[float, float] | None, facts: Mapping[str, Any]) -> None:
        """Finish a trial: with its values, or (None) stopped or impossible, as the facts say."""
        with room(self.out):
            for name, value in facts.items():
                trial.set_user_attr(name, value)
            if values is None:
                self.study.tell(trial, state=self.states.PRUNED)
            else:
                self.study.tell(trial, list(values))

    def fail(self, trial: Any, why: str) -> None:
        """A trial that broke off: it is done again."""
        with room(self.out):
            trial.set_user_attr(WHY, why)
            self.study.tell(trial, state=self.states.FAIL)

    def revive(self) -> None:
        """Let trials of dead workers fail, and line up what failed once more. Call it under the guard."""
        optuna = need()
        if hasattr(self.storage, "record_heartbeat"):
            optuna.storages.fail_stale_trials(self.study)
        for trial in self.running():
            if not self.lives(trial.user_attrs.get(OWNER)):
                self.study.tell(trial.number, state=self.states.FAIL, skip_if_finished=True)
        trials = self.all()
        done = {trial.user_attrs.get(RETRY) for trial in trials}
        for trial in trials:
            tries = trial.user_attrs.get(TRIES, 1)
            if trial.state == self.states.FAIL and trial.number not in done and tries < MOST_TRIES:
                self.study.enqueue_trial(trial.params, user_attrs={RETRY: trial.number, TRIES: tries + 1})

    def lives(self, worker: str | None) -> bool:
        """Whether a worker is at work. One whose mark is not in this folder is on another machine, and its data base knows."""
        if worker == self.name:
            return True
        if worker is None or not os.path.exists(self.mark(worker)):
            return worker is not None and hasattr(self.storage, "record_heartbeat")
        probe = FileLock(self.mark(worker))
        try:
            probe.acquire(timeout=0)
        except Timeout:
            return True
        probe.release()
        Path(self.mark(worker)).unlink(missing_ok=True)
        return False

    def broken(self) -> list[Any]:
        """Trials that failed as often as they may."""
        return [t for t in self.all() if t.state == self.states.FAIL and t.user_attrs.get(TRIES, 1) >= MOST_TRIES]

    def constrain(self, trial: Any, gap: float) -> None:
        """Tell the sampler how far the trial's cost is from the target (above 0: too dear), so that it draws nearer to it."""
        trial.set_constraint("cost", gap)
