"""State belongs to one forward: threads, tasks, nested calls, sizes, failures and checkpoints, each as if it were alone."""

import asyncio
import copy
import gc
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from zoo import ADAPTIVE, RECIPES, ZOO, images, made, needs, outputs, prune

import sparsight
from sparsight import PruneError

FAMILIES = ("timm-dynamic", "dinov2", "openclip")
"""One of each framework; the first two take any size."""
EVERY = {**RECIPES, **ADAPTIVE}
FEW = ("col_ln", "tome", "ats", "similarity-input", "rollout", "dynamicvit")


def run(name, model, x):
    with torch.no_grad():
        return outputs(name, model, x)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def batches(name):
    """Inputs of other sizes and counts for every thread."""
    found = [images(name, 1 + i % 3) + i for i in range(6)]
    if name != "openclip":
        found[1] = torch.cat([found[1], found[1][:, :, :8]], dim=2)
    return found


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("recipe", EVERY)
def test_threads(name, recipe):
    """Six inputs at once, four threads, for every method: bit for bit what each gets alone, and every thread sees its own tokens."""
    text = EVERY[recipe]
    if {"class_attn", "attns"} & needs(text) and not ZOO[name].class_token:
        pytest.skip("no class token")
    model, inputs = made(name), batches(name)
    if sparsight.parse(text).weights is not None and name != "openclip":
        inputs.pop(1)  # learned slots are for the model's own size
    with prune(model, text) as handle:
        alone = [(run(name, model, x), [plan.keep for plan in handle.plans]) for x in inputs]
        ready = threading.Barrier(4)

        def work(first):
            ready.wait()
            wrong = []
            for step in range(2 * len(inputs)):
                index = (first + step) % len(inputs)
                found, kept = run(name, model, inputs[index]), [plan.keep for plan in handle.plans]
                expected, plans = alone[index]
                if not equal(found, expected) or not all(torch.equal(a, b) for a, b in zip(kept, plans, strict=True)):
                    wrong.append(index)
            return wrong

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(work, range(4))) == [[]] * 4


@pytest.mark.parametrize("recipe", FEW)
def test_nested_calls_and_failures(recipe):
    """A hook that runs the model inside a block of the model, also where the inner forward fails midway."""
    name = "timm-dynamic"
    model, (x, other) = made(name), batches(name)[:2]
    with prune(model, EVERY[recipe]) as handle:
        inner, expected = run(name, model, other), run(name, model, x)
        plans, seen, busy = [plan.keep for plan in handle.plans], [], []

        def hook(*_):
            if not busy:
                busy.append(1)
                seen.append(run(name, model, other))
                broken = model.blocks[3].register_forward_pre_hook(lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    run(name, model, other)
                broken.remove()

        hooked = model.blocks[2].mlp.register_forward_hook(hook)
        try:
            found = run(name, model, x)
        finally:
            hooked.remove()
        assert equal(found, expected)
        assert equal(seen[0], inner)
        assert all(torch.equal(a, plan.keep) for a, plan in zip(plans, handle.plans, strict=True))


def test_the_last_forward_that_finished_counts():
    name = "timm-dynamic"
    model, (x, other) = made(name), batches(name)[:2]
    with prune(model, EVERY["col_ln"]) as handle:
        assert handle.plans == []
        assert handle.kept_per_image() == []
        run(name, model, x)
        counts = handle.counts
        broken = model.blocks[3].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(name, model, other)
        broken.remove()
        assert handle.counts == counts
        run(name, model, other)
        assert handle.counts != counts
        assert handle.kept_per_image() == [handle.counts[-1]] * len(other)
        seen = []
        thread = threading.Thread(target=lambda: seen.append(handle.plans))
        thread.start()
        thread.join()
        assert seen == [[]], "another thread has run nothing yet"


def test_tasks_see_their_own_forward():
    name = "timm-dynamic"
    model, inputs = made(name), batches(name)

    async def work(handle, x):
        found = []
        for _ in range(3):
            run(name, model, x)
            await asyncio.sleep(0)  # the others run here
            found.append((handle.grid, [plan.keep for plan in handle.plans]))
        return found

    async def main(handle):
        return await asyncio.gather(*(work(handle, x) for x in inputs))

    with prune(model, EVERY["col_ln"]) as handle:
        alone = []
        for x in inputs:
            run(name, model, x)
            alone.append((handle.grid, [plan.keep for plan in handle.plans]))
        for found, (grid, plans) in zip(asyncio.run(main(handle)), alone, strict=True):
            assert all(seen == grid and all(map(torch.equal, kept, plans)) for seen, kept in found)


@pytest.mark.parametrize("name", ["timm-dynamic", "dinov2", "clip-vision"])
@pytest.mark.parametrize("recipe", FEW)
def test_checkpoints_and_two_forwards_before_one_backward(name, recipe):
    """Gradients of two inputs of different sizes in one backward, with every block run again in it, are those of plain training."""
    model, inputs, found = made(name), batches(name)[:2], []

    def loss(x):
        return sum(value.square().sum() for value in outputs(name, model, x).values())

    def switch(on):
        if name.startswith("timm"):
            model.set_grad_checkpointing(on)
        elif on:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()

    for checkpoints in (False, True):
        with prune(model, EVERY[recipe]) as handle:
            switch(checkpoints)
            drops = [(module, module.p) for module in model.modules() if isinstance(module, torch.nn.Dropout)]
            model.train()
            torch.manual_seed(0)  # methods that draw their tokens draw the same
            for module, _ in drops:
                module.p = 0.0
            for module in model.modules():
                if type(module).__name__.endswith("DropPath"):
                    module.eval()
            if recipe == "dynamicvit" and checkpoints:
                loss(inputs[0]).backward()
                loss(inputs[1]).backward()
            else:
                (loss(inputs[0]) + loss(inputs[1])).backward()
            found.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
            learned = handle.learned
            model.zero_grad(set_to_none=True)
            model.eval()
            switch(False)
            for module, p in drops:
                module.p = p
            assert learned is None or all(p.grad is not None for p in learned.parameters())
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, rtol=1e-8, atol=1e-8)


def test_forwards_by_hand():
    """Embedding, blocks and head called one by one, and timm's `forward_features` and `forward_head`."""
    model, x = made("timm-token-avg"), images("timm-token-avg")
    with prune(model, EVERY["tome"]) as handle, torch.no_grad():
        expected = model(x)
        plans = [plan.keep for plan in handle.plans]
        assert torch.equal(model.forward_head(model.forward_features(x)), expected)
        tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
        for block in model.blocks:
            tokens = block(tokens)
        assert torch.equal(model.forward_head(model.norm(tokens)), expected)
        assert all(torch.equal(a, plan.keep) for a, plan in zip(plans, handle.plans, strict=True))


def test_memory_does_not_grow():
    """300 forwards of changing batch and size."""
    name = "timm-dynamic"
    model, inputs = made(name), batches(name)
    with prune(model, EVERY["rollout"]), prune(model, "tome:remove=2,layers=3"):
        counts = []
        for step in range(300):
            run(name, model, inputs[step % len(inputs)])
            if step % 100 == 99:
                gc.collect()
                counts.append(sum(isinstance(found, torch.Tensor) for found in gc.get_objects()))
    # a tensor kept of every forward would be 100 each time; other tests' may go
    assert counts[-1] - counts[0] < 50, counts


def test_a_graph_that_is_dropped_takes_its_state_along():
    """Nodes of the autograd graph know the state of their forward; nothing of it stays when the graph goes."""
    name = "timm-dynamic"
    model, x = made(name), images(name)
    for recipe in ("tome", "dynamicvit"):
        with prune(model.train(), EVERY[recipe]):
            counts = []
            for _ in range(4):
                outputs(name, model, x)["logits"].sum()
                gc.collect()
                counts.append(sum(isinstance(found, torch.Tensor) for found in gc.get_objects()))
            model.eval()
        assert counts[1] == counts[3]


def copies(model):
    """Copies as people make them."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    from timm.utils import ModelEmaV3

    return {
        "deepcopy": copy.deepcopy(model),
        "torch.save": torch.load(file, weights_only=False),
        "ema": ModelEmaV3(model).module,
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_a_handle_is_found_again(name):
    """In copies, also those made after a forward with gradients; `unprune` takes all off."""
    model, x = made(name), images(name)
    whole = run(name, model, x)
    with pytest.raises(PruneError, match="is not pruned"):
        sparsight.handle(model)
    with prune(model, EVERY["col_ln"]) as handle:
        assert sparsight.handle(model) is handle
        pruned = run(name, model, x)
        outputs(name, model, x)
        assert "pruned by col_ln:keep=0.6" in repr(model)
        for way, twin in copies(model).items():
            found = sparsight.handle(twin)
            assert found is not handle, way
            assert found.plans == []
            assert equal(run(name, twin, x), pruned), way
            assert [plan.keep.tolist() for plan in found.plans] == [plan.keep.tolist() for plan in handle.plans], way
            sparsight.unprune(twin)
            for key, value in whole.items():
                torch.testing.assert_close(run(name, twin, x)[key], value, rtol=0, atol=1e-12)
            assert "pruned" not in repr(twin), way
            assert not any(key.startswith("_sparsight") or key == "extra_repr" for part in twin.modules() for key in vars(part)), (
                way
            )
        with prune(model, "tome:remove=1,layers=3") as second:
            with pytest.raises(PruneError, match="is pruned 2 times"):
                sparsight.handle(model)
            assert sparsight.handles(model) == [handle, second]
        assert sparsight.handle(model) is handle
    sparsight.unprune(model)
    assert "pruned" not in repr(model)


def test_a_quantised_model_stays_pruned():
    model = copy.deepcopy(made("timm-token")).float()
    handle = prune(model, EVERY["col_ln"])
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    run("timm-token", quantised, images("timm-token").float())
    found = sparsight.handle(quantised)
    assert found is not handle
    assert found.counts == [10, 6]
