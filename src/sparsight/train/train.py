"""train(...) -> Training: fine-tune a pruned model on labelled images; plan_training(...) -> TrainPlan: what that would do."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.reading import Source, Transform, mark
from ..data.sources import open_source
from ..errors import PruneError, shown
from ..handle import handles, unprune
from ..load.answers import Reader, classifier
from ..load.checkpoint import one_line
from ..load.models import Loaded, data_folder, open_model
from ..pages.training_page import training_page
from ..prune import Handle, prune, resolve
from ..recipe import Recipe
from ..registry import make
from ..runs.intervals import Interval, paired, share
from ..runs.settings import device_name, versions_in_use
from ..runs.store import UNPRUNED, claim, fingerprint_model, release, write_text
from ..runs.sweep import Listener, Step, ignore
from ..saving.forms import Form, form_of
from ..speed.macs import macs, mean_counts, skeleton
from .checkpoint import CHECKPOINTS, Checkpoints, first_does
from .curves import draw_loss
from .examples import Examples, Order, check_labels, own_random, seed_all, training_transform
from .judge import Hits, hits
from .learner import Learner, Teacher
from .log import summary_writer
from .loop import Loop, Pace
from .memory import estimate
from .optimise import is_sharded, make_optimiser
from .presets import find_preset
from .result import Training, TrainPlan
from .saving import try_saving, write_trained
from .settings import TrainSettings, changed
from .shrink import Shrink, check_shrink

DEVICES = ("auto", "cpu", "cuda")
RESULTS, PAGE, CURVE, BEFORE, LOCK = "results.json", "report.html", "loss.png", "before.json", "run.lock"
Model = str | Loaded | nn.Module
"""What is trained: a name that `load` takes, what it returned, or a timm model. It is copied."""


def train(
    model: Model = "demo",
    data: str | Path | None = None,
    recipe: str | Recipe | None = None,
    out: str | Path = "runs/train",
    *,
    preset: str = "plain",
    test: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    teacher: Model | None = None,
    transform: Transform | None = None,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    workers: int = 0,
    save_every: int = 0,
    log_every: int = 10,
    eval_every: int = 1,
    tensorboard: bool = False,
    listen: Listener | None = None,
    **changes: Any,
) -> Training:
    """Fine-tune a model while it is pruned; `sparsight.load(out)` gives it back, pruned as it was trained.

    model, transform, classes: see `open_model`; the model is copied. data, split, limit: training images, see `open_source`; test: images to
    report top-1 on, before, in between and after. recipe: "unpruned" for a baseline; by default that of the preset, or of a model that was
    trained before. preset: plain, evit or renyi; every setting of `TrainSettings` is a keyword. teacher: of distillation, by default the
    model itself, unpruned, as it is at the beginning. save_every, log_every: steps (0: an epoch); eval_every: epochs.
    Called again with the same arguments after an interruption it goes on, and on the CPU ends with the same weights to the bit. Several
    processes: accelerate launch. Raises PruneError.
    """
    pace = Pace(save_every, log_every, eval_every, workers)
    asked = Asked(
        model, data, recipe, Path(out).expanduser(), preset, test, split, limit, teacher, transform, classes, device, tensorboard
    )
    with own_random(), opened(asked, pace, changes) as job:
        return job.run(listen or ignore)


def plan_training(
    model: Model = "demo",
    data: str | Path | None = None,
    recipe: str | Recipe | None = None,
    out: str | Path = "runs/train",
    *,
    preset: str = "plain",
    test: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    teacher: Model | None = None,
    transform: Transform | None = None,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    **changes: Any,
) -> TrainPlan:
    """What `train` would do with these arguments: steps, tokens, multiply-accumulates, memory. Nothing is written."""
    asked = Asked(model, data, recipe, Path(out).expanduser(), preset, test, split, limit, teacher, transform, classes, device)
    with own_random(), opened(asked, Pace(), changes, dry=True) as job:
        return job.plan()


@dataclass(frozen=True, eq=False)
class Asked:
    """The arguments of `train` that are no settings."""

    model: Model
    data: str | Path | None
    recipe: str | Recipe | None
    out: Path
    preset: str
    test: str | Path | None
    split: str | None
    limit: int | None
    teacher: Model | None
    transform: Transform | None
    classes: Sequence[str] | None
    device: str
    tensorboard: bool = False


@dataclass(frozen=True, eq=False)
class Job:
    """A training whose parts have all been checked. loaded: the model, pruned by the recipe; like: the same unpruned, as it began."""

    asked: Asked
    settings: TrainSettings
    pace: Pace
    accelerator: Any
    loaded: Loaded
    like: nn.Module
    recipe: Recipe | None
    handle: Handle | None
    form: Form
    source: Source
    test: Source | None
    order: Order
    teacher: Teacher | None
    notes: list[str]

    # ---- what it is ---------------------------------------------------------------------------------------------------

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the outcome depends on, as far as it can be told: a checkpoint of anything else is refused."""
        teacher = None if self.teacher is None or self.asked.teacher is None else fingerprint_model(self.teacher.model)
        return {
            "recipe": self.name,
            "settings": self.settings.to_dict(),
            "model": self.loaded.name if isinstance(self.asked.model, str) else type(self.like).__name__,
            "weights": fingerprint_model(self.like),
            "teacher": teacher,
            "data": f"{self.source.title} {mark(self.source)}",
            "test": "" if self.test is None else f"{self.test.title} {mark(self.test)}",
        }

    @property
    def name(self) -> str:
        return UNPRUNED if self.recipe is None else str(self.recipe)

    @property
    def total(self) -> int:
        return self.settings.epochs * self.order.steps

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.asked.out / CHECKPOINTS, self.facts)

    def cost(self) -> tuple[int, int]:
        """Multiply-accumulates of an image, pruned and unpruned."""
        size = self.loaded.image_size
        whole = macs(self.like, None, size)
        if self.recipe is None or self.recipe.adaptive:
            return whole, whole
        return macs(self.like, replace(self.recipe, file=""), size), whole

    def counts(self) -> list[int]:
        """Tokens after each site in evaluation; nothing where every image finds its own."""
        if self.recipe is None or self.recipe.adaptive:
            return []
        shell = skeleton(self.like, self.loaded.image_size)
        handle = prune(shell, self.recipe, weights="random" if self.recipe.weights else None)
        with torch.no_grad():
            shell(torch.zeros(1, 3, *self.loaded.image_size, device="meta"))
        return mean_counts(handle.counts)

    def plan(self) -> TrainPlan:
        """What would be done."""
        settings, order = self.settings, self.order
        pruned, whole = self.cost()
        parameters = [
            *self.loaded.model.parameters(),
            *((self.handle.learned or nn.ModuleList()).parameters() if self.handle else ()),
        ]
        own = sum(p.numel() for p in parameters)
        learned = own - sum(p.numel() for p in self.loaded.model.parameters())
        memory = estimate(
            self.like, self.recipe, self.loaded.image_size, order.micro, teacher=self.teacher is not None, average=settings.ema > 0,
            half=settings.precision != "fp32", checkpointing=settings.checkpointing, training=settings.mode == "train",
        )  # fmt: skip
        test = "" if self.test is None else f"{self.test.total} ({self.test.title})"
        return TrainPlan(
            model=self.loaded.name, recipe=self.name, preset=self.asked.preset, data=self.source.title, images=order.count,
            classes=len(self.loaded.classes or self.source.classes or ()), test=test, epochs=settings.epochs, steps=self.total, batch_size=settings.batch_size,
            processes=order.world, accumulated=order.accumulated, micro=order.micro, rate=settings.rate,
            counts=self.counts(), macs=pruned, unpruned_macs=whole, memory=memory, parameters=own,
            trained=learned if settings.frozen else own, resumes=max(self.checkpoints.steps(), default=0), notes=self.notes,
        )  # fmt: skip

    # ---- doing it -----------------------------------------------------------------------------------------------------

    def run(self, listen: Listener) -> Training:
        """Train, ask, write. A run that is finished is read."""
        facts = self.facts
        known = self.finished(facts)
        if known is not None:
            return known
        checkpoints = Checkpoints(self.asked.out / CHECKPOINTS, facts)
        first_does(self.accelerator, checkpoints.clear)
        seconds = time.monotonic()
        learner = Learner(self.loaded.model, self.handle, tokens=self.settings.distill_tokens > 0)
        before = self.before(learner, listen, facts)
        loop = self.loop(learner, checkpoints, listen)
        log = loop.run()
        after = None if self.test is None else self.judge(loop.wrapped, listen)
        model = loop.result()
        if self.settings.ema_result and self.test is not None:
            after = self.judge(loop.wrapped, listen)
        done = self.sum_up(log.lines, loop.skipped, before, after, facts, time.monotonic() - seconds)
        first_does(self.accelerator, partial(self.write, model, done))
        return done

    def finished(self, facts: dict[str, Any]) -> Training | None:
        """The result of the same run, if it is there already."""
        try:
            found = Training.from_json((self.asked.out / RESULTS).read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if found.facts == facts else None

    def loop(self, learner: Learner, checkpoints: Checkpoints, listen: Listener) -> Loop:
        """The loop with everything it needs."""
        settings = self.settings
        look = training_transform(self.loaded, settings, self.form.look)
        return Loop(
            accelerator=self.accelerator,
            learner=learner,
            teacher=self.teacher,
            settings=settings,
            pace=self.pace,
            order=self.order,
            examples=Examples(self.source, look, settings.seed),
            classes=learner.reader.outputs,
            shrink=Shrink.of(learner.model, self.recipe, settings),
            checkpoints=checkpoints,
            out=self.asked.out,
            tensorboard=self.asked.tensorboard,
            listen=listen,
            top1=None if self.test is None else lambda wrapped: mean(self.judge(wrapped, ignore)),
        )

    def judge(self, wrapped: nn.Module, listen: Listener) -> Hits:
        """Right or wrong on every test image."""
        assert self.test is not None
        total = self.test.total or 0

        def say(done: int) -> None:
            listen(Step(done, total, "test images", unit="images"))

        size = max(self.order.micro, 16)
        return hits(wrapped, self.test, self.loaded.transform, self.loaded.image_size, self.accelerator, size, say)

    def before(self, learner: Learner, listen: Listener, facts: dict[str, Any]) -> Hits | None:
        """The same before training, pruned; asked once, also where the run is interrupted."""
        if self.test is None:
            return None
        file = self.asked.out / BEFORE
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["facts"] == facts:
                return [int(hit) for hit in found["hits"]]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        learner.to(self.accelerator.device)
        answers = self.judge(learner, listen)
        first_does(self.accelerator, lambda: write_text(file, json.dumps({"facts": facts, "hits": answers}) + "\n"))
        return answers

    def sum_up(
        self, log: Any, skipped: dict[str, str], before: Hits | None, after: Hits | None, facts: dict[str, Any], seconds: float
    ) -> Training:
        """The run as a result."""
        pruned, whole = self.cost()
        known = [place for place, hit in enumerate(after or ()) if hit >= 0]
        pairs: list[Interval | None] = [None, None, None]
        if before is not None and after is not None and known:
            old, new = ([found[place] for place in known] for found in (before, after))
            pairs = [share(old), share(new), paired(new, old)]
        return Training(
            model=self.loaded.name, recipe=self.name, preset=self.asked.preset, settings=self.settings.to_dict(), data=self.source.title,
            images=self.order.count, classes=len(self.loaded.classes or ()), test="" if self.test is None else self.test.title,
            test_images=len(known), image_size=self.loaded.image_size, steps=self.total, before=pairs[0], after=pairs[1], change=pairs[2],
            macs=pruned, unpruned_macs=whole, processes=self.order.world, device=device_name(str(self.accelerator.device)), seconds=seconds,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"), versions=versions_in_use(self.like), facts=facts, notes=self.notes,
            skipped=sorted(skipped.items()), log=log, hits=after or [],
        )  # fmt: skip

    def write(self, model: nn.Module, done: Training) -> None:
        """The files of a finished run; results.json comes last."""
        out = self.asked.out
        about = {"preset": self.asked.preset, "settings": done.settings, "steps": done.steps}
        evidence = None if done.after is None else done
        write_trained(out, model, self.form, self.recipe, self.loaded, evidence, **about)
        draw_loss({done.recipe: done.log}, out / CURVE)
        write_text(out / PAGE, training_page(done))
        write_text(out / RESULTS, done.to_json())


def mean(answers: Hits) -> float:
    """The share that is right of those that can be told."""
    known = [hit for hit in answers if hit >= 0]
    return sum(known) / max(1, len(known))


# ---- putting a job together -------------------------------------------------------------------------------------------


@contextmanager
def opened(asked: Asked, pace: Pace, changes: dict[str, Any], dry: bool = False) -> Iterator[Job]:
    """Everything that can go wrong before the first step is found here; OUT is this run's alone as long as it lasts."""
    preset = find_preset(asked.preset)
    settings = changed(preset.settings, changes)
    check_pace(pace, asked)
    with ExitStack() as stack:
        accelerator = stack.enter_context(accelerated(settings, asked))
        if not dry:
            stack.enter_context(reserved(asked.out, accelerator))
        yield make_job(asked, settings, pace, accelerator, preset.recipe, dry)


def check_pace(pace: Pace, asked: Asked) -> None:
    """Raise PruneError for what a run cannot be paced by, and for a device or package that is not there."""
    for name, least in (("save_every", 0), ("log_every", 1), ("eval_every", 0), ("workers", 0)):
        if getattr(pace, name) < least:
            raise PruneError(f"{name}={getattr(pace, name)} must be at least {least}")
    if asked.device not in DEVICES:
        raise PruneError(
            f"device={shown(asked.device)!r} is not known; choose {', '.join(DEVICES)}, and a card by CUDA_VISIBLE_DEVICES"
        )
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise PruneError("device='cuda' cannot be used, as torch sees no card; try cpu")
    if asked.tensorboard:
        summary_writer()


@contextmanager
def accelerated(settings: TrainSettings, asked: Asked) -> Iterator[Any]:
    """Accelerate's Accelerator; its settings for the whole process are afterwards as they were."""
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState, GradientState, PartialState
    except ImportError:
        raise PruneError("training needs accelerate; pip install 'sparsight[train]'") from None
    fresh, alone = not AcceleratorState._shared_state, not PartialState._shared_state
    try:
        made = Accelerator(
            mixed_precision={"fp32": "no"}.get(settings.precision, settings.precision),
            cpu=asked.device == "cpu" or not torch.accelerator.is_available(),  # else launched processes do not find each other
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        check_sharding(made)
        yield made
    except (ValueError, RuntimeError) as error:
        if isinstance(error, PruneError) or "fp16" not in str(error):
            raise
        raise PruneError(f"precision={settings.precision} cannot be used here ({one_line(error)}); try bf16 or fp32") from error
    finally:
        if fresh:
            AcceleratorState._reset_state()
            GradientState._reset_state()
            if alone and not torch.distributed.is_initialized():
                PartialState._reset_state()


def check_sharding(accelerator: Any) -> None:
    """Raise PruneError where FSDP is asked for and accelerate leaves it out without a word."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and not is_sharded(accelerator):
        raise PruneError(
            "FSDP is asked for, and accelerate shards between cards only, of which none are in use here; launch without --use_fsdp "
            "(every process then has the whole weights), or on machines with cards"
        )


@contextmanager
def reserved(out: Path, accelerator: Any) -> Iterator[None]:
    """OUT, made by the first process and locked for this run; taken back, if a fault shows before anything is kept there."""
    from filelock import FileLock, Timeout

    made: list[Path] = []
    lock = FileLock(out / LOCK, timeout=0)

    def take() -> None:
        made.extend(path for path in (out / CHECKPOINTS, out, *out.parents) if not path.exists())
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise PruneError(f"{out} is being written by another run; wait for it, or give another --out") from None
        except OSError:
            pass  # `claim` says why
        claim(out, CHECKPOINTS)

    first_does(accelerator, take)
    try:
        yield
    except PruneError:
        lock.release()
        if out in made:
            (out / LOCK).unlink(missing_ok=True)
        release(made)
        raise
    finally:
        lock.release()


def make_job(asked: Asked, settings: TrainSettings, pace: Pace, accelerator: Any, usual: str | None, dry: bool) -> Job:
    """Open data and model, match their classes, prune, and try whether the result could be saved."""
    source = open_source(data_folder(asked.model, asked.data), asked.split, asked.limit)
    check_labels(source)
    seed_all(settings.seed)
    loaded = own_copy(asked)
    recipe, weights = chosen_recipe(asked, loaded, usual)
    unprune(loaded.model)
    teacher = make_teacher(asked, settings, loaded, recipe)
    loaded, source = with_classes(loaded, source, settings)
    test = open_test(asked, loaded)
    order = make_order(source, settings, accelerator)
    check_recipe(recipe, settings)
    form = form_of(loaded)
    like = copy.deepcopy(loaded.model)
    handle = None if recipe is None else prune(loaded.model, recipe, weights=weights)
    make_optimiser(Learner(loaded.model, handle), settings)  # refuses what timm does not know
    if settings.checkpointing:
        set_checkpointing(loaded.model)
    notes = [note for note in (source.note, "" if test is None else test.note) if note]
    job = Job(asked, settings, pace, accelerator, loaded, like, recipe, handle, form, source, test, order, teacher, notes)
    if not dry:
        first_does(accelerator, job.checkpoints.check)
        first_does(accelerator, partial(try_saving, loaded, form, recipe))
    return job


def own_copy(asked: Asked) -> Loaded:
    """The model, in float32 on the CPU, sharing nothing with the caller's."""
    if isinstance(asked.model, str):
        return open_model(asked.model, asked.transform, asked.classes)
    given = asked.model.model if isinstance(asked.model, Loaded) else asked.model
    copied = copy.deepcopy(given)
    named = replace(asked.model, model=copied) if isinstance(asked.model, Loaded) else copied
    return open_model(named, asked.transform, asked.classes)


def chosen_recipe(asked: Asked, loaded: Loaded, usual: str | None) -> tuple[Recipe | None, Any]:
    """The recipe and where its learned weights begin: what is asked for, else that of a model trained before, else the preset's."""
    before = next(iter(handles(loaded.model)), None)
    given = asked.recipe if asked.recipe is not None else before.recipe if before is not None else usual
    if given is None:
        raise PruneError("no recipe is given; name one such as evit:keep=0.7, or unpruned for a baseline")
    if given == UNPRUNED:
        return None, None
    recipe = resolve(given, {})
    recipe.to_json()  # refuses what has no name to be loaded by
    weights: Any = None
    if recipe.weights is not None:
        weights = recipe.file or "random"
        if before is not None and before.recipe == recipe and before.learned is not None:
            weights = {name: tensor.clone() for name, tensor in before.learned.state_dict().items()}
        recipe = make(recipe.name, **{name: value for name, value in recipe.params if name != "weights"})
    return recipe, weights


def check_recipe(recipe: Recipe | None, settings: TrainSettings) -> None:
    """Raise PruneError for settings that do not go with the recipe."""
    check_shrink(settings, recipe)
    if recipe is not None and recipe.hides and settings.mode == "eval":
        raise PruneError(f"{recipe.name} draws its tokens in training mode only; give mode=train")
    if settings.distill_tokens and not (recipe is not None and recipe.hides):
        raise PruneError(
            "distill_tokens compares all final tokens with the unpruned model's, so none may leave in training; it is for dynamicvit"
        )


def make_teacher(asked: Asked, settings: TrainSettings, loaded: Loaded, recipe: Recipe | None) -> Teacher | None:
    """The model to distil from, if there is to be one."""
    if not settings.distils:
        if asked.teacher is not None:
            raise PruneError("teacher= is for distillation; give distill_logits, distill_features or distill_tokens a weight")
        return None
    own = asked.teacher is None
    model = copy.deepcopy(loaded.model) if own else copy.deepcopy(open_model(asked.teacher or "").model)
    unprune(model)
    if settings.distill_logits and settings.new_head and own:
        raise PruneError(
            "distill_logits needs a teacher of the same classes; with new_head=true give one, or take distill_features"
        )
    outputs, wanted = Reader(model).outputs, Reader(loaded.model).outputs
    if settings.distill_logits and outputs != wanted:
        raise PruneError(f"the teacher has {outputs} classes and {loaded.name} {wanted}; give a teacher of the same classes")
    return Teacher(model, tokens=settings.distill_tokens > 0)


def with_classes(loaded: Loaded, source: Source, settings: TrainSettings) -> tuple[Loaded, Source]:
    """Model and images with the same classes in the same order. Raises PruneError where they do not match."""
    if settings.new_head:
        if not source.classes:
            raise PruneError(f"{source.title} has no names of classes, which new_head=true is made for; leave it out")
        replace_head(loaded.model, len(source.classes))
        return replace(loaded, classes=list(source.classes)), source
    outputs = Reader(loaded.model, len(loaded.classes or ())).outputs
    if not outputs or classifier(loaded.model) is None:
        raise PruneError(f"{loaded.name} has no classifier; give new_head=true for one of the training images' classes")
    hint = "give new_head=true to train a new classifier for them, or rename the folders"
    try:
        aligned = source.aligned(loaded.classes, outputs)
        check_labels(aligned)
    except PruneError as error:
        raise PruneError(f"the classes do not match: {error}; {hint}") from None
    if aligned.total != source.total:
        raise PruneError(f"the classes do not match: {aligned.note}; {hint}")
    return replace(loaded, classes=loaded.classes or aligned.classes), aligned


def replace_head(model: nn.Module, classes: int) -> None:
    """A new classifier, from random weights."""
    if callable(getattr(model, "reset_classifier", None)):
        model.reset_classifier(classes)  # type: ignore[operator]
        return
    head = getattr(model, "classifier", None)
    if not isinstance(head, nn.Linear):
        raise PruneError(
            f"new_head=true: the classifier of {type(model).__name__} is not known; train a model of the right classes"
        )
    model.classifier = nn.Linear(head.in_features, classes)
    if hasattr(model, "config"):
        model.config.num_labels = model.num_labels = classes  # type: ignore[assignment, union-attr]


def open_test(asked: Asked, loaded: Loaded) -> Source | None:
    """The images to report on, their labels in the order of the logits."""
    if asked.test is None:
        return None
    found = open_source(asked.test)
    check_labels(found)
    found = found.aligned(loaded.classes, len(loaded.classes or ()))
    check_labels(found)
    return found


def make_order(source: Source, settings: TrainSettings, accelerator: Any) -> Order:
    """Who sees which images when. Raises PruneError for batches that cannot be shared out."""
    world, batch, count = accelerator.num_processes, settings.batch_size, source.total or 0
    mine, rest = divmod(batch, world)
    if rest or not mine:
        raise PruneError(f"batch_size={batch} cannot be shared by {world} processes; give a multiple of {world}")
    micro = settings.per_forward or mine
    if mine % micro:
        raise PruneError(f"per_forward={micro} does not divide the {mine} images that a process has in a step; give a divisor")
    if settings.mixes and micro % 2:
        raise PruneError(f"mixup and cutmix mix pairs, and a forward has {micro} images; give an even number")
    order = Order(count, batch, micro, accelerator.process_index, world, settings.seed, settings.repeats)
    if not order.steps:
        raise PruneError(f"batch_size={batch} is more than an epoch of {source.title} has ({count} images); give a smaller one")
    return order


def set_checkpointing(model: nn.Module) -> None:
    """Recompute activations, as the model's framework does it."""
    for name in ("set_grad_checkpointing", "gradient_checkpointing_enable"):
        switch = getattr(model, name, None)
        if callable(switch):
            switch()
            return
    raise PruneError(f"checkpointing=true: {type(model).__name__} does not know how; leave it out")
