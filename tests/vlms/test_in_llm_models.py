"""Methods inside the language models of all vision-language models whose language model is known."""

import pytest
import torch
from in_llm_models import MODELS, build
from lvlms import Size, answer, inputs, product
from lvlms import build as build_lvlm

import sparsight
from sparsight import PruneError
from sparsight.vlms.sequence import add_features

RECIPES = ["fastv:layer=2,keep=0.5", "pyramiddrop:layers=1/3,keep=0.5/0.25", "sparsevlm:layers=0/1,count=rank,scale=0.5"]


RARE = ("lighton_ocr", "qianfan_ocr", "ovis2", "got_ocr2", "deepseek_vl", "vipllava")


@pytest.mark.parametrize("name", product(list(MODELS), lambda name: name not in RARE))
@torch.no_grad()
def test_every_model(name):
    model, given = build(name)
    placeholders = int((given["input_ids"] >= 90).sum())
    plain = model(**given).logits
    with sparsight.prune(model, "fastv:layer=2,keep=1"):
        assert torch.equal(model(**given).logits, plain)
    for recipe in RECIPES:
        with sparsight.prune(model, recipe) as handle:
            short = model(**given).logits
            assert handle.counts[-1] < placeholders == handle.plans[0].total
            assert short.shape[1] == plain.shape[1] - placeholders + handle.counts[-1]
            out = [model.generate(**given, max_new_tokens=3, do_sample=False, use_cache=cache) for cache in (True, False)]
            assert torch.equal(*out)
            assert torch.equal(out[0][:, : plain.shape[1]], given["input_ids"])
    assert torch.equal(model(**given).logits, plain)


@pytest.mark.parametrize(
    "recipe", ["fastv:layer=1,keep=0.5", "pyramiddrop:layers=1/2,keep=0.5/0.25", "sparsevlm:layers=0/1,count=rank"]
)
@torch.no_grad()
def test_qwen3_vl(recipe):
    """Features of the image are added behind the first layers, to the tokens that are left there."""
    model = build_lvlm("qwen3")
    samples = [[3, Size(32, 16), 4], [2, Size(16, 32, 1), 2, Size(32, 32, 2), 6]]
    given = inputs("qwen3", model, samples)
    plain = model(**given).logits
    with sparsight.prune(model, "fastv:layer=1,keep=1"):
        assert torch.equal(model(**given).logits, plain)
    with sparsight.prune(model, recipe):
        reply = answer(model, given)
        assert torch.equal(answer(model, given, use_cache=False), reply)
        for i, sample in enumerate(samples):
            assert torch.equal(answer(model, inputs("qwen3", model, [sample]))[0], reply[i])


def test_features_reach_the_tokens_that_are_left():
    model = build_lvlm("qwen3").model.language_model
    hidden, marked = torch.randn(2, 6, 32).double(), torch.tensor([[0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 1, 0]]).bool()
    features, index = torch.randn(5, 32).double(), torch.tensor([[0, 2, 3, 5], [-1, 0, 1, 4]])
    full = model._deepstack_process(hidden, marked, features)
    rows = index.clamp(min=0).unsqueeze(-1).expand(-1, -1, 32)
    got = add_features(hidden.gather(1, rows), index, marked, features)
    assert torch.equal(got[index >= 0], full.gather(1, rows)[index >= 0])


@torch.no_grad()
def test_embeddings_with_images_merged_in_are_refused():
    model = build_lvlm("llava")
    given, seen = inputs("llava", model, [[3, Size(16, 16), 4]]), []
    hook = model.model.language_model.register_forward_pre_hook(lambda _m, _a, k: seen.append(k["inputs_embeds"]), with_kwargs=True)
    plain = model(**given).logits
    hook.remove()
    with sparsight.prune(model, "fastv:layer=1,keep=0.5") as handle:
        model(**given)
        for call in (model, model.model, model.generate):
            with pytest.raises(PruneError, match="inputs_embeds without placeholders"):
                call(inputs_embeds=seen[0])
            assert handle.counts == []
    with sparsight.prune(model, "fastv:layer=1,keep=0.5", visual=slice(3, 19)) as handle:
        model(inputs_embeds=seen[0])
        assert handle.counts == [8]
    assert torch.equal(model(inputs_embeds=seen[0]).logits, plain)
