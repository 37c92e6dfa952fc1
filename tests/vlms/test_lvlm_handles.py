"""Handles on vision-language models: what is restored, what is refused, training, and company inside the language model."""

import copy
import inspect

import pytest
import torch
from lvlms import BUILD, IMAGE, Size, answer, build, inputs, product

import sparsight
from sparsight.errors import PruneError
from sparsight.ops import reduce, schedule, score, select
from sparsight.recipe import Recipe

SAMPLES = [[3, Size(32, 16), 4], [2, Size(16, 32, 1), 2, Size(16, 16, 2), 6]]


@pytest.mark.parametrize("name", product(list(BUILD), lambda name: name in ("llava", "llava-next", "qwen2.5")))
@torch.no_grad()
def test_remove_restores_everything(name):
    model = build(name)
    given = inputs(name, model, SAMPLES)
    before, expected, state = dict(vars(model)), model(**given).logits, set(model.state_dict())
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    handle = sparsight.prune(model, "col_ln:tokens=3")
    assert not torch.equal(model(**given).logits[:, -1], expected[:, -1])
    assert handle.counts == [3, 3, 3]
    assert set(model.state_dict()) == state
    assert inspect.signature(model.forward) == inspect.signature(type(model).forward.__get__(model))
    handle.remove()
    handle.remove()
    assert vars(model).keys() == before.keys()
    assert "generate" not in vars(model)
    assert "forward" not in vars(model)
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert torch.equal(model(**given).logits, expected)


@torch.no_grad()
def test_two_models_do_not_see_each_other():
    one, two = build("llava"), build("llava")
    given = inputs("llava", one, SAMPLES)
    plain = one(**given).logits
    with sparsight.prune(one, "col_ln:tokens=3") as first:
        a = one(**given).logits
        with sparsight.prune(two, "divprune:tokens=5") as second:
            two(**given)
            assert torch.equal(one(**given).logits, a)
            assert (first.counts, second.counts) == ([3] * 3, [5] * 3)
        assert torch.equal(two(**given).logits, plain)


@torch.no_grad()
def test_a_copy_is_pruned_by_itself():
    model = build("llava")
    given = inputs("llava", model, SAMPLES)
    plain = model(**given).logits
    handle = sparsight.prune(model, "col_ln:tokens=3")
    twin = copy.deepcopy(model)
    expected = model(**given).logits
    handle.remove()
    assert torch.equal(twin(**given).logits, expected)
    assert torch.equal(model(**given).logits, plain)


@torch.no_grad()
def test_nothing_depends_on_an_earlier_call():
    for name in ("llava", "qwen2.5"):
        model = build(name)
        given, other = inputs(name, model, SAMPLES), inputs(name, model, [[1, Size(32, 32, 4), 2]])
        with sparsight.prune(model, "col_ln:tokens=3") as handle:
            expected = model(**given).logits
            model(**other)
            answer(model, other)
            text = inputs(name, model, [[7]])
            model(**text)
            assert handle.counts == []
            assert torch.equal(model(**given).logits, expected)


@torch.no_grad()
def test_text_alone_is_untouched():
    for name in BUILD:
        model = build(name)
        text = inputs(name, model, [[7], [4]])
        expected, said = model(**text).logits, answer(model, text)
        with sparsight.prune(model, "col_ln:tokens=3"):
            assert torch.equal(model(**text).logits, expected)
            assert torch.equal(answer(model, text), said)


@pytest.mark.parametrize(
    ("name", "side"),
    product(
        [(name, side) for name in BUILD for side in ("left", "right")],
        lambda name, side: name in ("llava", "qwen2.5") or (name, side) in (("llava-next", "left"), ("qwen3", "right")),
    ),
)
def test_labels_and_gradients_follow(name, side):
    model = build(name).train()
    given = inputs(name, model, SAMPLES, side)
    labels = given["input_ids"].masked_fill((given["input_ids"] == IMAGE) | (given["attention_mask"] == 0), -100)
    # behind left padding a first token would be predicted from padding
    labels[torch.arange(2), given["attention_mask"].argmax(dim=1)] = -100
    with sparsight.prune(model, "prumerge:score=column_mean"):
        out = model(**given, labels=labels)
        out.loss.backward()
        # the same labels one sample at a time
        total, count = 0.0, 0
        with torch.no_grad():
            for sample in SAMPLES:
                one = inputs(name, model, [sample])
                own = one["input_ids"].masked_fill(one["input_ids"] == IMAGE, -100)
                n = int((own[:, 1:] != -100).sum())
                total, count = total + model(**one, labels=own).loss * n, count + n
    assert torch.allclose(out.loss, (total / count).to(out.loss), atol=1e-5)
    core = model.model
    tower = core.visual if name.startswith("qwen") else core.vision_tower
    for parameters in (core.language_model.parameters(), tower.parameters()):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)


@torch.no_grad()
def test_half_precision_and_positional_arguments():
    for name in ("llava", "qwen2.5"):
        model = build(name).to(torch.bfloat16)
        given = inputs(name, model, SAMPLES)
        given = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in given.items()}
        with sparsight.prune(model, "visionzip:tokens=4,contextual=1,score=col_ln") as handle:
            out = model(given.pop("input_ids"), **given)
            assert out.logits.dtype == torch.bfloat16
            assert handle.counts == [4, 4, 4]


def test_budgets():
    model = build("llava-next")
    given = inputs("llava-next", model, SAMPLES)
    for recipe, counts in (("col_ln:tokens=7", [7, 7, 7]), ("random:remove=5", None), ("divprune:keep=0.25", None)):
        with sparsight.prune(model, recipe) as handle, torch.no_grad():
            model(**given)
            patches = [plan.total for plan in handle.plans]
            assert handle.counts == counts or all(0 < kept < n for kept, n in zip(handle.counts, patches, strict=True))


def test_recipes_that_cannot_work_are_refused_at_once():
    cases = [
        ("llava", "col_ln:tokens=17", "more than the 16 tokens"),
        ("llava", "visionzip:tokens=3,contextual=3", "needs 4 or more"),
        ("llava", "col_ln:tokens=3,layers=2", "leave layers out"),
        ("llava", "col_ln:keep=0.5/0.4/0.3", "one place to prune"),
        ("llava", "tome:remove=3", "proportional=false"),
        ("llava", "fastv:layer=1,keep=0.5,per_tile=true", "per_tile="),
        ("llava-siglip", "fastervlm:tokens=3", "no class token"),
        ("llava-siglip", "visionzip:tokens=3", "no class token"),
        ("qwen2.5", "vispruner:tokens=3", "no class token"),
        ("qwen3", "evit:keep=0.5", "no class token"),
        ("qwen2", "prumerge", "class token"),
    ]
    for name, recipe, says in cases:
        model = build(name)
        with pytest.raises(PruneError, match=says):
            sparsight.prune(model, recipe)
        assert "forward" not in vars(model)


def test_what_is_refused_is_not_half_installed():
    model = build("llava")
    model.config.vision_feature_layer = 9
    with pytest.raises(PruneError, match="selects no output"):
        sparsight.prune(model, "col_ln:tokens=3")
    assert not any("forward" in vars(module) or module._forward_hooks for module in model.modules())
    model.config.vision_feature_layer = -2
    with sparsight.prune(model, "col_ln:tokens=3"):
        model(**inputs("llava", model, SAMPLES))


def test_grids():
    model = build("qwen2.5")
    with sparsight.prune(model, "col_ln:tokens=3") as handle:
        with pytest.raises(PruneError, match="run the model first"):
            _ = handle.grid
        model(**inputs("qwen2.5", model, [[3, Size(32, 16), 4]]))
        assert handle.grid == (4, 2)
        with pytest.raises(PruneError, match="vision models only"):
            handle.restore(torch.zeros(1, 3, 4))
    with sparsight.prune(build("llava"), "col_ln:tokens=3") as handle:
        assert handle.grid == (4, 4)


def test_a_recipe_by_hand():
    parts = (score.class_attention, select.topk, reduce.drop)
    model = build("llava")
    with pytest.raises(PruneError, match="leave layers out"):
        sparsight.prune(model, Recipe(*parts, schedule.staged(0.5, (3,))))
    with sparsight.prune(model, Recipe(*parts, schedule.once(4), where="projector")) as handle, torch.no_grad():
        model(**inputs("llava", model, SAMPLES))
        assert handle.counts == [4, 4, 4]


@pytest.mark.parametrize("name", ["llava", "llava-next", "qwen2.5"])
@torch.no_grad()
def test_bad_calls(name):
    model = build(name)
    given = inputs(name, model, SAMPLES)
    grid = "image_grid_thw" if name.startswith("qwen") else "image_sizes"
    with sparsight.prune(model, "col_ln:tokens=3"):

        def refused(says: str, **change: object) -> None:
            call = {k: v for k, v in {**given, **change}.items() if v is not None}
            for function in (model, model.generate):
                with pytest.raises(PruneError, match=says):
                    function(**call)

        refused("are not given", pixel_values=None, **{grid: None})
        ids = given["input_ids"].clone()
        ids[0, (ids[0] == IMAGE).nonzero()[0]] = 5
        refused("placeholder tokens, but 3 images", input_ids=ids)
        refused("empty", pixel_values=given["pixel_values"][:0], **{grid: given[grid][:0]} if grid in given else {})
        embeds = model.get_input_embeddings()(given["input_ids"])
        refused("input_ids", input_ids=None, inputs_embeds=embeds)
        refused("2-D", attention_mask=torch.ones(2, 1, 4, 4))
        refused("mm_encoder_outputs", mm_encoder_outputs={"image": object()})
        if name == "qwen2.5":
            refused("missing", image_grid_thw=None)
        refused("cu_seq_lens_q: packed rows", cu_seq_lens_q=torch.tensor([0, 4]))
        refused(r"own_weights \[2, .*an entry for every token", own_weights=torch.ones(given["input_ids"].shape))


@torch.no_grad()
def test_more_tokens_than_an_image_has_are_refused_when_it_comes():
    for name in ("qwen2.5", "llava-next"):
        model = build(name)
        with sparsight.prune(model, "col_ln:tokens=200,fewer=error"), pytest.raises(PruneError, match="more than the"):
            model(**inputs(name, model, SAMPLES))


def test_unknown_models_are_refused():
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    with pytest.raises(PruneError, match="no known family"):
        sparsight.prune(build("llava").model.language_model, "col_ln:tokens=3")
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    text = {"model_type": "llama", "vocab_size": 32, **tiny}
    vision = {"model_type": "pixtral", "image_size": 16, "patch_size": 4, **tiny}
    pixtral = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))
    with sparsight.prune(pixtral, "divprune:tokens=3") as handle:
        assert handle.family.name == "transformers vision-language"


def test_one_pruning_of_images_at_a_time():
    model = build("llava")
    with sparsight.prune(model, "col_ln:tokens=3"), pytest.raises(PruneError, match="pruned already"):
        sparsight.prune(model, "divprune:tokens=3")


@torch.no_grad()
def test_a_forward_that_another_tool_has_put_there_stays_in_use():
    model, calls = build("llava"), []
    given, own = inputs("llava", model, SAMPLES), model.forward

    def hooked(*args, **kwargs):
        calls.append(kwargs["input_ids"].shape[1])
        return own(*args, **kwargs)

    model.forward = hooked
    with sparsight.prune(model, "col_ln:tokens=3") as handle:
        model(**given)
        answer(model, given, new=2)
        assert handle.counts == [3, 3, 3]
    assert calls == [42, 16, 1]  # a forward of the whole model is given the whole prompt
    assert model.forward is hooked


def test_a_tower_that_is_never_heard_is_an_error():
    model = build("llava")
    given = inputs("llava", model, SAMPLES)
    tower = model.model.vision_tower
    attention = tower.encoder.layers[-2].self_attn
    attention.forward = lambda hidden_states, **_: (hidden_states, None)
    with sparsight.prune(model, "col_ln:tokens=3"), pytest.raises(PruneError, match="not called where pruning listens"):
        model(**given)


@pytest.mark.parametrize("inner_first", [False, True])
@pytest.mark.parametrize("name", ["llava", "qwen2.5"])
@torch.no_grad()
def test_together_with_a_method_inside_the_language_model(name, inner_first):
    model = build(name)
    given = inputs(name, model, SAMPLES)
    recipes = ["col_ln:tokens=4", "fastv:layer=1,keep=0.5"]
    handles = [sparsight.prune(model, recipe) for recipe in (reversed(recipes) if inner_first else recipes)]
    outer, inner = reversed(handles) if inner_first else handles
    reply = answer(model, given)
    assert outer.counts == [4, 4, 4]
    assert inner.counts == [[2, 4]]
    assert torch.equal(answer(model, given, use_cache=False), reply)
    for i, sample in enumerate(SAMPLES):
        assert torch.equal(answer(model, inputs(name, model, [sample]))[0], reply[i])
    labels = given["input_ids"].masked_fill((given["input_ids"] == IMAGE) | (given["attention_mask"] == 0), -100)
    labels[torch.arange(2), given["attention_mask"].argmax(dim=1)] = -100
    total, count = 0.0, 0
    for sample in SAMPLES:
        one = inputs(name, model, [sample])
        own = one["input_ids"].masked_fill(one["input_ids"] == IMAGE, -100)
        n = int((own[:, 1:] != -100).sum())
        total, count = total + model(**one, labels=own).loss * n, count + n
    out = model(**given, labels=labels)
    assert out.logits.shape[1] == labels.shape[1]
    torch.testing.assert_close(out.loss, (total / count).to(out.loss), atol=1e-5, rtol=1e-5)
    for handle in handles:
        handle.remove()
    assert "generate" not in vars(model)
    assert "forward" not in vars(model)
