"""Handles: several on one model, copies of pruned models, and what is refused."""

import copy
import io
import itertools

import pytest
import torch
from zoo import ZOO, fixed, images, made, needs, outputs

import sparsight
from sparsight import PruneError

LIKELY = ("timm-token-avg", "timm-distilled", "vit", "dinov2-registers", "clip-classifier")
STACK = (
    "tome:remove=3,layers=0",
    "evit:keep=0.7,layers=1",
    "col_ln:keep=0.6,layers=2,where=block",
    "similarity:keep=0.8,layers=input",
)


@torch.no_grad()
@pytest.mark.parametrize("name", LIKELY[-3:])
def test_handles_stack_and_unstack_in_any_order(name):
    """Whatever the order of coming and going, the model is that of the handles that are there."""
    model, x = made(name), images(name)
    alone = {}
    for present in [(), *itertools.chain.from_iterable(itertools.combinations(range(4), n) for n in (1, 2, 3, 4))]:
        handles = [sparsight.prune(model, STACK[i]) for i in present]
        alone[present] = fixed(name, model, x)
        for handle in handles:
            handle.remove()
    for order in ((2, 0, 3, 1), (3, 2, 1, 0)):
        handles = {i: sparsight.prune(model, STACK[i]) for i in order}
        for gone in (0, 3, 2, 1):
            there = tuple(sorted(handles))
            torch.testing.assert_close(fixed(name, model, x), alone[there], rtol=0, atol=1e-12)
            assert all(len(handle.plans) == 1 for handle in handles.values())
            handles.pop(gone).remove()
    torch.testing.assert_close(fixed(name, model, x), alone[()], rtol=0, atol=1e-12)
    assert len({tuple(next(iter(found.values())).flatten().tolist()) for found in alone.values()}) == 16


@torch.no_grad()
def test_pruning_a_pruned_site_is_refused(name):
    model, x = made(name), images(name)
    with sparsight.prune(model, "col_ln:keep=0.5,layers=1/2"):
        before = fixed(name, model, x)
        with pytest.raises(PruneError, match="block 2 is pruned already"):
            sparsight.prune(model, "tome:remove=3,layers=2/3")
        torch.testing.assert_close(fixed(name, model, x), before, rtol=0, atol=1e-12)
        with sparsight.prune(model, "random:keep=0.5,layers=3"):
            pass
        torch.testing.assert_close(fixed(name, model, x), before, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("recipe", ["tome:remove=3,layers=all", "similarity:keep=0.5"])
def test_deep_copy_is_pruned_and_independent(name, recipe):
    model, x = made(name), images(name)
    whole = fixed(name, model, x)
    with sparsight.prune(model, recipe) as handle:
        pruned = fixed(name, model, x)
        plans = [plan.keep.clone() for plan in handle.plans]
        twin, twin_handle = copy.deepcopy((model, handle))
        same(fixed(name, twin, x), pruned)
        fixed(name, twin, x[:1])
        assert all(torch.equal(a.keep, b) for a, b in zip(handle.plans, plans, strict=True))
        assert all(plan.keep.shape[0] == 1 for plan in twin_handle.plans)
    same(fixed(name, model, x), whole)
    same(fixed(name, twin, x), pruned)
    twin_handle.remove()
    same(fixed(name, twin, x), whole)
    assert not any("_sparsight" in vars(module) or module._forward_hooks for module in twin.modules())


@torch.no_grad()
@pytest.mark.parametrize("recipe", ["class_attention:keep=0.5,layers=1", "tome:remove=3,layers=all"])
@pytest.mark.parametrize("name", ["timm-token-avg", "timm-naflex", "openclip", "vit", "clip"])
def test_a_pruned_model_is_saved_and_loaded(name, recipe):
    """`torch.save(model)`, as tools do that send a model to another process."""
    if "class_attn" in needs(recipe) and not ZOO[name].class_token:
        pytest.skip("no class token")
    model, file = made(name), io.BytesIO()
    with sparsight.prune(model, recipe):
        pruned = fixed(name, model, images(name))
        torch.save(model, file)
    file.seek(0)
    same(fixed(name, torch.load(file, weights_only=False), images(name)), pruned)


@torch.no_grad()
def test_another_model_of_the_same_class_sees_nothing(name):
    model, x = made(name), images(name)
    other = copy.deepcopy(model)
    before = outputs(name, other, x)
    with sparsight.prune(model, "tome:remove=3,layers=all"):
        same(outputs(name, other, x), before)
        with sparsight.prune(other, "col_ln:keep=0.5,layers=0") as handle:
            outputs(name, other, x)
            assert len(handle.plans) == 1
        same(outputs(name, other, x), before)


@torch.no_grad()
@pytest.mark.parametrize("name", LIKELY)
def test_a_forward_that_breaks_off_leaves_nothing(name):
    model, x = made(name), images(name)
    before = fixed(name, model, x)
    handle = sparsight.prune(model, "tome:remove=3,layers=all")
    pruned = fixed(name, model, x)
    block = handle.family.blocks[2]
    broken = block.mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fixed(name, model, x)
    broken.remove()
    same(fixed(name, model, x), pruned)
    handle.remove()
    same(fixed(name, model, x), before)
    assert not any(key.startswith("_sparsight") for module in model.modules() for key in vars(module))


def same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)  # the last bits depend on where operands lie in memory
