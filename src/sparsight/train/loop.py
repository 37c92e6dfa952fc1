"""The training loop: steps, schedule, average, log and checkpoints; a run that was killed goes on as if nothing had happened."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..handle import handles
from ..runs.sweep import Listener, Step
from ..speed.macs import mean_counts
from .checkpoint import Checkpoint, Checkpoints, first_does
from .examples import Batch, Examples, Order, read_ahead, seed_all
from .learner import Learner, Teacher
from .log import Log
from .objective import Objective
from .optimise import (
    is_sharded,
    load_optimiser,
    load_weights,
    make_average,
    make_optimiser,
    make_schedule,
    optimiser_state,
    weights_of,
)
from .result import LogLine
from .settings import TrainSettings
from .shrink import Shrink


@dataclass(frozen=True)
class Pace:
    """What a run's outcome does not depend on. save_every, log_every: steps (save_every 0: an epoch); eval_every: epochs, 0 for the end only;
    workers: processes that read images."""

    save_every: int = 0
    log_every: int = 10
    eval_every: int = 1
    workers: int = 0


@dataclass(eq=False)
class Loop:
    """A run on its way. top1: asks the learner about the test images; None without."""

    accelerator: Any
    learner: Learner
    teacher: Teacher | None
    settings: TrainSettings
    pace: Pace
    order: Order
    examples: Examples
    classes: int
    shrink: Shrink
    checkpoints: Checkpoints
    out: Path
    tensorboard: bool
    listen: Listener
    top1: Callable[[nn.Module], float] | None
    step: int = 0
    window: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.settings.epochs * self.order.steps

    @property
    def epoch(self) -> float:
        """Epochs that are behind."""
        return self.step / self.order.steps

    def run(self) -> Log:
        """Train to the end, from the last checkpoint on."""
        self.set_up()
        self.resume()
        log = Log.open(self.out, self.step, self.tensorboard, self.accelerator.is_main_process)
        try:
            while self.step < self.total:
                self.run_epoch(log)
        finally:
            log.close()
        self.shrink.full()
        return log

    def result(self) -> nn.Module:
        """The trained model in one piece; all processes have to ask."""
        if self.settings.ema_result:
            self.learner.load_state_dict(self.average.module.state_dict())
        if self.spare is None:
            return self.learner.model
        self.spare.load_state_dict(weights_of(self.wrapped), strict=self.accelerator.is_main_process)
        return self.spare.model

    def set_up(self) -> None:
        """Optimiser, schedule, moving average, and the learner as accelerate wraps it."""
        settings, accelerator = self.settings, self.accelerator
        self.learner.to(accelerator.device)
        accelerator.gradient_accumulation_steps = self.order.accumulated
        self.average = make_average(self.learner, settings, accelerator)
        self.spare = copy.deepcopy(self.learner).cpu() if is_sharded(accelerator) else None
        optimiser = make_optimiser(self.learner, settings)
        self.wrapped, self.optimiser = accelerator.prepare(self.learner, optimiser)
        self.schedule = make_schedule(self.optimiser, settings, self.order.steps)
        self.objective = Objective.of(settings)
        self.mix = mixer(settings, self.classes)
        if self.teacher is not None:
            self.teacher.to(accelerator.device)

    # ---- checkpoints --------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        found = self.latest()
        if found is None:
            return
        self.step = found.step
        load_weights(self.wrapped, found.weights)
        load_optimiser(self.wrapped, self.optimiser, found.state["optimiser"])
        if self.average is not None and found.average is not None:
            self.average.module.load_state_dict(found.average)
        if self.accelerator.scaler is not None and found.state["scaler"]:
            self.accelerator.scaler.load_state_dict(found.state["scaler"])
        self.window, self.skipped = dict(found.state["window"]), dict(found.state["skipped"])

    def latest(self) -> Checkpoint | None:
        """The last checkpoint that can be read: that of the first process for all."""
        steps = self.checkpoints.steps()
        step = max(steps, default=0)
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            step = broadcast_object_list([step])[0]
            if step and step not in steps:
                raise PruneError(
                    f"this process does not see the checkpoint of step {step} in {self.checkpoints.folder}; all machines must share --out"
                )
        return self.checkpoints.load(step) if step else None

    def save(self) -> None:
        """Write a checkpoint. Raises PruneError, with the ones before it kept, if the weights are not finite or there is no room."""
        weights, state = weights_of(self.wrapped), optimiser_state(self.wrapped, self.optimiser)
        average = None if self.average is None else self.average.module.state_dict()
        scaler = {} if self.accelerator.scaler is None else self.accelerator.scaler.state_dict()
        kept = {"optimiser": state, "scaler": scaler, "window": self.window, "skipped": self.skipped}

        def write() -> None:
            if not all(tensor.isfinite().all() for tensor in weights.values() if tensor.is_floating_point()):
                raise self.not_finite("weights")
            self.checkpoints.save(Checkpoint(self.step, weights, average, kept))

        first_does(self.accelerator, write)

    def not_finite(self, what: str) -> PruneError:
        """The run cannot go on."""
        last = max(self.checkpoints.steps(), default=0)
        kept = f"the checkpoint of step {last} is kept in {self.checkpoints.folder}" if last else "there is no checkpoint before it"
        return PruneError(
            f"the {what} became NaN or infinite at step {self.step + (what == 'loss')} (epoch {self.epoch:.2f}, learning rate {self.rate:.3g}); "
            f"{kept}. Try a lower lr, clip=1, or another precision, with another --out"
        )

    # ---- steps --------------------------------------------------------------------------------------------------------

    def run_epoch(self, log: Log) -> None:
        """The rest of the epoch that the run is in."""
        epoch, done = divmod(self.step, self.order.steps)
        batches = read_ahead(self.examples, self.order.forwards(epoch, done), self.pace.workers)
        while self.step < (epoch + 1) * self.order.steps:
            self.run_step(epoch, batches)
            ended, every = self.step % self.order.steps == 0, self.pace.eval_every
            asked = self.top1 is not None and ended and every > 0 and (epoch + 1) % every == 0 and self.step < self.total
            if self.step == 1 or self.step % self.pace.log_every == 0 or ended:
                line = self.line()
                log.add(replace(line, top1=self.ask()) if asked else line)
            if self.step == self.total or (self.step % self.pace.save_every == 0 if self.pace.save_every else ended):
                self.save()

    def run_step(self, epoch: int, batches: Iterator[Batch]) -> None:
        """One step of the optimiser."""
        settings, accelerator = self.settings, self.accelerator
        self.shrink.at(self.epoch)
        self.set_rate(epoch)
        self.wrapped.train(settings.mode == "train")
        summed: dict[str, Tensor] = {}
        for number in range(self.order.accumulated):
            batch = next(batches)
            self.skipped |= dict(batch.skipped)
            seed_all(settings.seed, self.step, number, accelerator.process_index)
            with accelerator.accumulate(self.wrapped):
                parts = self.forward(batch)
                accelerator.backward(parts["loss"])
                for name, value in parts.items():
                    summed[name] = summed.get(name, 0) + value.detach() / self.order.accumulated
                if accelerator.sync_gradients:
                    self.note(summed)
                    if settings.clip:
                        accelerator.clip_grad_norm_(self.wrapped.parameters(), settings.clip)
                self.optimiser.step()
                self.optimiser.zero_grad()
        self.step += 1
        if self.average is not None:
            self.average.update(self.learner)
        loss = self.window["loss"] / self.window["steps"]
        self.listen(Step(self.step, self.total, f"epoch {self.epoch:.1f} of {settings.epochs}, loss {loss:.3f}", unit="steps"))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss on some images."""
        device = self.accelerator.device
        images, target = batch.images.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
        if self.mix is not None:
            images, target = self.mix(images, target)
        taught = None
        if self.teacher is not None:
            with torch.no_grad(), self.accelerator.autocast():
                taught = self.teacher(images)
        return self.objective(self.wrapped(images), taught, target)

    def note(self, summed: dict[str, Tensor]) -> None:
        """Add the loss of a step, which is the mean over all processes, to the window; raise PruneError where it is not finite."""
        names = sorted(summed)
        values = self.accelerator.reduce(torch.stack([summed[name] for name in names]), "mean").tolist()
        if not all(map(math.isfinite, values)):
            raise self.not_finite("loss")
        for name, value in (*zip(names, values, strict=True), ("steps", 1)):
            self.window[name] = self.window.get(name, 0) + value

    def set_rate(self, epoch: int) -> None:
        """The learning rate of the coming step."""
        if self.settings.schedule_by == "epoch":
            self.schedule.step(max(0, epoch - self.settings.schedule_lag))
        else:
            self.schedule.step_update(self.step)

    @property
    def rate(self) -> float:
        """The highest learning rate of any weight."""
        return max(float(group["lr"]) for group in self.optimiser.param_groups)

    def line(self) -> LogLine:
        """The window as a line of the log; the next one begins."""
        steps = self.window.pop("steps")
        means = {name: value / steps for name, value in self.window.items()}
        self.window.clear()
        return LogLine(self.step, self.epoch, means.pop("loss"), means, self.rate, self.tokens())

    def tokens(self) -> list[int]:
        """Tokens after each site in the last forward, the mean where images differ; nothing where all stay."""
        return [count for handle in handles(self.learner.model) for count in mean_counts(handle.counts)]

    def ask(self) -> float:
        """Top-1 on the test images, pruned as at the end."""
        assert self.top1 is not None
        self.shrink.full()
        return self.top1(self.wrapped)


def mixer(settings: TrainSettings, classes: int) -> Any:
    """timm's mixup and CutMix; None without."""
    if not settings.mixes:
        return None
    from timm.data import Mixup

    return Mixup(
        mixup_alpha=settings.mixup,
        cutmix_alpha=settings.cutmix,
        prob=settings.mix_prob,
        switch_prob=settings.mix_switch,
        mode=settings.mix_mode,
        label_smoothing=settings.smoothing,
        num_classes=classes,
    )
