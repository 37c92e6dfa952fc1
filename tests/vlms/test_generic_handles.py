"""The generic family's listener on attention beside other tools: copies, pickles, threads, gradients, other implementations."""

import copy
import pickle
import threading

import pytest
import torch
from generic_models import IMAGE, build, inputs, prompt

import sparsight
from sparsight import PruneError

RECIPE = "fastervlm:keep=0.5,score=column_mean"


def given_for(name):
    return inputs(name, [prompt(name, 3, "image", 4, "image", 5), prompt(name, 2, "image", 6)])


@torch.no_grad()
def test_copies_and_pickles_are_pruned_by_themselves():
    model = build("mistral3")
    given = given_for("mistral3")
    plain = model(**given).logits
    handle = sparsight.prune(model, RECIPE)
    expected = model(**given).logits
    twin, fresh = copy.deepcopy(model), build("mistral3")
    sparsight.prune(fresh, RECIPE)  # transformers' own hooks, from a first call on, cannot be pickled
    again = pickle.loads(pickle.dumps(fresh))
    handle.remove()
    assert torch.equal(model(**given).logits, plain)
    for other in (twin, again):
        assert torch.equal(other(**given).logits, expected)
        sparsight.handle(other).remove()
        assert torch.equal(other(**given).logits, plain)


def test_inference_mode_and_other_implementations():
    model = build("internvl")
    given = given_for("internvl")
    with sparsight.prune(model, "fastervlm:keep=0.5") as handle:
        kept = []
        for context in (torch.no_grad, torch.inference_mode):
            for implementation in ("sdpa", "eager"):
                model.set_attn_implementation(implementation)
                with context():
                    model(**given)
                    kept.append([plan.keep.tolist() for plan in handle.plans])
                assert model.config._attn_implementation == implementation
        assert all(one == kept[0] for one in kept)


@pytest.mark.parametrize("frozen", [False, True], ids=["tower trained", "tower frozen"])
def test_gradients_are_those_of_the_same_tokens(frozen):
    model = build("smolvlm")
    given = given_for("smolvlm")
    given["labels"] = given["input_ids"].masked_fill(given["input_ids"] == IMAGE, -100)
    model.model.vision_model.requires_grad_(not frozen)

    def gradients(recipe):
        model.zero_grad()
        with sparsight.prune(model, recipe) as handle:
            model(**given).loss.backward()
            return [plan.keep for plan in handle.plans], {
                n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
            }

    def plain():
        model.zero_grad()
        model(**given).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    keeps, got = gradients(RECIPE)
    again, same = gradients(RECIPE)
    assert all(torch.equal(a, b) for a, b in zip(keeps, again, strict=True))
    assert got.keys() == same.keys() == plain().keys()
    assert any("vision_model" in name for name in got) != frozen
    assert all(torch.equal(got[name], same[name]) for name in got)
    _, full = gradients("fastervlm:keep=1,score=column_mean")
    assert all(torch.allclose(full[name], value, atol=1e-6) for name, value in plain().items())


@torch.no_grad()
def test_threads_do_not_hear_each_other():
    model = build("qwen3_vl_moe")
    calls = [inputs("qwen3_vl_moe", [prompt("qwen3_vl_moe", n, "image", 4, "image", 5)]) for n in (1, 2, 3, 4)]
    with sparsight.prune(model, RECIPE):
        expected = [model(**call).logits for call in calls]
        got = [None] * len(calls)

        def run(i):
            with torch.no_grad():
                for _ in range(3):
                    got[i] = model(**calls[i]).logits

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@torch.no_grad()
def test_bad_calls_are_one_line():
    model = build("qwen3_5")
    given = given_for("qwen3_5")
    with sparsight.prune(model, RECIPE):
        for change, says in (
            ({"image_grid_thw": None}, "image_grid_thw is missing"),
            ({"pixel_values": None, "image_grid_thw": None}, "pixel_values are not given"),
            ({"input_ids": torch.where(given["input_ids"] == IMAGE, 5, given["input_ids"])}, "0 placeholder tokens, but 3 images"),
            ({"input_ids": None, "inputs_embeds": torch.zeros(2, 36, 32)}, "input_ids"),
        ):
            with pytest.raises(PruneError, match=says):
                model(**{k: v for k, v in {**given, **change}.items() if v is not None})
    for recipe, says in (
        ("fastervlm:keep=0.5", "no class token"),
        ("visionzip:keep=0.5", "no class token"),
        ("divprune:keep=0.5,layers=3", "layers"),
    ):
        with pytest.raises(PruneError, match=says):
            sparsight.prune(model, recipe)


def test_which_methods_fit_is_said():
    """By name, with the reason; and the model is as before."""
    model = build("internvl")
    state = {path: set(vars(module)) for path, module in model.named_modules()}
    found = sparsight.fits(model)
    assert {name: found[name] for name in ("divprune", "col_ln", "fastervlm", "pool")} == dict.fromkeys(
        ("divprune", "col_ln", "fastervlm", "pool"), ""
    )
    assert found["resize"] == ""
    assert {path: set(vars(module)) for path, module in model.named_modules()} == state
    found = sparsight.fits(build("qwen3_5"))
    assert found["resize"] == found["divprune"] == ""
    assert "no class token; try score=column_mean" in found["fastervlm"]
    assert "tokens can leave before layers 1 to 2" in found["fastv"]
    with sparsight.prune(model, "divprune"), pytest.raises(PruneError, match="pruned already"):
        sparsight.fits(model)
