"""The baselines without a score: a smaller picture, and averages of neighbouring patches."""

import copy
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch
import transformers
from transformers import LlavaConfig, LlavaForConditionalGeneration

import sparsight
from sparsight import PruneError
from sparsight.ops import select
from sparsight.speed.macs import macs

SMALL = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 8,
}


def vit(**more):
    torch.manual_seed(0)
    return timm.models.vision_transformer.VisionTransformer(**{**SMALL, **more}).eval()


def pixels(side=64, seed=1):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def shrunk(x, side):
    return torch.nn.functional.interpolate(x, (side, side), mode="bicubic", antialias=True)


@pytest.mark.parametrize("grid", [(16, 16), (24, 24), (1, 100), (7, 5), (40, 3), (1, 1)])
def test_cells_are_a_coarser_grid_within_the_budget(grid):
    n = grid[0] * grid[1]
    for count in range(1, n + 1):
        plan = select.cells(torch.zeros(2, n, 0), grid, count)
        assert count / 4 <= plan.slots <= count
        assert torch.equal(plan.owner.gather(1, plan.keep), torch.arange(plan.slots).expand(2, -1))
        assert (plan.keep.diff(dim=1) > 0).all()
        assert len(plan.owner[0].unique()) == plan.slots


def test_squares_are_those_of_the_specification():
    sides = [select.smaller((24, 24), count)[0] for count in (576, 288, 192, 128, 96, 64, 32, 16)]
    assert sides == [24, 16, 13, 11, 9, 8, 5, 4]


def test_sizes_are_those_of_transformers_processors_to_a_row_or_column():
    """The table starts from the picture, ours from the grid that the processor has made of it, whose sides are rounded."""
    table = json.loads((Path(__file__).parents[1] / "golden" / "newer" / "resize_sizes.json").read_text())
    assert [row["side"] for row in table["square"]] == [select.smaller((24, 24), row["K"])[0] for row in table["square"]]
    apart = []
    for row in table["qwen"]:
        grid = round(row["height"] / row["factor"]), round(row["width"] / row["factor"])
        sides = select.smaller(grid, min(row["K"], grid[0] * grid[1]))
        assert sides[0] * sides[1] <= row["K"]  # the processor's are two times more, where a side is one token
        if not row["over_budget"]:
            apart.append(max(abs(a - b // row["factor"]) for a, b in zip(sides, row["resized"], strict=True)))
    assert len(apart) == 124
    assert max(apart) == 1
    assert apart.count(0) == 113


@torch.no_grad()
def test_a_fixed_model_sees_what_one_for_dynamic_sizes_sees():
    fixed, dynamic, x = vit(), vit(dynamic_img_size=True), pixels()
    whole, before = fixed(x), [dict(vars(fixed)), dict(vars(fixed.patch_embed))]
    with sparsight.prune(fixed, "resize:keep=0.5") as handle:
        assert torch.equal(fixed(x), dynamic(shrunk(x, 40)))
        assert torch.equal(fixed.forward_features(x), dynamic.forward_features(shrunk(x, 40)))
        assert (handle.counts, handle.grid, handle.layers) == ([25], (8, 8), [-2])
        assert torch.equal(handle.sources()[0].owner[0].bincount(), handle.plans[0].owner[1].bincount())
    assert torch.equal(fixed(x), whole)
    assert [dict(vars(fixed)), dict(vars(fixed.patch_embed))] == before


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "DINOv3ViT", "SiglipVision", "CLIPVision"])
def test_transformers_models_see_the_smaller_picture(kind):
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**CONFIG)).eval()
    x = pixels()
    more = {} if kind.startswith("D") else {"interpolate_pos_encoding": True}
    wanted = model(pixel_values=shrunk(x, 40), **more).last_hidden_state
    with sparsight.prune(model, "resize:tokens=25") as handle:
        assert torch.equal(model(pixel_values=x).last_hidden_state, wanted)
        assert torch.equal(model(x).last_hidden_state, wanted)
    assert handle.counts == [25]


@torch.no_grad()
def test_other_methods_prune_the_smaller_picture():
    model, x = vit(dynamic_img_size=True), pixels()
    with sparsight.prune(model, "col_ln:keep=0.5,layers=1"):
        wanted = model(shrunk(x, 40))
    with sparsight.prune(model, "resize:keep=0.5"), sparsight.prune(model, "col_ln:keep=0.5,layers=1") as handle:
        assert torch.equal(model(x), wanted)
        assert (handle.counts, handle.grid) == ([13], (5, 5))


@torch.no_grad()
def test_threads_with_pictures_of_other_sizes():
    model = vit(dynamic_img_size=True)
    images = [pixels(side, seed) for seed, side in enumerate((64, 48, 96) * 4)]
    with sparsight.prune(model, "resize:keep=0.5") as handle:

        def answer(x):
            return model(x), handle.counts, handle.grid

        alone = [answer(x) for x in images]
        with ThreadPoolExecutor(3) as pool:
            together = list(pool.map(answer, images))
    assert [found[1:] for found in together] == [found[1:] for found in alone]
    torch.testing.assert_close([found[0] for found in together], [found[0] for found in alone])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_copies_see_the_smaller_picture_too(kind):
    """A copy, and what `torch.save` has kept; also after the original is whole again."""
    model, x, file = vit(), pixels(), io.BytesIO()
    if kind == "transformers":
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**CONFIG)).eval()
    whole = answer_of(model, x)
    with sparsight.prune(model, "resize:keep=0.5") as handle:
        small = answer_of(model, x)
        twin = copy.deepcopy(model)
        torch.save(model, file)
        assert torch.equal(answer_of(twin, x), small)
        assert handle.counts == sparsight.handle(twin).counts == [25]
    file.seek(0)
    assert torch.equal(answer_of(twin, x), small)
    assert torch.equal(answer_of(torch.load(file, weights_only=False), x), small)
    sparsight.unprune(twin)
    assert torch.equal(answer_of(twin, x), whole)
    assert not torch.allclose(small, whole)


def answer_of(model, x):
    found = model(x)
    return getattr(found, "logits", found)


def test_macs_are_those_of_the_smaller_picture():
    model = vit(dynamic_img_size=True)
    assert macs(model, "resize:keep=0.5", 64) == macs(model, None, 40)
    assert macs(model, "resize:keep=0.5", 64) < macs(model, "pool:keep=0.5,layer=0", 64) < macs(model, None, 64)


@torch.no_grad()
def test_gradients_and_half_precision_pass():
    model, x = vit(), pixels().requires_grad_()
    with sparsight.prune(model, "resize:keep=0.5"):
        with torch.enable_grad():
            model(x).sum().backward()
        assert model.bfloat16()(x.bfloat16()).isfinite().all()
    assert x.grad.abs().sum() > 0


@torch.no_grad()
def test_pool_is_average_pooling_where_the_cells_divide_the_grid():
    x = torch.randn(2, 64, 6)
    done = sparsight.reduce("pool:tokens=16", x=x, grid=(8, 8))
    wanted = torch.nn.functional.avg_pool2d(x.mT.reshape(2, 6, 8, 8), 2).flatten(2).mT
    torch.testing.assert_close(done.x, wanted)
    model = vit()
    with sparsight.prune(model, "pool:keep=0.25,layer=1") as handle:
        model(pixels())
    assert handle.counts == [16]


def test_what_cannot_be_resized_says_what_to_do():
    beit = transformers.BeitModel(transformers.BeitConfig(**CONFIG)).eval()
    with pytest.raises(PruneError, match=r"BeitModel takes images of its own size only; build it for the smaller size"):
        sparsight.prune(beit, "resize:keep=0.5")
    with pytest.raises(PruneError, match="not its tokens; give it to prune, or take pool"):
        sparsight.reduce("resize:keep=0.5", x=torch.zeros(1, 16, 4))
    with sparsight.prune(vit(), "resize:keep=0.5") as handle, pytest.raises(PruneError, match="the image is pruned already"):
        sparsight.prune(handle.model, "resize:keep=0.7")
    model = vit()
    with (
        sparsight.prune(model, "col_ln:keep=0.5,layers=0"),
        sparsight.prune(model, "pool:layer=1"),
        pytest.raises(PruneError, match="8 x 8"),
    ):
        model(pixels())


@torch.no_grad()
def test_before_a_language_model():
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config={"model_type": "clip_vision_model", **CONFIG, "image_size": 32},
            text_config={"model_type": "llama", "vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                         "num_attention_heads": 2, "num_key_value_heads": 2},
            image_token_id=19,
        )
    ).eval()  # fmt: skip
    with pytest.raises(PruneError, match="layer=1: in a vision-language model tokens leave once"):
        sparsight.prune(model, "pool:keep=0.5,layer=1")
    ids = torch.tensor([[1, *[19] * 16, 2]])
    for recipe in ("pool:keep=0.25", "pool:tokens=4", "resize:keep=0.25", "resize:tokens=4", "resize:tokens=8"):
        with sparsight.prune(model, recipe) as handle:
            assert model(input_ids=ids, pixel_values=pixels(32)[:1]).logits.shape[1] == 6
            assert handle.counts == [4]


@torch.no_grad()
@pytest.mark.parametrize("recipe", ["resize:tokens=16", "resize:tokens=19", "pool:tokens=16,layer=0", "pool:tokens=19,layer=0"])
def test_a_count_of_tokens_is_the_largest_square_in_it(recipe):
    model = vit()
    with sparsight.prune(model, recipe) as handle:
        model(pixels())
        assert handle.counts == [16]
