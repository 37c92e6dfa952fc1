"""Keeping everything changes nothing, and an image does not depend on its batch."""

from functools import cache
from typing import Any

import pytest
import torch
from lvlms import BUILD, CLASS_TOKEN, Size, answer, build, inputs, product

import sparsight

NO_CLASS = [
    "col_ln:keep=1", "random:keep=1", "divprune:keep=1", "fps:keep=1", "shannon:keep=1", "fastervlm:keep=1,score=col_ln",
    "visionzip:keep=1,score=column_mean", "vispruner:keep=1,score=column_mean", "prumerge:keep=1,score=column_mean",
    "prumerge_plus:keep=1,score=col_ln", "bat:keep=1,score=col_ln", "agile:keep=1,score=col_ln", "mix:keep=1,attention=col_ln",
]  # fmt: skip
WITH_CLASS = [
    "class_attention:keep=1", "col_ln_rescue:keep=1", "fastervlm:keep=1", "visionzip:keep=1", "vispruner:keep=1", "vispruner:keep=1,rescue=0.8",
    "prumerge:keep=1", "prumerge_plus:keep=1", "bat:keep=1", "agile:keep=1", "mix:keep=1", "evit:keep=1",
]  # fmt: skip
ALL = [(name, recipe) for name in BUILD for recipe in NO_CLASS + (WITH_CLASS if name in CLASS_TOKEN else [])]
SAMPLES = [[3, Size(32, 16), 4], [2, Size(16, 32, 1), 2, Size(16, 16, 2), 6]]


def recipes(name: str) -> list[str]:
    """One of each kind: dropping by score, by diversity, merging, adaptive count."""
    plain = ["col_ln:keep=0.5", "divprune:keep=0.5", "random:keep=0.3", "agile:tokens=3,count=adaptive,score=column_mean"]
    own = ["prumerge", "visionzip:keep=0.8", "vispruner:keep=0.5", "evit:keep=0.5"]
    none = ["prumerge:score=column_mean", "visionzip:keep=0.8,score=col_ln"]
    return plain + (own if name in CLASS_TOKEN else none)


@cache
def untouched(name: str) -> tuple[dict[str, Any], torch.Tensor]:
    model = build(name)
    given = inputs(name, model, SAMPLES)
    with torch.no_grad():
        return given, model(**given).logits


USUAL = {
    "llava-siglip": NO_CLASS[5:6],
    "llava-dinov2": [NO_CLASS[0], WITH_CLASS[3], WITH_CLASS[6]],
    "llava-qwen2": [],
    "llava-next": WITH_CLASS[2:5],
    "onevision": NO_CLASS[:2],
    "qwen2": [],
    "qwen2.5": NO_CLASS[:3],
    "qwen3": NO_CLASS[6:8],
}
"""All on LLaVA, some elsewhere; the rest is for make test-all."""


@pytest.mark.parametrize(("name", "recipe"), product(ALL, lambda name, recipe: recipe in USUAL.get(name, [recipe])))
def test_keeping_all_is_the_untouched_model(name, recipe):
    given, expected = untouched(name)
    model = build(name)
    with sparsight.prune(model, recipe) as handle, torch.no_grad():
        assert torch.equal(model(**given).logits, expected)
        assert len(handle.counts) == 3
        assert handle.counts == [plan.total for plan in handle.plans]


@pytest.mark.parametrize("name", BUILD)
def test_keeping_all_generates_the_same(name):
    model = build(name)
    given = inputs(name, model, SAMPLES)
    expected = [answer(model, given), answer(model, given, num_beams=2)]
    with sparsight.prune(model, "random:keep=1") as handle:
        assert torch.equal(answer(model, given), expected[0])
        assert torch.equal(answer(model, given, num_beams=2), expected[1])
        assert handle.counts == [len(one.keep[0]) for one in handle.plans]


@pytest.mark.parametrize(
    ("name", "side"),
    product(
        [(name, side) for name in BUILD for side in ("left", "right")],
        lambda name, side: (
            (name, side)
            in (("llava", "left"), ("llava", "right"), ("llava-dinov2", "right"), ("onevision", "left"), ("qwen2.5", "right"))
        ),
    ),
)
def test_item_of_a_batch_equals_the_item_alone(name, side):
    model = build(name)
    samples = [[3, Size(32, 16), 4], [9], [2, Size(16, 32, 1), 2, Size(16, 16, 2), 6], [1, Size(32, 32, 3), 1]]
    for recipe in recipes(name):
        with sparsight.prune(model, recipe) as handle, torch.no_grad():
            together = model(**inputs(name, model, samples, side))
            counts, plans = handle.counts, handle.plans
            alone = []
            for sample in samples:
                alone.append(model(**inputs(name, model, [sample])).logits[0])
                images = len(handle.counts)
                assert handle.counts == counts[:images]
                for one, other in zip(handle.plans, plans[:images], strict=True):
                    assert torch.equal(one.keep, other.keep)
                counts, plans = counts[images:], plans[images:]
            assert not counts
        for row, expected in zip(together.logits, alone, strict=True):
            # padding is where nothing of the sample is
            starts = range(row.shape[0] - expected.shape[0] + 1)
            assert min((row[i : i + expected.shape[0]] - expected).abs().max() for i in starts) < 1e-5, (
                recipe
            )  # RoPE angles are float32


@pytest.mark.parametrize("name", product(list(BUILD), lambda name: name in ("llava", "llava-next", "qwen2.5", "qwen3")))
def test_generation_of_a_batch_equals_each_alone(name):
    model = build(name)
    samples = [[3, Size(32, 16), 4], [9], [2, Size(16, 32, 1), 2, Size(16, 16, 2), 6]]
    for recipe in recipes(name)[:4]:
        with sparsight.prune(model, recipe):
            together = answer(model, inputs(name, model, samples))
            for row, sample in zip(together, samples, strict=True):
                assert torch.equal(answer(model, inputs(name, model, [sample]))[0], row), recipe
