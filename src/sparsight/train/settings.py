"""TrainSettings: every value that the outcome of a fine-tuning depends on."""

from __future__ import annotations

import difflib
import math
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..errors import PruneError, shown

CHOICES = {
    "precision": ("fp32", "bf16", "fp16"),
    "schedule": ("cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant"),
    "schedule_by": ("step", "epoch"),
    "mode": ("train", "eval"),
    "crop": ("rrc", "rkrc", "rkrr"),
    "erase_mode": ("const", "rand", "pixel"),
    "mix_mode": ("batch", "pair", "elem"),
}
"""Settings that are one of a few words."""

SHARES = ("flip", "smoothing", "mix_prob", "mix_switch", "erase", "ema", "layer_decay")
"""Settings between 0 and 1."""

LEAST = {"epochs": 1, "batch_size": 1, "erase_count": 1, "repeats": 1, "temperature": 0.01}
"""Settings that are at least that much; the other numbers are at least 0."""

PAIRS = ("betas", "crop_scale")
"""Settings that are two numbers from 0 to 1."""


def say(default: Any, text: str) -> Any:
    """A field with the text that the command line shows."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainSettings:
    """How a model is fine-tuned. The defaults are those of the preset `plain`: crops and flips only, a low learning rate."""

    epochs: int = say(10, "Passes over the training images.")
    batch_size: int = say(64, "Images of one optimiser step, over all processes.")
    per_forward: int = say(
        0, "Images of one forward in one process; 0 for its whole share of the step, less accumulates gradients."
    )
    precision: str = say("fp32", "fp32, bf16 or fp16; weights stay float32.")
    checkpointing: bool = say(False, "Recompute activations in the backward pass: less memory, more time.")
    seed: int = say(0, "Seed of everything random.")
    mode: str = say("train", "train, or eval: dropout and stochastic depth off while training.")
    frozen: bool = say(False, "Train only the weights of a learned method; the model's own stay.")
    new_head: bool = say(False, "Replace the classifier by one for the classes of the training images.")

    optimizer: str = say("adamw", "A name that timm knows.")
    lr: float = say(1e-5, "Learning rate.")
    lr_per: int = say(0, "The batch size that lr is for; it is scaled to batch_size. 0: not scaled.")
    betas: tuple[float, float] = say((0.9, 0.999), "Decay of the optimiser's moments.")
    eps: float = say(1e-8, "The optimiser's epsilon.")
    weight_decay: float = say(0.01, "Weight decay; not of biases, norms, position table and class token.")
    layer_decay: float = say(
        0.0, "Factor of the learning rate from block to block, from the last to the first; 0: the same for all."
    )
    learned_lr: float = say(1.0, "Factor of the learning rate of a learned method's own weights.")
    clip: float = say(0.0, "Largest norm of the gradient; 0: any.")
    schedule: str = say("cosine", "cosine, tanh, step, multistep, poly, wsd, rsqrt or constant.")
    schedule_by: str = say("step", "step or epoch: when the learning rate changes.")
    schedule_lag: int = say(0, "Epochs by which a schedule by epoch comes late.")
    min_lr: float = say(0.0, "Learning rate at the end; not scaled.")
    warmup_epochs: int = say(0, "Epochs in which the learning rate rises.")
    warmup_lr: float = say(1e-7, "Learning rate at the beginning of these; not scaled.")
    shrink_start: int = say(0, "Epochs without pruning before the keep rate begins to fall.")
    shrink_epochs: int = say(0, "Epochs in which the keep rate falls from 1 to the recipe's, as a cosine.")

    crop: str = say("rrc", "Training crop: rrc (random size and shape), rkrr (resized, random crop), rkrc (resized, central crop).")
    crop_scale: tuple[float, float] = say((0.08, 1.0), "Share of the image's area in a random crop, from and to.")
    flip: float = say(0.5, "Share of images that are mirrored.")
    color_jitter: float = say(0.0, "Change of brightness, contrast and saturation; none beside auto_augment.")
    auto_augment: str = say("", "RandAugment or another one of timm, such as rand-m9-mstd0.5-inc1.")
    interpolation: str = say("", "Resizing in training: bicubic, bilinear, random. [default: the model's]")
    erase: float = say(0.0, "Share of images with a random rectangle erased.")
    erase_mode: str = say("pixel", "What it is filled with: const, rand or pixel.")
    erase_count: int = say(1, "Number of rectangles.")
    repeats: int = say(1, "Repeated augmentation: how often an image comes up in an epoch, of fewer images.")
    mixup: float = say(0.0, "Mixup's alpha; 0: none.")
    cutmix: float = say(0.0, "CutMix's alpha; 0: none.")
    mix_prob: float = say(1.0, "Share of batches that are mixed.")
    mix_switch: float = say(0.5, "Share of these that get CutMix where both are on.")
    mix_mode: str = say("batch", "Mix by batch, pair or elem.")
    smoothing: float = say(0.0, "Label smoothing.")

    ema: float = say(0.0, "Decay of the moving average of the weights; 0: none.")
    ema_result: bool = say(False, "The moving average is the result, not the last weights.")

    distill_logits: float = say(0.0, "Weight of the divergence from the unpruned model's classes.")
    temperature: float = say(1.0, "Temperature of that.")
    distill_features: float = say(
        0.0, "Weight of the squared distance to the unpruned model's class token (what enters the classifier)."
    )
    distill_tokens: float = say(
        0.0, "Weight of the squared distance to its final patch tokens, where tokens are hidden (DynamicViT)."
    )
    hard: float = say(1.0, "Weight of the loss on the labels.")
    ratio: float = say(2.0, "Weight of the loss on the share of tokens kept, where tokens are drawn (DynamicViT).")

    def __post_init__(self) -> None:
        for one in fields(self):
            check(one.name, getattr(self, one.name))
        if self.shrink_start and not self.shrink_epochs:
            raise PruneError(f"shrink_start={self.shrink_start} needs shrink_epochs, the epochs in which the keep rate falls")
        if self.ema_result and not self.ema:
            raise PruneError("ema_result=true needs a moving average; give ema, such as 0.999")
        if self.warmup_epochs >= self.epochs and self.warmup_epochs:
            raise PruneError(f"warmup_epochs={self.warmup_epochs} leaves none of {self.epochs} epochs; give fewer")

    @property
    def rate(self) -> float:
        """The learning rate for this batch size."""
        return self.lr * self.batch_size / self.lr_per if self.lr_per else self.lr

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    @property
    def distils(self) -> bool:
        return max(self.distill_logits, self.distill_features, self.distill_tokens) > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON gives them back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


HINTS = typing.get_type_hints(TrainSettings)
"""The settings' types by name."""


def changed(settings: TrainSettings, changes: Mapping[str, Any]) -> TrainSettings:
    """The settings with other values for some; a PruneError with the nearest name for one that there is not."""
    for name in changes:
        if name not in HINTS:
            near = difflib.get_close_matches(name, HINTS, n=2) or sorted(HINTS)
            raise PruneError(f"no training setting {shown(name)!r}; did you mean {' or '.join(near)}?")
    return replace(settings, **{name: cast(name, value) for name, value in changes.items()})


def cast(name: str, value: Any) -> Any:
    """A value as the setting's type: whole numbers count as numbers, lists as pairs. Other types stay, for `check` to refuse."""
    if HINTS[name] is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return tuple(value) if name in PAIRS and isinstance(value, list) else value


def check(name: str, value: Any) -> None:
    """Raise PruneError for a value that a setting cannot have."""
    kind = tuple if name in PAIRS else HINTS[name]
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise PruneError(f"{name}={shown(value)} must be {'two numbers' if kind is tuple else f'of type {kind.__name__}'}")
    if name in CHOICES and value not in CHOICES[name]:
        raise PruneError(f"{name}={shown(value)} is not known; choose {', '.join(CHOICES[name])}")
    if kind is tuple and not (len(value) == 2 and all(isinstance(each, (int, float)) and 0 <= each <= 1 for each in value)):
        raise PruneError(f"{name}={shown(value)} must be two numbers from 0 to 1")
    if kind not in (int, float) or not isinstance(value, (int, float)):
        return
    least, most = LEAST.get(name, 0), 1 if name in SHARES else math.inf
    if not (least <= value <= most and math.isfinite(value)):
        raise PruneError(f"{name}={value:g} must be at least {least}{'' if most == math.inf else ' and at most 1'}, and finite")
