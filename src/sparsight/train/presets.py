"""Presets: the training of two papers, and a plain one, as settings."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import PruneError, shown
from .settings import TrainSettings


@dataclass(frozen=True)
class Preset:
    """A recipe of training: what a paper prunes with, its settings, and the names of those that it does not state."""

    recipe: str | None
    settings: TrainSettings
    source: str
    unstated: tuple[str, ...] = ()


EVIT = Preset(
    "evit:keep=0.7,layers=0/3/6,rescue=0.8",
    TrainSettings(
        epochs=30, batch_size=2048, lr=2e-5, lr_per=512, min_lr=2e-6, weight_decay=1e-6, schedule_by="epoch", schedule_lag=1, mode="eval",
        auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, interpolation="bicubic", erase=0.25, mixup=0.8, cutmix=1.0, smoothing=0.1,
        repeats=3, ema=0.99996,
    ),
    "Column norms paper (Col-Ln), appendix E; what the page does not show is that of the EViT repository's finetune.sh",
    (
        "lr", "lr_per", "min_lr", "weight_decay", "schedule_by", "schedule_lag", "mode", "auto_augment", "color_jitter", "interpolation",
        "erase", "mixup", "cutmix", "smoothing", "repeats", "ema",
    ),
)  # fmt: skip

RENYI = Preset(
    "renyi:keep=0.7,layers=3/6/9",
    TrainSettings(
        epochs=100, batch_size=256, lr=5e-4, lr_per=512, min_lr=1e-5, weight_decay=0.05, schedule_by="epoch", warmup_epochs=5, warmup_lr=1e-6,
        crop="rkrr", interpolation="bicubic", erase=0.25, mixup=0.8, cutmix=1.0, smoothing=0.1, new_head=True,
    ),
    "Renyi attention entropy paper, section 4.1; what it does not state is filled in as DeiT trains",
    (
        "lr", "lr_per", "min_lr", "weight_decay", "schedule", "schedule_by", "warmup_epochs", "warmup_lr", "interpolation", "erase", "mixup",
        "cutmix", "smoothing",
    ),
)  # fmt: skip

PRESETS = {"plain": Preset(None, TrainSettings(), "crops and flips only"), "evit": EVIT, "renyi": RENYI}


def find_preset(name: str) -> Preset:
    """The preset of that name."""
    if name not in PRESETS:
        raise PruneError(f"preset={shown(name)} is not known; choose {', '.join(PRESETS)}")
    return PRESETS[name]
