"""Bad input of methods inside the language model, alone and behind a method before it: one PruneError, before the decoder runs."""

from functools import partial

import pytest
import torch
from lvlms import IMAGE, Size, answer, build, inputs

import sparsight
from sparsight import PruneError

SAMPLES = [[3, Size(), 4], [2, Size(seed=1), 3, Size(seed=2), 2]]
INNER = ("fastv:layer=1,tokens={},fewer=error", "pyramiddrop:layers=1/2,tokens={}/1,fewer=error")
FAMILIES = ("llava", "onevision", "qwen2.5")


def ran(model):
    """Counts the runs of the language model's layers."""
    calls = []
    model.model.language_model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("recipe", INNER)
@torch.no_grad()
def test_more_tokens_than_the_prompt_has(name, recipe):
    model = build(name)
    calls = ran(model)
    with sparsight.prune(model, recipe.format(200)) as handle:
        for call in (model, partial(model.generate, max_new_tokens=2)):
            with pytest.raises(PruneError, match=r"tokens=200 is more than there are: \d+ visual tokens reach .* use keep="):
                call(**inputs(name, model, SAMPLES))
        assert not calls
        assert handle.plans == []
        text = inputs(name, model, [[5]])
        assert answer(model, text).shape == (1, 6)
    assert torch.equal(answer(model, text), answer(build(name), text))


@torch.no_grad()
def test_the_count_is_per_image():
    """Two images of 16 tokens: 16 of each can be asked for, 17 cannot."""
    model = build("llava")
    given = inputs("llava", model, SAMPLES[1:])
    with sparsight.prune(model, "fastv:layer=1,tokens=16") as handle:
        model(**given)
        assert handle.counts == [32]
    with (
        sparsight.prune(model, "fastv:layer=1,tokens=17,fewer=error"),
        pytest.raises(PruneError, match=r"per image .* 32 visual tokens in 2 images"),
    ):
        model(**given)


@torch.no_grad()
def test_counts_by_rank_ask_for_no_number():
    model = build("llava")
    with sparsight.prune(model, "sparsevlm:layers=0/1,count=rank,tokens=200") as handle:
        model(**inputs("llava", model, SAMPLES))
        assert len(handle.counts) == 2


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_images_and_placeholders_that_differ(name):
    """The untouched model would read placeholders without images as words."""
    model = build(name)
    given = inputs(name, model, SAMPLES)
    calls = ran(model)
    grid = "image_grid_thw" if name.startswith("qwen") else "image_sizes"
    short = given["input_ids"].clone()
    short[0, (short[0] == IMAGE).nonzero()[0]] = 5
    bad = {
        "are not given": {"pixel_values": None, grid: None},
        "do not match.*as many images as the prompt": {"input_ids": short},
        "empty list of images": {"pixel_values": given["pixel_values"][:0], grid: given[grid][:0] if grid in given else None},
    }
    with sparsight.prune(model, "fastv:layer=1,keep=0.5"):
        for says, change in bad.items():
            call = {key: value for key, value in {**given, **change}.items() if value is not None}
            for function in (model, partial(model.generate, max_new_tokens=2)):
                with pytest.raises(PruneError, match=says):
                    function(**call)
        assert not calls
        model(**given)
        assert calls
    assert "get_placeholder_mask" not in vars(model.model)


@pytest.mark.parametrize(
    "inner", ["fastv:layer=1,tokens=3", "pyramiddrop:layers=1/2,tokens=3/2", "sparsevlm:layers=0/1,count=rank"]
)
@pytest.mark.parametrize("name", ["llava", "qwen2.5"])
@torch.no_grad()
def test_behind_a_method_before_the_language_model(name, inner):
    """The inner method meets the tokens that the outer one left, sample by sample."""
    model = build(name)
    size = Size(h=32, w=32) if name == "qwen2.5" else Size()
    samples = [[3, size, 4], [2, size, 3]]
    given = inputs(name, model, samples)
    before = answer(model, given)
    outer = sparsight.prune(model, "vispruner:tokens=6,score=col_ln")
    handle = sparsight.prune(model, inner)
    reply = answer(model, given)
    assert outer.counts == [6, 6]
    assert handle.plans[0].total == 6
    for i, sample in enumerate(samples):
        assert torch.equal(answer(model, inputs(name, model, [sample]))[0], reply[i])
    assert torch.equal(answer(model, given, use_cache=False), reply)
    handle.remove()
    outer.remove()
    assert torch.equal(answer(model, given), before)


@torch.no_grad()
def test_the_inner_count_is_of_what_the_outer_method_left():
    model = build("llava")
    with sparsight.prune(model, "vispruner:tokens=6"), sparsight.prune(model, "fastv:layer=1,tokens=7,fewer=error"):
        with pytest.raises(PruneError, match="tokens=7 is more than there are: 6 visual tokens"):
            model(**inputs("llava", model, SAMPLES[:1]))
        with pytest.raises(PruneError, match="12 visual tokens in 2 images"):
            model(**inputs("llava", model, SAMPLES[1:]))


def test_recipes_that_cannot_work():
    cases = [
        ("fastv:layer=0", "layer 0 is out of range"),
        ("fastv:layer=3", "layer 3 is out of range: the language model has 3 layers"),
        ("sparsevlm:layers=0/1/2", "out of range"),
        ("visionzip:tokens=10,contextual=10", "needs 11 or more"),
        ("vispruner:tokens=17", "more than the 16 tokens"),
        ("prumerge:tokens=17", "more than the 16 tokens"),
        ("fps:tokens=0", "at least 1"),
    ]
    model = build("llava")
    for recipe, says in cases:
        with pytest.raises(PruneError, match=says):
            sparsight.prune(model, recipe)
    assert "forward" not in vars(model)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_the_wrong_kind_of_model():
    from transformers import BertConfig, BertModel

    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 32}
    with pytest.raises(PruneError, match="BertModel is no known family"):
        sparsight.prune(BertModel(BertConfig(**tiny)), "vispruner:tokens=3")
    with pytest.raises(PruneError, match="no decoder that is known"):
        sparsight.prune(BertModel(BertConfig(**tiny)), "fastv:layer=1")
    with pytest.raises(PruneError, match="no decoder that is known"):
        sparsight.prune(build("llava").model.vision_tower, "fastv:layer=1")
