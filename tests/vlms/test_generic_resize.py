"""`resize` in the generic family: the answers are those of the untouched model on pictures made smaller by hand."""

import pytest
import torch
from generic_models import IMAGE, KINDS, build, inputs, prompt
from lvlms import product
from test_generic import answer

import sparsight
from sparsight import PruneError
from sparsight.ops import select

UNIT = {"paligemma": 4, "vipllava": 4, "deepseek_vl": 4, "janus": 4, "video_llava": 4, "llava_pixtral": 4, "internvl": 8, "qianfan_ocr": 8,
        "aya_vision": 8, "cohere2_vision": 8, "mistral3": 8, "lighton_ocr": 8, "smolvlm": 8, "idefics3": 8}  # fmt: skip
"""Pixels of a token's side."""
ASKED = ("paligemma", "vipllava", "deepseek_vl", "janus", "video_llava", "aya_vision", "cohere2_vision")
ROWS = ("smolvlm", "idefics3")
USUAL = ("paligemma", "mistral3", "smolvlm")
REFUSED = {"gemma3": "same number of tokens of every picture", "gemma4": "padded rows", "lfm2_vl": "padded rows", "ovis2": "position table",
           "llama4": "rotary positions", "molmo2": "which patches make a token", "got_ocr2": "one size", "minicpm": "padded rows"}  # fmt: skip
RECIPE = "resize:keep=0.6"


def shrunk(picture, h, w):
    return torch.nn.functional.interpolate(picture, (h, w), mode="bicubic", antialias=True)


def by_hand(name, model, given, keeps, sides):
    """Logits of one sample whose images, all of one size, were made smaller by hand; their tokens stand at the places that are kept."""
    core, ids = model.base_model, given["input_ids"]
    pixels = next(key for key in given if key.startswith("pixel_values"))
    h, w = (side * UNIT[name] for side in sides)
    whole = given[pixels]
    small = shrunk(whole.flatten(0, -4), h, w).view(*whole.shape[:-2], h, w)
    sizes = {"image_sizes": torch.tensor([[h, w]] * len(small))} if "image_sizes" in given else {}
    asked = {"interpolate_pos_encoding": True} if name in ASKED else {}
    output = core.get_image_features(**{pixels: small}, **sizes, **asked, return_dict=True)
    features = list(output.pooler_output)
    if name in ROWS:
        features = list(torch.cat(features).view(len(keeps), -1, features[0].shape[-1]))
    assert [len(one) for one in features] == [len(keep) for keep in keeps]
    tensor = isinstance(output.pooler_output, torch.Tensor)
    output.pooler_output = torch.cat(features).unsqueeze(1) if tensor else features
    stays, columns = ids[0] != IMAGE, (ids[0] == IMAGE).nonzero().squeeze(1)
    for own, keep in zip(columns.chunk(len(keeps)), keeps, strict=True):
        stays[own[keep]] = True
    along = {key: value[:, stays] for key, value in given.items() if value.shape == ids.shape}
    return model(**along, mm_encoder_outputs={"image": output}).logits


@pytest.mark.parametrize("name", product(list(UNIT), lambda name: name in USUAL))
@torch.no_grad()
def test_the_model_sees_the_smaller_picture(name):
    model, size = build(name), KINDS[name]().sizes[0]
    given = inputs(name, [prompt(name, 3, "image", 4)])
    plain = model(**given).logits
    with sparsight.prune(model, "resize:keep=1"):
        assert torch.equal(model(**given).logits, plain)
    with sparsight.prune(model, RECIPE) as handle:
        got, keeps = model(**given).logits, [plan.keep[0] for plan in handle.plans]
        h, w = given["image_sizes"][0].tolist() if "image_sizes" in given else size
        grid = h // UNIT[name], w // UNIT[name]
        sides = select.smaller(grid, handle.recipe.schedule.count(grid[0] * grid[1], 0, 1))
        assert handle.grid == grid
        assert handle.counts == [sides[0] * sides[1]]
        assert sides != grid
        samples = [prompt(name, 3, "image", 4, "image", 5), prompt(name, 2, "image", 6), [7]]
        together, said = model(**inputs(name, samples)).logits, answer(model, inputs(name, samples))
        for i, sample in enumerate(samples):
            alone = model(**inputs(name, [sample])).logits[0]
            assert (together[i, -len(alone) :] - alone).abs().max() < 2e-4
            assert torch.equal(answer(model, inputs(name, [sample]))[0], said[i])
    assert torch.equal(model(**given).logits, plain)
    torch.testing.assert_close(got, by_hand(name, model, given, keeps, sides), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", product(list(REFUSED), lambda name: name in ("gemma3", "got_ocr2")))
def test_refused_with_the_reason(name):
    with pytest.raises(PruneError, match=REFUSED[name]):
        sparsight.prune(build(name), RECIPE)


def test_tokens_of_tiles_and_class_tokens_are_refused_with_what_to_do():
    model = build("internvl")
    with pytest.raises(PruneError, match="per_tile=true"):
        sparsight.prune(model, "resize:tokens=4")
    sparsight.prune(model, "resize:tokens=4,per_tile=true").remove()
    with pytest.raises(PruneError, match="vispruner"):
        sparsight.prune(model, "visionzip:tokens=6")
