"""What a call learns belongs to that call: threads, tasks, nested calls, calls that fail, two sizes at once; copies and pickles."""

import asyncio
import copy
import io
import sys
import threading

import pytest
import torch
from lvlms import IMAGE, Size, answer, build, inputs, product

import sparsight
from sparsight import PruneError

BATCHES = [
    [[3, Size(32, 16), 4], [2, Size(16, 32, 1), 2, Size(16, 16, 2), 6]],
    [[1, Size(32, 32, 3), 2]],
    [[4, Size(16, 16, 4), 1], [9], [2, Size(32, 32, 5), 3]],
]
RECIPES = ["col_ln:tokens=3", "prumerge:score=column_mean", "fastv:layer=1,keep=0.5", "sparsevlm:layers=0/1,count=rank"]
PAIRS = [("llava", recipe) for recipe in RECIPES] + [
    ("llava-next", "visionzip:keep=0.5"),
    ("llava-next", "pyramiddrop:layers=1/2,keep=0.5/0.25"),
    ("qwen2.5", "col_ln:tokens=3"),
    ("qwen2.5", "fastv:layer=1,keep=0.5"),
    ("qwen3", "divprune:tokens=3"),
]


def outcome(model, handle, given, how):
    with torch.no_grad():
        out = answer(model, given, new=3) if how == "generate" else model(**given).logits
    return out, handle.counts, [plan.keep for plan in handle.plans]


def same(one, other):
    return torch.equal(one[0], other[0]) and one[1] == other[1] and all(map(torch.equal, one[2], other[2]))


@pytest.mark.parametrize(("name", "recipe"), PAIRS, ids=lambda part: part.partition(":")[0])
def test_threads_get_what_each_gets_alone(name, recipe):
    model = build(name)
    jobs = [(inputs(name, model, batch), how) for batch in BATCHES for how in ("forward", "generate")]
    wrong, interval = [], sys.getswitchinterval()
    with sparsight.prune(model, recipe) as handle:
        expected = [outcome(model, handle, *job) for job in jobs]
        counts = handle.counts

        def work(first: int) -> None:
            try:
                assert handle.counts == handle.plans == []
                for i in range(first, first + len(jobs)):
                    if not same(outcome(model, handle, *jobs[i % len(jobs)]), expected[i % len(jobs)]):
                        wrong.append(i % len(jobs))
            except Exception as error:
                wrong.append(repr(error))

        sys.setswitchinterval(1e-5)
        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
        assert not wrong
        assert handle.counts == counts


def test_tasks_see_their_own_last_call():
    model = build("llava")
    first, second = (inputs("llava", model, batch) for batch in BATCHES[:2])

    async def work(given, count, handle):
        outcome(model, handle, given, "forward")
        await asyncio.sleep(0)
        assert handle.counts == [3] * count

    async def both(handle):
        await asyncio.gather(work(first, 3, handle), work(second, 1, handle))

    with sparsight.prune(model, "col_ln:tokens=3") as handle:
        asyncio.run(both(handle))


@pytest.mark.parametrize(("name", "recipe"), PAIRS[::2], ids=lambda part: part.partition(":")[0])
def test_a_hook_that_runs_the_model(name, recipe):
    """In a forward and in a step of `generate`, with other images: the outer call and the inner one are as alone."""
    model, busy = build(name), []
    outer, inner = (inputs(name, model, batch) for batch in BATCHES[:2])
    with sparsight.prune(model, recipe) as handle:
        expected = outcome(model, handle, outer, "forward"), outcome(model, handle, outer, "generate")
        inside = outcome(model, handle, inner, "forward")
        seen = []

        def nested(*_):
            if not busy:
                busy.append(True)
                seen.append(outcome(model, handle, inner, "forward"))
                busy.clear()

        hook = model.model.language_model.layers[1].register_forward_hook(nested)
        assert same(outcome(model, handle, outer, "forward"), expected[0])
        assert same(outcome(model, handle, outer, "generate"), expected[1])
        hook.remove()
    assert len(seen) == 4
    assert all(torch.equal(one[0], inside[0]) for one in seen)


@pytest.mark.parametrize("recipe", ["col_ln:tokens=3", "fastv:layer=1,keep=0.5"])
def test_a_forward_that_fails_leaves_nothing(recipe):
    model = build("llava")
    given = inputs("llava", model, BATCHES[0])
    with sparsight.prune(model, recipe) as handle, torch.no_grad():
        expected = outcome(model, handle, given, "forward")

        def fail(*_):
            raise KeyboardInterrupt

        hook = model.model.language_model.layers[1].register_forward_hook(fail)
        for call in (model, model.generate, model.model):
            with pytest.raises(KeyboardInterrupt):
                call(**given)
            assert handle.counts == handle.plans == handle.scores == []
        hook.remove()
        assert same(outcome(model, handle, given, "forward"), expected)
        outcome(model, handle, inputs("llava", model, [[5]]), "generate")
        assert handle.counts == handle.plans == []


@pytest.mark.parametrize("recipe", ["visionzip:tokens=5", RECIPES[3]])
def test_two_forwards_before_one_backward(recipe):
    model = build("llava").train()
    calls = [inputs("llava", model, batch) for batch in BATCHES[:2]]
    for given in calls:
        given["labels"] = given["input_ids"].masked_fill(given["input_ids"] == IMAGE, -100)
    with sparsight.prune(model, recipe):

        def gradients(*losses):
            model.zero_grad()
            sum(losses).backward()
            return [p.grad.clone() for p in model.model.language_model.parameters() if p.grad is not None]

        single = [gradients(model(**given).loss) for given in calls]
        both = gradients(*[model(**given).loss for given in calls])
    for total, *parts in zip(both, *single, strict=True):
        torch.testing.assert_close(total, sum(parts))


CHECKPOINTED = [("llava", "col_ln:tokens=3"), ("llava", RECIPES[2]), ("llava", RECIPES[3]), ("qwen2.5", RECIPES[2])]


@pytest.mark.parametrize(
    ("name", "recipe", "reentrant"),
    product([(*pair, on) for pair in CHECKPOINTED for on in (False, True)], lambda _name, recipe, on: on == (recipe != RECIPES[3])),
)
def test_gradient_checkpointing(name, recipe, reentrant):
    model = build(name).train()
    given = inputs(name, model, BATCHES[0])
    given["labels"] = given["input_ids"].masked_fill((given["input_ids"] == IMAGE) | (given["attention_mask"] == 0), -100)
    with sparsight.prune(model, recipe) as handle:
        found = []
        for on in (False, True):
            if on:
                model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
            model.zero_grad()
            loss = model(**given).loss
            loss.backward()
            found.append([loss, *(p.grad for p in model.model.language_model.parameters())])
            assert handle.counts
    assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(("name", "recipe"), [*PAIRS[:4], *PAIRS[5::2]], ids=lambda part: part.partition(":")[0])
def test_copies_and_pickles(name, recipe):
    model, file = build(name), io.BytesIO()
    handle = sparsight.prune(model, recipe)
    torch.save(model, file)  # after a forward, hooks of transformers' own cannot be pickled
    file.seek(0)
    given = inputs(name, model, BATCHES[0])
    model.train()
    model(**given, labels=given["input_ids"]).loss.backward()
    model.eval()
    twins = [copy.deepcopy(model), torch.load(file, weights_only=False)]
    expected = outcome(model, handle, given, "generate")
    handle.remove()
    for twin in twins:
        own = sparsight.handle(twin)
        assert own.counts == []
        assert same(outcome(twin, own, given, "generate"), expected)
        own.remove()
        assert "forward" not in {key for module in twin.modules() for key in vars(module)}
        with torch.no_grad():
            assert torch.equal(twin(**given).logits, model(**given).logits)


@pytest.mark.parametrize("name", ["llava", "qwen2.5"])
@torch.no_grad()
def test_every_entrance_is_pruned_or_refused(name):
    """`m.model(...)`, `m.base_model(...)` and `m.forward(...)` are pruned; embeddings with the images merged in are refused."""
    model = build(name)
    given = inputs(name, model, BATCHES[0])
    embeds = []
    hook = model.model.language_model.register_forward_pre_hook(lambda _m, _a, k: embeds.append(k), with_kwargs=True)
    model(**given)
    hook.remove()
    merged = {key: embeds[0][key] for key in ("inputs_embeds", "attention_mask", "position_ids")}
    with sparsight.prune(model, "col_ln:tokens=3") as handle:
        logits = model(**given).logits
        for call in (model.model, model.base_model, model.model.forward):
            model(**inputs(name, model, [[5]]))
            assert torch.equal(model.lm_head(call(**given).last_hidden_state), logits)
            assert handle.counts == [3, 3, 3]
        assert torch.equal(model.forward(**given).logits, logits)
        for call in (model, model.model, model.model.language_model):
            with pytest.raises(PruneError, match=r"embeddings|inputs_embeds"):
                call(**merged)
        with pytest.raises(PruneError, match="inputs_embeds"):
            model.generate(**merged)
        assert handle.counts == []


def test_accelerate_unwraps_and_stays_pruned():
    accelerate = pytest.importorskip("accelerate")
    model = build("llava").float()
    given = {k: v.float() if v.is_floating_point() else v for k, v in inputs("llava", model, BATCHES[0]).items()}
    for prune_first in (True, False):
        accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
        handle = sparsight.prune(model, "col_ln:tokens=3") if prune_first else None
        prepared = accelerator.prepare(model)
        handle = handle or sparsight.prune(model, "col_ln:tokens=3")
        prepared(**given)
        assert handle.counts == [3, 3, 3]
        plain = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        out = plain(**given, labels=given["input_ids"])
        assert out.logits.shape[1] == given["input_ids"].shape[1]
        assert handle.counts == [3, 3, 3]
        plain(**given)
        assert handle.counts == [3, 3, 3]
        handle.remove()
        model.__dict__.pop("forward", None)
