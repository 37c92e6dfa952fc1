"""FastV on raw tensors and as a recipe."""

import pytest
import torch

import sparsight


def test_keeps_what_the_row_attends_to(rng):
    x, row = torch.randn(2, 20, 8, generator=rng), torch.rand(2, 1, 20, generator=rng)
    out = sparsight.reduce("fastv:keep=0.25", x=x, text_attn=row)
    assert torch.equal(out.plan.keep, row[:, 0].topk(5).indices.sort().values)
    assert torch.equal(out.x, out.plan.gather(x))


def test_rounds_down():
    schedule = sparsight.parse("fastv:layer=2,keep=0.19").schedule
    assert schedule.resolve(32) == (2,)
    assert schedule.stay(576, 576, 0, 1) == 109


def test_tokens_are_per_image():
    schedule = sparsight.parse("fastv:tokens=144").schedule
    assert schedule.stay(1152, 1152, 0, 1, images=2) == 288
    assert schedule.stay(100, 100, 0, 1) == 100


@pytest.mark.parametrize("text", ["fastv:keep=0.5", "fastv:keep=0.5,layer=2", "fastv:tokens=72,positions=renumbered"])
def test_recipe_text(text):
    recipe = sparsight.parse(text)
    assert str(recipe) == text
    assert sparsight.parse(str(recipe)) == recipe
