"""Attention that the generic family hears, and the rows of a token, against eager attention and layouts written down by hand."""

import sys

import pytest
import torch
from generic_models import KINDS, build, inputs, made, prompt
from lvlms import product

import sparsight

USUAL = ("internvl", "mistral3", "qwen2_5_omni")
SIDE = (
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_vl_moe",
    "qwen2_5_omni",
    "qwen3_omni",
    "glm4v",
    "glm46v",
    "glm_ocr",
    "videollama3",
    "glm4v_moe",
    "exaone",
    "ernie",
)
"""The patches of a token lie side by side."""
ONE = ("paligemma", "vipllava", "deepseek_vl", "janus", "ovis2", "video_llava", "llava_pixtral")
"""A token is a patch."""
POOLED = {"minicpm": (8, 16)}
"""Sides in pixels of a row at the last block, and of a token, where they are not 4 and 8. All others: 2 x 2 on the grid."""
CLASS = ("internvl", "vipllava", "qianfan_ocr", "video_llava", "llama4")
WINDOWS = ("qwen2_5_omni", "exaone")
"""Whose blocks attend within windows, but for block 1."""
DEAF = ("idefics2", "got_ocr2")
"""No attention belongs to their tokens."""
PADDED = ("gemma4", "lfm2_vl")
"""Each image has 64 rows, of which the last are padding."""


def rows_of(name: str, h: int, w: int) -> torch.Tensor:
    """The token of every row of an image."""
    row, token = POOLED.get(name, (4, 4 if name in ONE else 8))
    side = token // row
    number = torch.arange((h // token) * (w // token))
    if name in SIDE:
        found = number.repeat_interleave(4)
    else:
        found = number.view(h // token, w // token).repeat_interleave(side, 0).repeat_interleave(side, 1).flatten()
    if name in CLASS:
        found = torch.cat([found, torch.tensor([-1])] if name == "llama4" else [torch.tensor([-1]), found])
    if name in PADDED:
        found = torch.nn.functional.pad(found, (0, 64 - len(found)), value=-2)
    return found


def weights_by_row(name, model, given, monkeypatch):
    """Attention [H, R, R] of the scored block, caught in the eager function, a block of it for every call."""
    model.set_attn_implementation("eager")
    tower = model.base_model.get_encoder(modality="image")
    inside, caught = set(tower.modules()), []
    module = sys.modules[type(next(m for m in tower.modules() if "Attention" in type(m).__name__)).__module__]
    function = "vision_eager_attention_forward" if name == "llama4" else "eager_attention_forward"
    eager = getattr(module, function)

    def catch(attention, *args, **kwargs):
        out, weights = eager(attention, *args, **kwargs)
        if attention in inside:
            caught.append((attention, weights))
        return out, weights

    monkeypatch.setattr(module, function, catch)
    model(**given)
    monkeypatch.undo()
    places = list(dict.fromkeys(attention for attention, _ in caught))
    scored = places[1 if name in WINDOWS else -2 if name == "video_llava" else -1]  # its features are the last but one block's
    blocks = [one for attention, weights in caught if attention is scored for one in weights]
    rows = sum(one.shape[-1] for one in blocks)
    whole, first = torch.zeros(blocks[0].shape[0], rows, rows), 0
    for one in blocks:
        last = first + one.shape[-1]
        whole[:, first:last, first:last] = one
        first = last
    return whole


@pytest.mark.parametrize("name", product([name for name in KINDS if name not in DEAF], lambda name: name in USUAL))
@torch.no_grad()
def test_scores_are_those_of_eager_attention(name, monkeypatch):
    samples = [prompt(name, 3, "image", 4, "image", 5), prompt(name, 2, "image", 6)]
    given, model = inputs(name, samples), build(name)
    weights = weights_by_row(name, model, given, monkeypatch)
    tokens = [rows_of(name, *item) for sample in samples for item in sample if isinstance(item, tuple)]
    if name in WINDOWS:
        order = sys.modules[type(model.model.visual).__module__].get_vision_window_index
        order = order(given["image_grid_thw"], spatial_merge_size=2, window_size=16, patch_size=4)[0]
    expected, firsts = [], [0, *torch.tensor([len(one) for one in tokens]).cumsum(0).tolist()]
    for i, own in enumerate(tokens):
        mine = slice(firsts[i], firsts[i + 1])
        if name in WINDOWS:  # its windows take the tokens in another order, image by image
            count = int(own.max()) + 1
            before = firsts[i] // 4
            own = (order[before : before + count] - before).repeat_interleave(4)
        block = weights[:, mine, mine][:, own > -2][:, :, own > -2]
        own = own[own > -2]
        score = block.mean(dim=0)[own >= 0].mean(dim=0)
        class_row = block[:, -1 if name == "llama4" else 0].mean(dim=0)
        expected.append([torch.zeros(int(own.max()) + 1).index_add(0, own[own >= 0], one[own >= 0]) for one in (score, class_row)])
    for recipe, which in (("fastervlm:keep=0.5,score=column_mean", 0), *([("fastervlm:keep=0.5", 1)] if name in CLASS else [])):
        model = build(name)
        config = model.config.to_dict()
        with sparsight.prune(model, recipe) as handle:
            model(**given)
            for score, plan, both in zip(handle.scores, handle.plans, expected, strict=True):
                assert torch.allclose(score[0], both[which], atol=1e-5)
                best = both[which].topk(len(both[which]) // 2).indices.sort().values
                assert torch.equal(plan.keep[0], best) or both[which].sort().values.diff().min() < 1e-6
        assert model.config.to_dict() == config


@pytest.mark.parametrize("name", product([name for name in KINDS if name not in DEAF], lambda name: name == "qwen3_vl_moe"))
@torch.no_grad()
def test_listening_changes_nothing(name):
    model = build(name)
    given = inputs(name, [prompt(name, 3, "image", 4, "image", 5), prompt(name, 2, "image", 6)])
    expected = model(**given).logits
    state = {path: dict(vars(module)) for path, module in model.named_modules()}
    handle = sparsight.prune(model, "col_ln:keep=1")
    assert torch.equal(model(**given).logits, expected)
    assert handle.counts == [plan.total for plan in handle.plans]
    handle.remove()
    assert {path: set(vars(module)) for path, module in model.named_modules()} == {path: set(old) for path, old in state.items()}
    assert all(vars(module)["config"] is state[path]["config"] for path, module in model.named_modules() if "config" in state[path])
    assert torch.equal(model(**given).logits, expected)
    assert made(name) is not None
