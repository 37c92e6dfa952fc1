"""tune_language(...), tune_questions(...) -> Tuning: the same search for vision-language models, judged by a function or by questions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ..data.fingerprint import digest
from ..data.questions import LocalSet, read_set
from ..errors import PruneError
from ..evaluation.asking import AnswerLog, Asker
from ..evaluation.vlm_sets import score_set
from ..load.vlms import Source, find_source, own_source
from ..prune import prune
from ..recipe import Recipe
from ..runs.intervals import METHOD
from ..runs.settings import PRECISIONS, Settings, check_settings, device_name, versions_in_use
from ..runs.store import ResultStore, fingerprint_model
from ..runs.sweep import Listener, Step, ignore
from ..speed.stages import count_macs, vision_language
from .finish import stacks
from .parts import LEAST_RUNG, RUNGS
from .result import Tuning
from .run import Order, check_trials, run, shared_folder
from .search import Cost, Reading
from .space import Space, Stack, language_space
from .targets import make_target
from .trials import need

Judge = Callable[[Any], Sequence[float]]
"""The model, pruned or not -> how right it is on each item, from 0 to 1; on the same items in the same order every time."""

SAMPLE = 2
"""Prompts on which multiply-accumulates are counted."""


@contextmanager
def pruned_by(model: nn.Module, stack: Stack) -> Iterator[list[Any]]:
    """The model under all recipes of a stack for a while; the handles."""
    with ExitStack() as at_work:
        yield [at_work.enter_context(prune(model, recipe)) for recipe in stack]


# ---- by a function ----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class JudgedExam:
    """Recipes judged by somebody's own function, in one go. count: the cost of the model as it is now."""

    model: nn.Module
    judge: Judge
    count: Callable[[Any], float]
    store: ResultStore
    items: int = 0
    whole: float = field(init=False)

    def __post_init__(self) -> None:
        self.whole = float(self.count(self.model))

    def cost(self, stack: Stack, tokens: Sequence[float] | None = None) -> Cost:
        with pruned_by(self.model, stack):
            found = float(self.count(self.model))
        return Cost(found, self.whole / found)

    def read(self, stack: Stack, step: Callable[[float], object]) -> Iterator[Reading]:
        yield Reading(self.measure(stack, "search", self.judge))

    def measure(self, stack: Stack, part: str, judge: Judge) -> list[float]:
        """Outcomes, from the store where they are there."""
        name = f"{part} {' + '.join(map(str, stack))}"
        found = self.store.find(name, lambda data: [float(value) for value in data["outcomes"]])
        if found is None:
            with pruned_by(self.model, stack):
                found = [float(value) for value in judge(self.model)]
            if not found or not all(0 <= value <= 1 for value in found):
                raise PruneError("the metric must give a number from 0 to 1 for each item, and for at least one")
            self.store.keep(name, {"outcomes": found})
        return found


def tune_language(
    model: nn.Module,
    metric: Judge,
    report: Judge,
    cost: Callable[[Any], float] | Any,
    out: str | Path = "runs/tune",
    *,
    space: Space | None = None,
    methods: Sequence[str] | None = None,
    recipes: Sequence[str | Recipe] = (),
    speedup: float | None = None,
    loss: float | None = None,
    trials: int = 60,
    storage: str | None = None,
    seed: int = 0,
    strict: bool = True,
    listen: Listener | None = None,
) -> Tuning:
    """Search recipes for a model by functions of one's own; the model is pruned while they are called.

    metric, report: model -> how right it is on each item, from 0 to 1; report has other items than metric, and its numbers are those
    that are shown. cost: what a processor gives for a prompt, on the model's device, whose multiply-accumulates are then counted; or a
    function of the model, in a unit of one's own. space: by default `language_space` of the model; `vision_space` does for vision
    models. The other arguments are those of `tune`. Give each metric a folder `out` of its own: finished trials are found again there.
    """
    need()
    order = Order(
        make_target(speedup, loss, None, "macs"), check_trials(trials), Path(out).expanduser(), storage, seed, strict, listen or ignore
    )  # fmt: skip
    with shared_folder(order.out):
        space = space or language_space(model, methods)
        given = stacks(recipes, space.check)
        weights = fingerprint_model(model)
        store = ResultStore(order.out / "rows", digest(weights, seed))
        count = cost if callable(cost) else partial(giga_macs, inputs=[cost])
        exam = JudgedExam(model, metric, count, store)
        order.listen(Step(0, trials, "the unpruned model", unit="trials"))
        base = exam.measure((), "search", metric)
        exam.items = len(base)
    like = next(model.parameters())

    def facts() -> dict[str, Any]:
        items = exam.measure((), "report", report)
        return {
            "model": type(model).__name__,
            "data": {"search": "items of the metric", "report": "items of the report"},
            "images": {"search": len(base), "report": len(items)},
            "fingerprints": {"model": weights},
            "metric": "right",
            "engine": "cost" if callable(cost) else "macs",
            "unit": "units" if callable(cost) else "GMACs",
            "precision": str(like.dtype).removeprefix("torch."),
            "batch_size": 1,
            **common(str(like.device), seed, model),
        }

    return run(
        order, space, exam, lambda stack: exam.measure(stack, "report", report), base, given, digest(weights, "function"), facts
    )  # fmt: skip


def common(device: str, seed: int, model: nn.Module) -> dict[str, Any]:
    """Facts that every result has."""
    return {
        "device": device_name(device),
        "seed": seed,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions_in_use(model) | {"optuna": str(need().__version__)},
        "interval_method": METHOD,
        "notes": [],
        "skipped": [],
    }


def giga_macs(model: nn.Module, inputs: Sequence[Any]) -> float:
    """Multiply-accumulates until the first token, encoder included, in thousands of millions: the mean over the prompts."""
    family = vision_language(model)
    found = []
    for given in inputs:
        macs = count_macs(model, family, None, dict(given))[0]
        found.append(macs.vision + macs.selection + macs.prefill)
    return sum(found) / len(found) / 1e9


# ---- by questions -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class QuestionExam:
    """Recipes on questions of one's own, piece by piece; answers are kept one by one. inputs: prompts on which cost is counted."""

    asker: Asker
    pieces: list[LocalSet]
    inputs: list[Any]
    store: ResultStore
    whole: float = field(init=False)

    def __post_init__(self) -> None:
        self.whole = giga_macs(self.asker.model, self.inputs)

    @property
    def items(self) -> int:
        return sum(len(piece.items) for piece in self.pieces)

    def cost(self, stack: Stack, tokens: Sequence[float] | None = None) -> Cost:
        with pruned_by(self.asker.model, stack):
            found = giga_macs(self.asker.model, self.inputs)
        return Cost(found, self.whole / found)

    def read(self, stack: Stack, step: Callable[[float], object]) -> Iterator[Reading]:
        outcomes: list[float] = []
        for piece in self.pieces:
            outcomes += self.measure(stack, piece)
            step(len(outcomes) / self.items)
            yield Reading(outcomes[:])

    def measure(self, stack: Stack, part: LocalSet) -> list[float]:
        """1 or 0 for each question; one that could not be asked counts as wrong, under every recipe alike."""
        name = f"{digest(part.fingerprint())} {' + '.join(map(str, stack))}"
        found = self.store.find(name, lambda data: [float(value) for value in data["outcomes"]])
        if found is None:
            log = AnswerLog(self.store.file(name, ".log"))
            with pruned_by(self.asker.model, stack) as handles:
                self.asker.handle = handles[-1] if handles else None
                answers = self.asker.ask(part.questions(), log)
            found = [hit or 0.0 for hit in score_set(part, answers)[1]]
            self.store.keep(name, {"outcomes": found})
            log.close()
        return found


def tune_questions(
    model: str | nn.Module,
    questions: str | Path,
    out: str | Path = "runs/tune",
    *,
    report: str | Path | None = None,
    processor: Any = None,
    limit: int | None = None,
    methods: Sequence[str] | None = None,
    recipes: Sequence[str | Recipe] = (),
    speedup: float | None = None,
    loss: float | None = None,
    trials: int = 60,
    storage: str | None = None,
    batch_size: int = 1,
    device: str = "auto",
    precision: str = "fp32",
    prompt: str | None = None,
    square: bool = False,
    seed: int = 0,
    strict: bool = True,
    listen: Listener | None = None,
) -> Tuning:
    """Search recipes for a vision-language model, judged by its answers to questions (FILE.jsonl, see `questions.read_set`).

    model, processor, batch_size, precision, prompt, square: see `evaluate_vlm`. report: another file to report on; by default the
    questions about one half of the pictures are searched, the others reported. Cost is multiply-accumulates until the first token on
    the first prompts. The other arguments are those of `tune`.
    """
    need()
    order = Order(
        make_target(speedup, loss, None, "macs"), check_trials(trials), Path(out).expanduser(), storage, seed, strict, listen or ignore
    )  # fmt: skip
    search, other = two_sets(questions, report, limit, seed)
    if isinstance(model, nn.Module):
        like = next(model.parameters())
        device, precision = str(like.device), next((name for name, kind in PRECISIONS.items() if kind == like.dtype), "fp32")
    settings = check_settings(Settings(batch_size, precision, device, seed, 0))
    source = own_source(model, processor) if isinstance(model, nn.Module) else find_source(model, None, None)
    space = language_space(source.shell, methods)
    given = stacks(recipes, space.check)
    with shared_folder(order.out):
        module = source.load(settings.device, PRECISIONS[settings.precision], 0)
        asker = Asker(module, source.processor, batch_size, prompt, square)
        weights = fingerprint_model(module)
        asked = digest(weights, settings.precision, settings.batch_size, prompt, square)
        store = ResultStore(order.out / "rows", asked)
        exam = QuestionExam(asker, cut(search), prompts(asker, search), store)
        order.listen(Step(0, trials, "the unpruned model", unit="trials"))
        base = [outcome for piece in exam.pieces for outcome in exam.measure((), piece)]
    prints = {"model": weights, "search": search.fingerprint(), "report": other.fingerprint()}

    def facts() -> dict[str, Any]:
        return {
            "model": source_name(source),
            "data": {"search": search.name, "report": other.name},
            "images": {"search": len(search.items), "report": len(other.items)},
            "fingerprints": prints,
            "metric": "right",
            "engine": "macs",
            "unit": "GMACs",
            "precision": settings.precision,
            "batch_size": settings.batch_size,
            **common(settings.device, seed, module),
        }

    return run(
        order, space, exam, lambda stack: exam.measure(stack, other), base, given, digest(asked, prints["search"]), facts
    )  # fmt: skip


def source_name(source: Source) -> str:
    return Path(source.name).name if source.path else source.name


def two_sets(questions: str | Path, report: str | Path | None, limit: int | None, seed: int) -> tuple[LocalSet, LocalSet]:
    """The questions to search on and those to report on, which are about other pictures. Raises PruneError where there is one picture."""
    if limit is not None and limit < 1:
        raise PruneError(f"limit={limit} leaves no question; give 1 or more, or leave it out")
    whole = shuffled(read_set(questions, limit), seed)
    if report is not None:
        other = read_set(report, limit)
        if other.fingerprint() == read_set(questions, limit).fingerprint():
            raise PruneError(f"the questions of {other.path} would be searched and reported; give others, or leave report out")
        return whole, other
    pictures = list(dict.fromkeys(item.images for item in whole.items))
    if len(pictures) < 2:
        raise PruneError(f"{whole.path} asks about one picture; tune needs some to search on and others to report on")
    first = set(pictures[::2])
    mine, others = ([item for item in whole.items if (item.images in first) is side] for side in (True, False))
    return replace(whole, name=f"{whole.name} (half)", items=mine), replace(whole, name=f"{whole.name} (other half)", items=others)


def shuffled(whole: LocalSet, seed: int) -> LocalSet:
    items = list(whole.items)
    random.Random(seed).shuffle(items)
    return replace(whole, items=items)


def cut(whole: LocalSet) -> list[LocalSet]:
    """The set in pieces, at whose ends a trial may be stopped."""
    total = len(whole.items)
    ends = sorted({total, *(round(share * total) for share in RUNGS if round(share * total) >= LEAST_RUNG)})
    return [replace(whole, items=whole.items[start:end]) for start, end in zip([0, *ends], ends)]


def prompts(asker: Asker, questions: LocalSet) -> list[Any]:
    """What the processor gives for the first questions whose pictures can be read."""
    like = next(asker.model.parameters())
    found = []
    for question in questions.questions():
        try:
            pictures = [asker.prepared(picture) for picture in question.pictures()]
        except (OSError, ValueError):
            continue
        text = asker.written(question.text, len(pictures))
        call = asker.processor(text=[text], images=[pictures], return_tensors="pt").to(like.device)
        found.append({name: value.to(like.dtype) if value.is_floating_point() else value for name, value in call.items()})
        if len(found) == SAMPLE:
            break
    if not found:
        raise PruneError(f"none of the pictures of {questions.path} can be read")
    return found
