"""What a family hands over is what its attention uses: q, k, v, scale, the bias of merged tokens, the projected patches."""

import torch
from torch.nn.functional import pad
from zoo import HEADS, ZOO, images, made, outputs

import sparsight
from sparsight.ops import reduce, schedule, select
from sparsight.prune import family_of
from sparsight.recipe import Recipe


@torch.no_grad()
def test_q_k_v_give_the_models_own_attention(name):
    """Also behind a merging site, where the logits carry log(size). Sites that choose first make the survivors' rows of it."""
    model, x, seen = made(name), images(name), {}

    def spy(q, k, v, prefix, scale):
        seen.update(q=q, k=k, v=v, prefix=prefix, scale=scale)
        return k[:, 0, prefix:, 0]

    probe = Recipe(spy, select.topk, reduce.drop, schedule.staged(0.5, (1,)))
    attention = family_of(model).blocks[1]
    attention = next(getattr(attention, n) for n in ("attn", "attention", "self_attn") if hasattr(attention, n))
    joined = next(getattr(attention, n) for n in ("norm", "ln_inner", "o_proj", "out_proj", "proj") if hasattr(attention, n))
    hook = joined.register_forward_pre_hook(lambda _m, args: seen.update(joined=args[0]))
    try:
        for first in (None, "tome:remove=5,layers=0"):
            handles = [sparsight.prune(model, recipe) for recipe in (first, probe) if recipe]
            outputs(name, model, x)
            size = handles[0].outcomes[0].size if first else torch.ones(2, ZOO[name].patches, 1)
            plan = handles[-1].plans[0]
            for handle in handles:
                handle.remove()
            bias = pad(size.squeeze(-1).log(), (ZOO[name].prefix, 0))[:, None, None]
            weights = (seen["q"] @ seen["k"].transpose(-2, -1) * seen["scale"] + bias).softmax(-1)
            assert seen["prefix"] == ZOO[name].prefix
            assert weights.shape == (2, HEADS, *[ZOO[name].prefix + size.shape[1]] * 2)
            own = (weights @ seen["v"]).transpose(1, 2).flatten(2)
            if seen["joined"].shape[1] < own.shape[1]:
                own = plan.gather(own, seen["prefix"])
            torch.testing.assert_close(own, seen["joined"], rtol=1e-6, atol=1e-6)
    finally:
        hook.remove()


@torch.no_grad()
def test_features_before_the_first_block_are_the_projected_patches(name):
    """In the order of the patches, which a random image tells apart, whatever layout the projection has."""
    model, x, seen = made(name), images(name), {}

    def spy(feats, grid):
        seen.update(feats=feats, grid=grid)
        return feats[..., 0]

    with sparsight.prune(model, Recipe(spy, select.topk, reduce.drop, schedule.staged(0.5, "input"))):
        outputs(name, model, x)
    h, w = seen["grid"]
    assert (h * 8, w * 8) == ZOO[name].image
    if hasattr(model, "embeds"):  # projects patches that are cut before, each row by row with the channels last
        expected = model.embeds.proj(x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(len(x), h * w, -1))
    else:
        expected = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(seen["feats"], expected, rtol=1e-9, atol=1e-9)
