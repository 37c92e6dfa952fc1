"""Presets hold the papers' values; every setting can be given in Python and on the command line; nonsense is refused."""

import math
from dataclasses import fields

import pytest
from typer.main import get_command

from sparsight import PruneError
from sparsight.cli.main import app
from sparsight.train.presets import PRESETS, find_preset
from sparsight.train.settings import TrainSettings, changed


def test_evit_has_the_values_of_the_column_norm_paper():
    preset = find_preset("evit")
    s = preset.settings
    assert preset.recipe == "evit:keep=0.7,layers=0/3/6,rescue=0.8"
    assert (s.epochs, s.batch_size, s.optimizer, s.schedule, s.warmup_epochs, s.shrink_start, s.shrink_epochs) == (
        30,
        2048,
        "adamw",
        "cosine",
        0,
        0,
        0,
    )
    assert s.rate == pytest.approx(8e-5)
    assert (s.min_lr, s.weight_decay, s.betas, s.eps, s.clip) == (2e-6, 1e-6, (0.9, 0.999), 1e-8, 0)
    assert (s.auto_augment, s.color_jitter, s.interpolation) == ("rand-m9-mstd0.5-inc1", 0.4, "bicubic")
    assert (s.erase, s.erase_mode, s.mixup, s.cutmix, s.smoothing, s.repeats) == (0.25, "pixel", 0.8, 1.0, 0.1, 3)
    assert (s.mode, s.ema, s.ema_result) == ("eval", 0.99996, False)
    stated = {"epochs", "batch_size", "optimizer", "schedule", "warmup_epochs", "shrink_start"}
    assert not stated & set(preset.unstated)
    assert {"lr", "min_lr", "weight_decay"} <= set(preset.unstated)


def test_renyi_has_the_values_of_the_entropy_paper():
    preset = find_preset("renyi")
    s = preset.settings
    assert (s.epochs, s.batch_size, s.optimizer, s.crop) == (100, 256, "adamw", "rkrr")
    assert min(s.flip, s.mixup, s.cutmix, s.erase) > 0
    assert s.rate == pytest.approx(2.5e-4)
    assert {"lr", "weight_decay", "mixup", "cutmix", "erase"} <= set(preset.unstated)


def test_what_a_preset_leaves_open_is_a_setting():
    names = {one.name for one in fields(TrainSettings)}
    assert all(set(preset.unstated) <= names for preset in PRESETS.values())


def test_every_setting_is_an_option():
    command = get_command(app).commands["train"]
    for one in fields(TrainSettings):
        option = next(param for param in command.params if param.name == one.name)
        word, value = f"--{one.name.replace('_', '-')}", getattr(TrainSettings(), one.name)
        assert word in option.opts
        assert option.help, one.name
        given = "x" if value == "" else value
        words = [word] if value is False else [word, *map(str, given if isinstance(given, tuple) else [given])]
        assert command.make_context("train", words).params[one.name] == (True if value is False else given)


BAD = [
    ({"lerning_rate": 1}, "no training setting 'lerning_rate'"),
    ({"epoch": 3}, "did you mean epochs"),
    ({"epochs": 0}, "epochs=0 must be at least 1"),
    ({"lr": math.nan}, "lr=nan must be at least 0"),
    ({"mixup": -1}, "mixup=-1 must be at least 0"),
    ({"erase": 1.5}, "erase=1.5 must be at least 0 and at most 1"),
    ({"precision": "fp8"}, "precision=fp8 is not known; choose fp32, bf16, fp16"),
    ({"crop": "square"}, "choose rrc, rkrc, rkrr"),
    ({"epochs": "many"}, "epochs=many must be of type int"),
    ({"epochs": True}, "epochs=true must be of type int"),
    ({"betas": 0.9}, "betas=0.9 must be two numbers"),
    ({"crop_scale": (0.5, 2)}, "must be two numbers from 0 to 1"),
    ({"shrink_start": 2}, "needs shrink_epochs"),
    ({"ema_result": True}, "needs a moving average"),
    ({"warmup_epochs": 10}, "leaves none of 10 epochs"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_settings(changes, message):
    with pytest.raises(PruneError, match=message):
        changed(TrainSettings(), changes)


def test_an_unknown_preset():
    with pytest.raises(PruneError, match="choose plain, evit, renyi"):
        find_preset("deit")
