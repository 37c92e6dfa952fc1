"""Other tools around and inside pruned vision-language models: PEFT, TRL, assisted decoding."""

import warnings

import pytest
import torch
from lvlms import IMAGE, Size, answer, build, inputs, product

import sparsight

SAMPLES = [[3, Size(32, 16), 4], [2, Size(16, 32, 1), 2, Size(16, 16, 2), 6]]
RECIPES = ["col_ln:tokens=3", "fastv:layer=1,keep=0.5", "sparsevlm:layers=0/1,count=rank,scale=0.5"]


def adapted(model):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    return peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False)
    ).eval()


@pytest.mark.parametrize("recipe", RECIPES)
def test_lora_before_and_after_pruning(recipe):
    """Adapters count in the scores whichever came first; merging them into the weights changes nothing."""
    model = build("llava")
    given = inputs("llava", model, SAMPLES)
    labels = given["input_ids"].masked_fill(given["input_ids"] == IMAGE, -100)
    plain = model(**given).logits
    first = sparsight.prune(model, recipe)
    later, earlier = adapted(model), adapted(build("llava"))
    handle = sparsight.prune(earlier, recipe)
    outs = [one(**given) for one in (later, earlier)]
    assert torch.equal(outs[0].logits, outs[1].logits)
    assert first.counts == handle.counts
    assert first.counts
    assert outs[0].logits.shape[1] < plain.shape[1]
    later.train()
    loss = later(**given, labels=labels)
    assert loss.logits.shape[1] == labels.shape[1]
    loss.loss.backward()
    assert all(p.grad is not None for name, p in later.named_parameters() if "lora" in name and "language_model" in name)
    later.eval()
    torch.testing.assert_close(later(**given, labels=labels).logits.shape[1], labels.shape[1])
    reply = answer(later, given)
    merged = later.merge_and_unload()
    torch.testing.assert_close(merged(**given).logits, outs[0].logits)
    assert torch.equal(answer(merged, given), reply)
    first.remove()
    handle.remove()
    assert not any("forward" in vars(module) for one in (merged, earlier) for module in one.modules())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("recipe", RECIPES[:2])
def test_sft_trainer(recipe, smoothing, tmp_path):
    """TRL asks the inner model for hidden states and compares them with the labels of the full prompt."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from PIL import Image
    from test_lvlm_processors import photo, processor

    made = processor("llava")
    made.chat_template = made.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %} {% endfor %}"
    )
    rows = {
        "prompt": [[{"role": "user", "content": "what is this ?"}]] * 4,
        "completion": [[{"role": "assistant", "content": "w20 w21"}]] * 4,
        "images": [[Image.fromarray(photo(20, 30, i))] for i in range(4)],
    }
    data = datasets.Dataset.from_dict(rows)
    arguments = trl.SFTConfig(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, use_cpu=True, report_to=[], max_length=None, disable_tqdm=True,
        save_strategy="no", bf16=False, label_smoothing_factor=smoothing,
    )  # fmt: skip
    model = build("llava").float()
    with sparsight.prune(model, recipe) as handle, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handle.full_length = True  # for the evaluation, in which the model is given no labels
        trainer = trl.SFTTrainer(model=model, args=arguments, train_dataset=data, eval_dataset=data, processing_class=made)
        assert trainer.train().training_loss > 0
        assert trainer.evaluate()["eval_loss"] > 0
        assert handle.counts


BOTH = [(main, draft) for main in (None, *RECIPES[:2]) for draft in (None, *RECIPES[:2])]


@pytest.mark.parametrize(("main", "draft"), product(BOTH, lambda main, draft: main is None or main == draft))
def test_assisted_decoding(main, draft):
    """A draft changes nothing about the answer; pruned itself, it says that it is given no images."""
    model, assistant = build("llava"), build("llava")
    given = inputs("llava", model, SAMPLES[:1])
    for recipe, one in ((main, model), (draft, assistant)):
        if recipe is not None:
            sparsight.prune(one, recipe)
    expected = answer(model, given)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert torch.equal(answer(model, given, assistant_model=assistant), expected)
    assert any("draft of assisted decoding" in str(one.message) for one in caught) == (draft == RECIPES[0])


@pytest.mark.parametrize("recipe", RECIPES[:2])
@pytest.mark.parametrize("prune_first", [True, False])
def test_weights_offloaded_by_accelerate(recipe, prune_first):
    accelerate = pytest.importorskip("accelerate")
    model = build("llava")
    given = inputs("llava", model, SAMPLES)
    plain = answer(model, given)
    with sparsight.prune(model, recipe):
        expected = answer(model, given)
    handle = sparsight.prune(model, recipe) if prune_first else None
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    handle = handle or sparsight.prune(model, recipe)
    assert torch.equal(answer(model, given), expected)
    handle.remove()
    assert torch.equal(answer(model, given), plain)


@pytest.mark.parametrize("recipe", RECIPES[:2])
def test_averaged_weights_and_models_without_values(recipe):
    model = build("llava")
    given = inputs("llava", model, SAMPLES)
    handle = sparsight.prune(model, recipe)
    assert f"pruned by {handle.recipe}" in repr(model)
    model.train()
    model(**given, labels=given["input_ids"]).loss.backward()
    average = torch.optim.swa_utils.AveragedModel(model).eval()
    average.update_parameters(model)
    with torch.no_grad():
        assert torch.equal(average(**given).logits, model.eval()(**given).logits)
    assert sparsight.handle(average).counts == handle.counts
    with pytest.raises(sparsight.PruneError, match="device meta"):
        model.to("meta")(**{key: value.to("meta") for key, value in given.items()})
    sparsight.unprune(model)
    assert "pruned by" not in repr(model)
