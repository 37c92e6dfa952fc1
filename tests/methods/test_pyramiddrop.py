"""PyramidDrop: counts are fractions of the original tokens."""

import pytest
import torch

import sparsight
from sparsight import PruneError


def test_fractions_are_of_the_original_count():
    schedule = sparsight.parse("pyramiddrop:layers=2/8/16,keep=0.19/0.0361/0.006859").schedule
    assert [schedule.stay(576, present, i, 3) for i, present in enumerate((576, 109, 20))] == [109, 20, 3]


def test_later_stages_never_grow():
    schedule = sparsight.parse("pyramiddrop:layers=2/8,keep=0.25/0.5").schedule
    assert schedule.stay(100, 25, 1, 2) == 25


def test_one_fraction_serves_one_layer(rng):
    x, row = torch.randn(1, 12, 4, generator=rng), torch.rand(1, 1, 12, generator=rng)
    out = sparsight.reduce("pyramiddrop:layers=2,keep=0.5", x=x, text_attn=row)
    assert out.plan.slots == 6


def test_defaults_are_the_authors():
    recipe = sparsight.parse("pyramiddrop")
    assert recipe.schedule.resolve(32) == (8, 16, 24)
    assert [recipe.schedule.stay(576, 576, i, 3) for i in range(3)] == [288, 144, 72]
    with pytest.raises(PruneError, match="out of range"):
        recipe.schedule.resolve(24)
