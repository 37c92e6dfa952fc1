"""LLaVA with a DINOv2 tower: pictures smaller than its positions, class attention, registers in front of the patches."""

from functools import cache

import pytest
import torch
from lvlms import IMAGE, Size, answer, build, common, inputs, llava, picture, randomised

import sparsight

GRID = (4, 4)
REGISTERS = 4
DROPPING = [
    "class_attention:tokens=5", "col_ln:tokens=5", "col_ln_rescue:tokens=5", "shannon:tokens=5", "random:tokens=5", "fastervlm:tokens=5",
    "vispruner:tokens=5", "divprune:tokens=5", "fps:tokens=5", "agile:tokens=5", "mix:tokens=5", "scope:tokens=5", "holov:tokens=5",
    "cdpruner:tokens=5,text=none", "bat:tokens=5",
]  # fmt: skip
MERGING = ["prumerge", "prumerge_plus", "visionzip:tokens=6,contextual=2", "evit:keep=0.5", "prunesid:tokens=5", "pool:tokens=4"]
INSIDE = ["fastv:layer=1,keep=0.5", "pyramiddrop:layers=1/2,keep=0.5/0.25", "sparsevlm:layers=0/1,count=rank,scale=0.5"]


@cache
def with_registers():
    torch.manual_seed(0)
    return common(randomised(llava("dinov2_with_registers", image=24)("sdpa")))


def prompt(registers: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[3, 4, 5, *[IMAGE] * (registers + 16), 6, 7]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": picture(Size(), 1, 3, 16, 16)}


def signals(model, given, consuming: bool):
    """What recipes look at, made by hand of the tower's hidden states."""
    tower = model.model.vision_tower
    states = tower(given["pixel_values"], output_hidden_states=True).hidden_states
    block, before = (tower.encoder.layer[-1], states[-2]) if consuming else (tower.encoder.layer[-2], states[-3])
    normed, prefix = block.norm1(before), states[-2].shape[1] - 16
    attention = block.attention
    heads = {name: getattr(attention, f"{name}_proj")(normed).unflatten(-1, (2, -1)).transpose(1, 2) for name in ("q", "k", "v")}
    feats = states[-2][:, prefix:]
    return {**heads, "prefix": prefix, "scale": 8**-0.5, "grid": GRID, "feats": feats, "class_token": states[-2][:, :1]}


@pytest.mark.parametrize("registers", [0, REGISTERS])
@torch.no_grad()
def test_every_method_is_that_on_the_towers_own_tensors(registers):
    model = with_registers() if registers else build("llava-dinov2")
    given, projector = prompt(registers), model.model.multi_modal_projector
    for text in DROPPING + MERGING:
        recipe = sparsight.parse(text)
        offered = signals(model, given, recipe.attention == "consuming")
        projected = projector(offered["feats"])
        done = sparsight.reduce(recipe, x=offered["feats"] if recipe.where == "encoder" else projected, **offered)
        with sparsight.prune(model, recipe) as handle:
            out = model(**given)
            assert (handle.counts, handle.grid) == (done.plan.counts, GRID), text
            assert handle.plans[0].total == 16 + registers
        expected = projector(done.x) if recipe.where == "encoder" else done.x
        assert torch.allclose(out.image_hidden_states, expected[0], atol=1e-6), text
        if text in DROPPING:
            assert torch.equal(handle_keep(model, given, recipe), done.plan.keep[0] + registers), text


def handle_keep(model, given, recipe):
    with sparsight.prune(model, recipe) as handle:
        model(**given)
        return handle.plans[0].keep[0]


@torch.no_grad()
def test_registers_stay_where_all_stays():
    model, given = with_registers(), prompt(REGISTERS)
    expected = model(**given).logits
    with sparsight.prune(model, "col_ln:keep=1") as handle:
        assert torch.equal(model(**given).logits, expected)
        assert handle.counts == [16 + REGISTERS]


@pytest.mark.parametrize("text", INSIDE)
@torch.no_grad()
def test_methods_inside_the_language_model(text):
    model = build("llava-dinov2")
    given = inputs("llava-dinov2", model, [[3, Size(), 4], [2, Size(seed=1), 2, Size(seed=2), 6]])
    alone = inputs("llava-dinov2", model, [[3, Size(), 4]])
    with sparsight.prune(model, "visionzip:tokens=8,contextual=2"), sparsight.prune(model, text) as handle:
        together = answer(model, given)
        assert sum(handle.kept_per_image()) < 24
        assert torch.equal(answer(model, alone)[0], together[0])


@torch.no_grad()
def test_pictures_of_several_sizes_have_grids_of_their_own():
    model = build("llava-dinov2")
    for side in (16, 24, 32):
        n = (side // 4) ** 2
        ids = torch.tensor([[3, *[IMAGE] * n, 6]])
        with sparsight.prune(model, "fastervlm:keep=0.5") as handle:
            model(input_ids=ids, pixel_values=picture(Size(side, side), 1, 3, side, side))
            assert (handle.counts, handle.grid) == ([n // 2], (side // 4, side // 4))
    with sparsight.prune(model, "col_ln:tokens=16"), pytest.warns(UserWarning, match="tokens=16.* so all are kept"):
        model(**prompt())


def test_other_towers_are_the_generic_familys():
    with sparsight.prune(llava("dinov3_vit")("sdpa"), "col_ln:tokens=3") as handle:
        assert handle.family.name == "transformers vision-language"
