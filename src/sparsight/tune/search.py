"""The loop of a search: draw recipes, measure each on more and more items, stop the ones that others beat, until enough are finished."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from ..errors import PruneError, shown
from ..recipe import Recipe
from ..runs.intervals import Interval, paired, paired_means
from ..runs.sweep import Listener, Step, ignore
from .parts import LEAST_RUNG
from .space import Space, Stack
from .targets import Target
from .trials import INVALID, STOPPED, WHY, Trials

WAIT = 0.5
"""Seconds between two looks at what other workers are doing."""
FAULTS = 5
"""Trials that may break off in a row before the search does."""
FUTILE = 100
"""Draws in a row that come to nothing before the space counts as searched."""


@dataclass(frozen=True)
class Cost:
    """cost: in the unit of the engine (GMACs, ms). speedup: against the unpruned model in the same engine."""

    cost: float
    speedup: float


@dataclass(frozen=True)
class Reading:
    """What is known of a recipe after some items. outcomes: for each 1 (right) to 0; tokens: mean number left after each site."""

    outcomes: list[float]
    tokens: list[float] = field(default_factory=list)


class Exam(Protocol):
    """How recipes are measured. items: how many there are in all."""

    @property
    def items(self) -> int: ...

    def cost(self, stack: Stack, tokens: Sequence[float] | None = None) -> Cost | None:
        """What it costs; None where that has to wait for the number of tokens in real images. Raises PruneError if it cannot run."""
        ...

    def read(self, stack: Stack, step: Callable[[float], object]) -> Iterator[Reading]:
        """What is known after more and more items; the last reading is of all of them. step hears which part is done."""
        ...


@dataclass(frozen=True)
class Found:
    """A trial that has ended. quality and change (of the unpruned model's) are fractions, over `items`; `stopped` says by what it was
    beaten before its end, "" for one that was measured to the end."""

    trial: int
    recipes: list[str]
    definitions: list[dict[str, Any]]
    quality: float
    change: float
    cost: float
    speedup: float
    tokens: list[float]
    items: int
    stopped: str = ""
    outcomes: list[float] = field(default_factory=list, repr=False, compare=False)

    @property
    def name(self) -> str:
        return " + ".join(self.recipes)

    def __str__(self) -> str:
        end = f", stopped after {self.items}: {self.stopped}" if self.stopped else ""
        return f"{self.name}: {100 * self.quality:.1f}% ({100 * self.change:+.1f}), speed-up {self.speedup:.2f}{end}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the single outcomes."""
        return {name: value for name, value in asdict(self).items() if name != "outcomes"}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Found:
        """Read what `to_dict` made."""
        return Found(**data)


def definitions(stack: Stack) -> list[dict[str, Any]]:
    """The recipes in their JSON form."""
    return [json.loads(recipe.to_json()) for recipe in stack]


def recipes_of(found: Sequence[dict[str, Any]]) -> Stack:
    """The recipes of their JSON forms."""
    return tuple(Recipe.from_json(json.dumps(one)) for one in found)


def difference(after: Sequence[float], before: Sequence[float]) -> Interval:
    """Paired difference of two means over the same items, with its 95% interval."""
    if all(value in (0, 1) for value in (*after, *before)):
        return paired([int(a) for a in after], [int(b) for b in before])
    return paired_means(after, before)


def mean(outcomes: Sequence[float]) -> float:
    return sum(outcomes) / len(outcomes)


@dataclass(eq=False)
class Search:
    """One worker's search. base: outcomes of the unpruned model. wanted: trials that have to be finished, by all workers together."""

    space: Space
    exam: Exam
    trials: Trials
    target: Target
    wanted: int
    base: list[float]
    listen: Listener = ignore
    notes: list[str] = field(default_factory=list)
    done: int = 0
    futile: int = 0

    def run(self) -> list[Found]:
        """All finished trials, those of other workers too. Goes on from what is there, and waits for what others are working on."""
        self.trials.begin(self.space.seeds())
        for number, found in enumerate(self.found(), 1):
            self.listen(Step(number, self.wanted, found.name, found, restored=True, unit="trials"))
        faults = 0
        while self.futile < FUTILE:
            trial = self.trials.ask(self.wanted)
            self.done = len(self.trials.finished())
            if trial is None:
                if self.done >= self.wanted and not self.trials.running():
                    break
                self.tell(0, "waiting for other workers")
                time.sleep(WAIT)
                continue
            faults = 0 if self.attempt(trial) else faults + 1
            if faults == FAULTS:
                raise PruneError(f"{FAULTS} trials in a row broke off; the last: {self.notes[-1]}")
        else:
            self.notes.append(f"the space holds hardly any other recipes: {FUTILE} draws in a row were known or impossible ones")
        self.notes += [f"trial {t.number} was given up: {t.user_attrs.get(WHY, 'its worker died')}" for t in self.trials.broken()]
        return self.found()

    def tell(self, part: float, text: str, row: object | None = None) -> None:
        self.listen(Step(self.done + part, self.wanted, text, row, unit="trials"))

    def attempt(self, trial: Any) -> bool:
        """Work on a trial; False if it broke off. Whatever stops this worker leaves the trial to be done again."""
        try:
            with self.trials.beating(trial):
                self.work(trial)
        except PruneError as error:
            if isinstance(error.__cause__ or error.__context__, OSError):  # a full disk, not a recipe's fault
                raise
            why = shown(str(error), 300)
            self.notes.append(f"trial {trial.number}: {why}")
            self.trials.tell(trial, None, {INVALID: why})
            return False
        except KeyboardInterrupt:
            self.trials.fail(trial, "was stopped")
            raise
        except Exception as error:  # whatever a recipe meets in a model: another recipe may do better
            why = f"{type(error).__name__}: {shown(str(error), 200)}"
            self.notes.append(f"trial {trial.number} broke off with {why}")
            self.trials.fail(trial, why)
            return False
        return True

    def work(self, trial: Any) -> None:
        """Draw, look whether it can be and is new, measure, tell."""
        try:
            stack = self.space.suggest(trial)
            self.refuse_known(trial, stack)
            cost = self.exam.cost(stack)
        except PruneError as error:
            self.futile += 1
            self.trials.tell(trial, None, {INVALID: shown(str(error), 300)})
            return
        self.futile = 0
        name = " + ".join(map(str, stack))
        self.tell(0, name)
        for reading in self.exam.read(stack, lambda part: self.tell(part, name)):
            price = cost or self.exam.cost(stack, reading.tokens)
            assert price is not None
            facts = self.facts(stack, reading, price)
            if len(reading.outcomes) < len(self.base) and (better := self.beaten(reading, price)):
                self.trials.tell(trial, None, {**facts, STOPPED: f"trial {better.trial} is better and costs no more"})
                break
        else:
            self.trials.constrain(trial, self.target.cost_gap(as_found(trial.number, facts)))
            self.trials.tell(trial, (facts["quality"], facts["cost"]), facts)
        self.tell(1, name, as_found(trial.number, {**facts, **dict(trial.user_attrs)}))

    def refuse_known(self, trial: Any, stack: Stack) -> None:
        """Raise PruneError for a stack that another trial has measured or is measuring; else say that this one is."""
        recipes = [str(recipe) for recipe in stack]
        with self.trials.guard:
            for other in self.trials.all():
                at_work = self.trials.counts(other) or other.state == self.trials.states.RUNNING
                if other.number != trial.number and at_work and other.user_attrs.get("recipes") == recipes:
                    raise PruneError(f"the same as trial {other.number}")
            trial.set_user_attr("recipes", recipes)

    def facts(self, stack: Stack, reading: Reading, cost: Cost) -> dict[str, Any]:
        """What a trial keeps in the storage."""
        seen = len(reading.outcomes)
        quality = mean(reading.outcomes)
        return {
            "recipes": [str(recipe) for recipe in stack],
            "definitions": definitions(stack),
            "quality": quality,
            "change": quality - mean(self.base[:seen]),
            "cost": cost.cost,
            "speedup": cost.speedup,
            "tokens": [round(count, 2) for count in reading.tokens],
            "items": seen,
            "outcomes": packed(reading.outcomes),
        }

    def beaten(self, reading: Reading, cost: Cost) -> Found | None:
        """A trial that costs no more and is better on the same items, beyond chance."""
        seen = len(reading.outcomes)
        if seen < LEAST_RUNG:
            return None
        rivals = (one for one in self.found() if not one.stopped and one.cost <= cost.cost)
        return next((one for one in rivals if difference(reading.outcomes, one.outcomes[:seen]).high < 0), None)

    def found(self) -> list[Found]:
        """The finished trials."""
        return [as_found(trial.number, trial.user_attrs) for trial in self.trials.finished()]


def as_found(number: int, facts: dict[str, Any]) -> Found:
    """A trial's facts as an object."""
    names = ("recipes", "definitions", "quality", "change", "cost", "speedup", "tokens", "items")
    return Found(
        number, **{name: facts[name] for name in names}, stopped=facts.get(STOPPED, ""), outcomes=unpacked(facts["outcomes"])
    )


def packed(outcomes: Sequence[float]) -> str | list[float]:
    """Outcomes as a storage keeps them: of right and wrong ones a digit each."""
    if all(value in (0, 1) for value in outcomes):
        return "".join(str(int(value)) for value in outcomes)
    return [round(value, 6) for value in outcomes]


def unpacked(kept: str | list[float]) -> list[float]:
    """The inverse of `packed`."""
    return [float(value) for value in kept]
