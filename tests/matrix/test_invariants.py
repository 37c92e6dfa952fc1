"""The invariants that hold for every method on every family, in float64 with nothing short-cut."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import DEPTH, SLOTS, ZOO, fixed, images, made, outputs, prune, untouched, without_tokens

import sparsight
from sparsight.ops.reduce import representatives
from sparsight.prune import family_of

TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
EQUAL: dict[str, Any] = {"rtol": 0, "atol": 1e-12}
"""Equal: the last bits of a matrix product depend on where in memory its operands lie."""
FIRST_NORM = ("norm1", "layernorm_before", "layer_norm1", "ln_1")
SECOND_NORM = ("norm2", "layernorm_after", "layer_norm2", "ln_2")


def same(one: dict[str, Tensor], other: dict[str, Tensor], **tolerance: Any) -> None:
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], **(tolerance or EQUAL), msg=lambda m, key=key: f"{key}: {m}")


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Class and instance attributes of every module, hooks counted."""
    return {
        name: (type(module), {key: len(value) if isinstance(value, dict) else id(value) for key, value in vars(module).items()})
        for name, module in model.named_modules()
    }


def all_kept(recipe: str) -> str:
    return re.sub(r"keep=[\d.]+", "keep=1", recipe).replace("remove=3", "remove=0")


def inputs_of(model: nn.Module, run: Any) -> tuple[list[Tensor], list[Tensor]]:
    """What arrives at the two branches of every block while `run` runs: at their norms, unless those come last."""
    seen: tuple[list[Tensor], list[Tensor]] = ([], [])
    hooks = []
    for names, found in zip((FIRST_NORM, SECOND_NORM), seen, strict=True):
        for block in family_of(model).blocks:
            last = "PostNorm" in type(block).__name__
            branch = ("attn" if names is FIRST_NORM else "mlp",)
            norm = next(getattr(block, name) for name in (branch if last else names) if hasattr(block, name))
            hooks.append(norm.register_forward_pre_hook(lambda _m, args, found=found: found.append(args[0])))
    run()
    for hook in hooks:
        hook.remove()
    return seen


def expected_counts(recipe: str, patches: int) -> list[int]:
    made_recipe = sparsight.parse(recipe)
    layers = made_recipe.schedule.resolve(DEPTH)
    if made_recipe.name in SLOTS:
        patches = 16  # of the model's own image size, whatever comes in
    counts, n = [], patches
    for site in range(len(layers)):
        kept = made_recipe.schedule.count(n, site, len(layers), patches)
        if made_recipe.name in ("tome", "pitome") or "bipartite" in recipe:
            n = max(kept, n - n // 2)
        elif made_recipe.name == "tca" and kept < n:
            n = kept - 2 * (n + 1 - kept) + dict(made_recipe.params)["centres"] + 1
        else:
            n = kept + ((made_recipe.name == "evit" or "fuse_rest" in recipe) and kept < n)
        counts.append(n)
    return counts


@torch.no_grad()
def test_keep_all_is_the_untouched_model(name, recipe):
    model, x = made(name), images(name)
    with prune(model, all_kept(recipe)) as handle:
        same(outputs(name, model, x), untouched(name), **TIGHT)
        assert set(handle.counts) == {ZOO[name].patches}


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm-layerscale", "vit", "deit", "dinov2", "clip-vision"])
def test_keep_all_in_training_drops_the_same(name):
    """Drop path and dropout sit where they sat: with the same seed they draw the same."""
    model, x = copy.deepcopy(made(name)).train(), images(name, 6)
    torch.manual_seed(3)
    before = outputs(name, model, x)
    assert not torch.allclose(next(iter(before.values())), next(iter(outputs(name, model, x).values())))
    with prune(model, "col_ln:keep=1,layers=all"):
        torch.manual_seed(3)
        same(outputs(name, model, x), before, **TIGHT)


@torch.no_grad()
def test_remove_restores_everything(name, recipe):
    model, x = made(name), images(name)
    before, state, keys = untouched(name), snapshot(model), list(model.state_dict())
    pooled = without_tokens(before)
    with prune(model, recipe) as handle:
        assert list(model.state_dict()) == keys
        pruned = fixed(name, model, x)
    handle.remove()  # once more does no harm
    assert any(not torch.allclose(pruned[key], pooled[key]) for key in pooled)
    assert snapshot(model) == state
    assert list(model.state_dict()) == keys
    same(outputs(name, model, x), before)


@torch.no_grad()
def test_counts_are_the_schedules(name, recipe):
    model, x = made(name), images(name)
    prefix, patches = ZOO[name].prefix, ZOO[name].patches
    with prune(model, recipe) as handle:
        first, second = inputs_of(model, lambda: outputs(name, model, x))
        assert handle.counts == expected_counts(recipe, patches)
        assert handle.grid == (ZOO[name].image[0] // 8, ZOO[name].image[1] // 8)
        left = dict(zip(handle.layers, handle.counts, strict=True))
    n, ahead = left.get(-1, patches), sparsight.parse(recipe).where == "before"
    for block in range(DEPTH):
        n = left.get(block, n) if ahead else n
        assert first[block].shape[1] == prefix + n
        after = left.get(block, n)
        assert second[block].shape[1] == prefix + (n if "where=block" in recipe else after)
        n = after


@torch.no_grad()
def test_prefix_survives_and_survivors_are_untouched(name, recipe):
    """At the first site, rows before it are known from the untouched model, so every row after it can be told."""
    model, x = made(name), images(name)
    prefix = ZOO[name].prefix
    parsed = sparsight.parse(recipe)
    block = max(0, parsed.schedule.resolve(DEPTH)[0]) + (parsed.where == "block")
    norm = 1 if parsed.where == "attn" and "input" not in recipe else 0
    whole = inputs_of(model, lambda: outputs(name, model, x))[norm][block]
    with prune(model, recipe) as handle:
        left = inputs_of(model, lambda: outputs(name, model, x))[norm][block]
        plan, size = handle.plans[0], handle.outcomes[0].size
    torch.testing.assert_close(left[:, :prefix], whole[:, :prefix], rtol=0, atol=1e-12)
    assert plan.keep.min() >= 0
    assert plan.keep.max() < ZOO[name].patches == plan.total
    if size is not None:
        torch.testing.assert_close(size.sum(dim=1), torch.full_like(size[:, 0], plan.total))
    own, rows = plan.keep.shape[1], plan.gather(whole[:, prefix:])
    if plan.mix is not None:  # of the tokens as they are, or of normalised ones
        mixed = plan.mix @ whole[:, prefix:]
        assert left.shape == (len(whole), prefix + plan.slots, whole.shape[2])
        if parsed.name not in SLOTS or parsed.name == "sit":
            torch.testing.assert_close(left[:, prefix:], mixed, rtol=1e-9, atol=1e-9)
        return
    alone = torch.ones_like(rows[..., :1], dtype=torch.bool) if size is None else size[:, :own] == 1
    if parsed.steps[-1].function is representatives:
        alone = torch.ones_like(alone)
    torch.testing.assert_close(left[:, prefix : prefix + own].where(alone, 0), rows.where(alone, 0), rtol=0, atol=1e-12)
    if plan.merged is not None and not alone.all():
        torch.testing.assert_close(plan.fold(whole[:, prefix:]) / size, left[:, prefix:], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_item_of_a_batch_equals_item_alone(name, recipe):
    """Also with other batches in between: nothing depends on a previous call."""
    model, x = made(name), images(name, 3)
    with prune(model, recipe) as handle:
        together, plans = fixed(name, model, x), handle.plans
        for i in (2, 0):
            alone = fixed(name, model, x[i : i + 1])
            for key in together.keys() - {"logits_per_image", "logits_per_text", "text_embeds", "text_features", "logit_scale"}:
                torch.testing.assert_close(alone[key][0], together[key][i], **TIGHT)
            assert all(torch.equal(a.keep[0], t.keep[i]) for a, t in zip(handle.plans, plans, strict=True))
        same(fixed(name, model, x), together)


def test_gradients_flow_in_training(name, recipe):
    model, x = made(name), images(name)
    plain = gradients(name, model, x)
    with prune(model, recipe):
        pruned = gradients(name, model, x)
    assert plain.keys() <= pruned.keys()
    assert all(torch.isfinite(g).all() for g in pruned.values())
    first = next(
        key for key in pruned if any(part in key for part in ("patch_embed", "conv1", "embeds")) and key.endswith("weight")
    )
    assert pruned[first].abs().max() > 0


def gradients(name: str, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Gradients of a training step by parameter name; the model is left as it was."""
    torch.manual_seed(0)
    model.train()
    sum(value.square().sum() for value in fixed(name, model, x).values()).backward()
    found = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    model.eval()
    return found
