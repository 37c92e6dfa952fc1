"""Budgets of images that come in tiles, and the separators between their tokens."""

import pytest
import torch
from generic_models import BREAK, IMAGE, OVERVIEW, build, inputs
from lvlms import product

import sparsight
from sparsight import PruneError
from sparsight.vlms.generic import image_ends

TILE = (32, 32)


def tiled(name):
    """A prompt with an image of three tiles and one of a single tile, and how many tokens stand between its tiles."""
    between = {"internvl": 0, "qianfan_ocr": 0, "cohere2_vision": 1, "lfm2_vl": 1}.get(name, 2)
    gap = [between] if between else []
    given = inputs(name, [[3, TILE, *gap, TILE, *gap, TILE, 6, TILE, 5]])
    ids = given["input_ids"]
    for column in (ids[0] == OVERVIEW).nonzero().squeeze(1)[:2]:
        ids[0, column] = 86  # the first two are no overviews
    return given, between


@pytest.mark.parametrize(
    "name",
    product(
        ["internvl", "qianfan_ocr", "smolvlm", "idefics3", "aya_vision", "cohere2_vision", "lfm2_vl"],
        lambda name: name == "smolvlm",
    ),
)
@torch.no_grad()
def test_a_budget_is_for_the_whole_image(name):
    model = build(name)
    given, between = tiled(name)
    length = given["input_ids"].shape[1]
    for recipe in ("divprune:tokens=9", "col_ln:tokens=9"):
        with sparsight.prune(model, recipe) as handle:
            out = model(**given)
            assert handle.counts == [9, 9]
            assert [plan.total for plan in handle.plans] == [48, 16]
            assert out.logits.shape[1] == length - 48 - 16 + 18
            if recipe.startswith("col_ln"):
                assert torch.bincount(handle.plans[0].keep[0] // 16).tolist() == [3, 3, 3]
        with sparsight.prune(model, f"{recipe},per_tile=true") as handle:
            model(**given)
            assert handle.counts == [27, 9]
        with sparsight.prune(model, f"{recipe},separators=drop"):
            marks = 2 * (between + (name in ("smolvlm", "idefics3", "aya_vision")))
            assert model(**given).logits.shape[1] == out.logits.shape[1] - marks
            full = model.generate(**given, max_new_tokens=3, do_sample=False)
            assert torch.equal(full[:, :-3], given["input_ids"])
            assert torch.equal(model.generate(**given, max_new_tokens=3, do_sample=False, use_cache=False), full)


@torch.no_grad()
def test_row_breaks_are_dropped_where_asked():
    model = build("mistral3")
    given = inputs("mistral3", [[3, (32, 32), 4, (16, 32), 5], [2, (24, 16), 6]])
    rows = [4, 2, 3]
    expected = model(**given).logits
    with sparsight.prune(model, "divprune:keep=1,separators=drop"):
        assert torch.equal(model(**given).logits, expected)
    ids = given["input_ids"][0]
    with sparsight.prune(model, "divprune:keep=0.5,separators=drop") as handle:
        alone = inputs("mistral3", [[3, (32, 32), 4, (16, 32), 5]])
        got = model(**alone).logits
        assert got.shape[1] == len(ids) - 12 - sum(rows[:2]) + 2
        keeps = [plan.keep[0] for plan in handle.plans]
    stays, columns = ids != IMAGE, (ids == IMAGE).nonzero().squeeze(1)
    for own, keep in zip(columns.split([16, 8]), keeps, strict=True):
        inside = torch.arange(int(own[0]), int(own[-1]))
        stays[inside[ids[inside] == BREAK]] = False
        stays[own[keep]] = True
    output = model.model.get_image_features(alone["pixel_values"], alone["image_sizes"], return_dict=True)
    output.pooler_output = [tokens[keep] for tokens, keep in zip(output.pooler_output, keeps, strict=True)]
    assert torch.equal(model(input_ids=ids[stays].unsqueeze(0), mm_encoder_outputs={"image": output}).logits, got)


def test_where_images_end():
    def places(*columns):
        return [(0, torch.tensor(one)) for one in columns]

    ids = torch.tensor([[1, 9, 5, 5, 8, 5, 5, 1, 8, 5, 5]])
    spans = places([2, 3], [5, 6], [9, 10])
    assert image_ends("run", ids, spans) == [0, 1, 2]
    assert image_ends("mark", ids, spans) == [1, 2]
    assert image_ends("overview", ids, spans) == [1, 2]
    assert image_ends("run", ids, places([2, 3], [4, 5], [9, 10])) == [1, 2]


def test_separators_elsewhere_are_refused():
    assert str(sparsight.parse("divprune:keep=0.5,separators=drop")) == "divprune:keep=0.5,separators=drop"
    with pytest.raises(PruneError, match="separators="):
        sparsight.prune(build("qwen3_vl_moe"), "fastv:layer=1,keep=0.5,separators=drop")
