"""The generic family on every class of its table: nothing changes where all is kept, and what is kept is what is done by hand."""

import inspect
from typing import Any

import pytest
import torch
from generic_models import IMAGE, KINDS, build, inputs, prompt
from lvlms import product

import sparsight

USUAL = ("gemma3", "qwen3_vl_moe", "smolvlm")
SAMPLES = [(3, "image", 4, "image", 5), (2, "image", 6), (7,)]
RECIPES = ["divprune:keep=0.5", "random:keep=0.5"]


def samples_of(name):
    return [prompt(name, *places) for places in SAMPLES]


def usual(name, *_):
    return name in USUAL


def answer(model, given, new: int = 4, **options) -> torch.Tensor:
    out = model.generate(**{"do_sample": False, "max_new_tokens": new, "return_dict_in_generate": True, **options}, **given)
    width = given["input_ids"].shape[1]
    assert torch.equal(
        out.sequences[:, :width], given["input_ids"].repeat_interleave(len(out.sequences) // len(given["input_ids"]), 0)
    )
    return out.sequences[:, width:]


def by_hand(model, given: dict[str, Any], keeps: list[torch.Tensor], without: str = "") -> torch.Tensor:
    """Logits of one sample whose images' features, ids and whatever runs along them were cut by hand. without: what was forgotten."""
    core, ids = model.base_model, given["input_ids"]
    core = core if hasattr(core, "get_image_features") else model
    takes = inspect.signature(core.get_image_features).parameters
    output = core.get_image_features(**{k: v for k, v in given.items() if k in takes}, return_dict=True)
    name = "last_hidden_state" if core is model else "pooler_output"  # Llama 4 projects later
    features, extras = output[name], getattr(output, "deepstack_features", None)
    if type(model).__name__.startswith(("Idefics", "SmolVLM")):  # the images of a batch row in one entry
        features = list(torch.cat(list(features)).view(len(keeps), -1, features[0].shape[-1]))
    kept = [tokens[keep] for tokens, keep in zip(features, keeps, strict=True)]
    output[name] = torch.cat(kept).unsqueeze(1) if isinstance(output[name], torch.Tensor) else kept
    if extras:
        output.deepstack_features = [
            [one[keep] * (without != "deepstack") for one, keep in zip(layer, keeps, strict=True)] for layer in extras
        ]
    stays, columns = ids[0] != IMAGE, (ids[0] == IMAGE).nonzero().squeeze(1)
    for own, keep in zip(columns.split([len(tokens) for tokens in features]), keeps, strict=True):
        stays[own[keep]] = True
    along = {k: v[:, stays] for k, v in given.items() if v.shape == ids.shape and not (without == "types" and "type_ids" in k)}
    rest = {k: v for k, v in given.items() if v.shape != ids.shape and k not in takes}
    if hasattr(core, "get_rope_index") and without != "positions":
        rope = inspect.signature(core.get_rope_index).parameters
        position, _ = core.get_rope_index(**{k: v for k, v in given.items() if k in rope})
        along["position_ids"] = position[..., stays]
    return model(**along, **rest, mm_encoder_outputs={"image": output}).logits


@pytest.mark.parametrize("name", product(list(KINDS), usual))
@torch.no_grad()
def test_keeping_all_is_the_untouched_model(name):
    model = build(name)
    given = inputs(name, samples_of(name))
    expected, said = model(**given).logits, answer(model, given)
    for recipe in ("random:keep=1", "divprune:keep=1"):
        with sparsight.prune(model, recipe) as handle:
            assert torch.equal(model(**given).logits, expected)
            assert handle.counts == [plan.total for plan in handle.plans]
            assert len(handle.counts) == 3
            assert torch.equal(answer(model, given), said)
    assert torch.equal(model(**given).logits, expected)


@pytest.mark.parametrize("name", product(list(KINDS), lambda name: name in ("gemma3", "qwen3_vl_moe")))
@torch.no_grad()
def test_half_is_what_is_done_by_hand(name):
    model = build(name)
    given = inputs(name, samples_of(name)[:1])
    for recipe in RECIPES:
        with sparsight.prune(model, recipe) as handle:
            got, keeps = model(**given).logits, [plan.keep[0] for plan in handle.plans]
            assert all(abs(plan.total - 2 * len(keep)) <= 1 for plan, keep in zip(handle.plans, keeps, strict=True))
        assert torch.equal(got, by_hand(model, given, keeps))


@pytest.mark.parametrize(
    ("name", "without"),
    product(
        [("gemma3", "types"), ("gemma4", "types"), ("molmo2", "types"), ("qwen3_vl_moe", "deepstack"), ("qwen3_omni", "deepstack"),
         ("qwen3_5", "positions"), ("qwen3_vl_moe", "positions"), ("glm4v", "positions")],
        lambda name, without: (name, without) in (("gemma3", "types"), ("qwen3_vl_moe", "deepstack"), ("qwen3_5", "positions")),
    ),
)  # fmt: skip
@torch.no_grad()
def test_what_does_not_follow_is_seen(name, without):
    """The reference by hand is another one if types, DeepStack features or positions are forgotten."""
    model = build(name)
    given = inputs(name, samples_of(name)[:1])
    with sparsight.prune(model, RECIPES[0]) as handle:
        got, keeps = model(**given).logits, [plan.keep[0] for plan in handle.plans]
    assert (got - by_hand(model, given, keeps, without)).abs().max() > 0.01


@pytest.mark.parametrize("name", product(list(KINDS), lambda name: name in ("gemma3", "qwen3_vl_moe")))
@torch.no_grad()
def test_a_batch_equals_each_alone(name):
    model = build(name)
    samples = samples_of(name)
    for recipe in RECIPES:
        with sparsight.prune(model, recipe):
            together = model(**inputs(name, samples)).logits
            said = answer(model, inputs(name, samples))
            several = (
                {"num_beams": 1} if name == "llama4" else {"num_beams": 2, "num_return_sequences": 2}
            )  # its beams fail unpruned, too
            beams = answer(model, inputs(name, samples), **several)
            for i, sample in enumerate(samples):
                given = inputs(name, [sample])
                alone = model(**given).logits[0]
                assert (together[i, -len(alone) :] - alone).abs().max() < 2e-4
                assert torch.equal(answer(model, given)[0], said[i])
                each = several.get("num_return_sequences", 1)
                assert torch.equal(answer(model, given, **several), beams[each * i : each * (i + 1)])


@pytest.mark.parametrize(
    "name", product([name for name in KINDS if name != "ernie"], lambda name: name in ("smolvlm",))
)  # fails unpruned without a cache
@torch.no_grad()
def test_generation_with_cache_equals_without(name):
    model = build(name)
    given = inputs(name, samples_of(name)[:2])
    with sparsight.prune(model, RECIPES[0]):
        assert torch.equal(answer(model, given), answer(model, given, use_cache=False))


def extended(given, ids, more):
    """A prompt with further ids behind it, and the images of what follows."""
    out = {**given}
    for name, value in given.items():
        if value.shape == given["input_ids"].shape:
            tail = (
                ids
                if name == "input_ids"
                else more.get(name, (torch.ones_like if name == "attention_mask" else torch.zeros_like)(ids))
            )
            out[name] = torch.cat([value, tail.to(value)], dim=1)
    return out


@pytest.mark.parametrize("name", product([name for name in KINDS if name != "paligemma"], lambda name: name in ("qwen3_vl_moe",)))
@torch.no_grad()
def test_a_chat_with_a_new_image_equals_one_from_the_start(name):
    """The second turn over the first one's cache, with the new picture alone; a prefix mask (PaliGemma) has no second turn."""
    model = build(name)
    samples = samples_of(name)
    first, second = inputs(name, samples[:1]), inputs(name, samples[1:2])
    both = inputs(name, [[*samples[0], *samples[1]]])
    with sparsight.prune(model, RECIPES[0]) as handle:
        out = model.generate(**first, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        said = extended(extended(first, out.sequences[:, -3:], {}), second["input_ids"], second)
        pictures = {k: v for k, v in second.items() if v.shape != second["input_ids"].shape}
        cached = answer(model, {**said, **pictures}, past_key_values=out.past_key_values)
        assert len(handle.counts) == 1
        merged = joined(name, said, first, second, both)
        assert torch.equal(cached, answer(model, merged))


def joined(name, said, first, second, both):
    """The prompt of both turns with the pictures of both."""
    out = {**said}
    for key in both:
        if both[key].shape != both["input_ids"].shape:
            one, other = first[key], second[key]
            dim = {"smolvlm": 1, "idefics3": 1, "idefics2": 1}.get(name, -1 if key == "pixel_values" and name == "minicpm" else 0)
            if key == "pixel_values" and name in ("mistral3", "lighton_ocr", "llava_pixtral"):
                size = [max(a, b) for a, b in zip(one.shape[-2:], other.shape[-2:], strict=True)]
                one, other = (
                    torch.nn.functional.pad(v, (0, size[1] - v.shape[-1], 0, size[0] - v.shape[-2])) for v in (one, other)
                )
            if key == "image_token_pooling":
                other = other + 64 * len(first["image_grids"])
            out[key] = torch.cat([one, other], dim=dim)
    return out


IN_LLM = ("qwen3_vl_moe", "qwen2_5_omni", "qwen3_omni", "paddleocr_vl", "internvl", "mistral3", "smolvlm", "idefics3", "ovis2", "videollama3",
          "vipllava", "deepseek_vl", "janus", "lighton_ocr", "qianfan_ocr", "idefics2", "got_ocr2", "video_llava", "llava_pixtral")  # fmt: skip
"""Decoders beyond those of `test_decoder_matrix`."""


@pytest.mark.parametrize("name", product(list(IN_LLM), lambda name: name == "qwen3_vl_moe"))
@torch.no_grad()
def test_methods_inside_the_language_model(name):
    model = build(name)
    samples = samples_of(name)
    given = inputs(name, samples)
    expected = model(**given).logits
    with sparsight.prune(model, "fastv:layer=2,keep=1"):
        assert torch.equal(model(**given).logits, expected)
    for recipe in ("fastv:layer=1,keep=0.5", "pyramiddrop:layers=1/2,keep=0.5/0.25"):
        with sparsight.prune(model, recipe) as handle:
            said = answer(model, given)
            assert min(plan.total for plan in handle.plans) > handle.plans[-1].keep.shape[1] > 0
            assert torch.equal(answer(model, given, use_cache=False), said)
            for i, sample in enumerate(samples):
                assert torch.equal(answer(model, inputs(name, [sample]))[0], said[i])
    with sparsight.prune(model, "divprune:keep=0.5"), sparsight.prune(model, "fastv:layer=1,keep=0.5") as handle:
        assert torch.equal(answer(model, given, use_cache=False), answer(model, given))
        assert 3 * sum(handle.kept_per_image()) < (given["input_ids"] == IMAGE).sum()
