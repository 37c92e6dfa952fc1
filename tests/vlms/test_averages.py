"""Averages of agile and mix: those of the model by its name, and a warning, once, where they are another model's."""

import warnings

import pytest
import torch
from lvlms import Size, answer, build, inputs

import sparsight
from sparsight.vlms.averages import KNOWN


@pytest.fixture
def model():
    return build("llava")


def params(model, recipe):
    with sparsight.prune(model, recipe) as handle:
        return dict(handle.recipe.params)


def test_by_the_models_name(model):
    assert params(model, "agile:tokens=5")["erank_avg"] == 94.87
    model.config._name_or_path = "somewhere/demo-vlm"
    found = params(model, "mix:tokens=5")
    assert {word: found[word] for word in KNOWN["demo-vlm"]} == KNOWN["demo-vlm"]
    assert params(model, "agile:tokens=5,erank_avg=7")["erank_avg"] == 7
    model.config._name_or_path = "llava-hf/llava-1.5-7b-hf"
    assert params(model, "agile:tokens=5")["erank_avg"] == 94.87


def test_by_the_configuration(model):
    model.config.sparsight_averages = {"erank_avg": 12.5, "entropy_avg": 3.0}
    found = params(model, "agile:tokens=5")
    assert (found["erank_avg"], found["entropy_avg"]) == (12.5, 3.0)


def said(model, recipe, calls=2):
    given = inputs("llava", model, [[3, Size(), 4]])
    with warnings.catch_warnings(record=True) as found, torch.no_grad(), sparsight.prune(model, recipe):
        warnings.simplefilter("always")
        for _ in range(calls):
            answer(model, given, new=1)
    return [str(one.message) for one in found if "effective rank" in str(one.message)]


@pytest.mark.parametrize("recipe", ["agile:tokens=5", "mix:tokens=5"])
def test_a_model_far_from_the_average(model, recipe):
    (text,) = said(model, recipe)
    assert "less than half of erank_avg=94.87" in text
    assert f"calibrate MODEL --data IMAGES --recipe {recipe.partition(':')[0]}" in text


def test_no_warning_where_it_fits(model):
    assert not said(model, "agile:tokens=5,by=entropy")
    assert not said(model, "agile:tokens=5,erank_avg=12")
    assert not said(model, "divprune:tokens=5")
    model.config._name_or_path = "demo-vlm"
    assert not said(model, "agile:tokens=5")
