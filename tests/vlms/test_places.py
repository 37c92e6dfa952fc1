"""Whatever knows places in the prompt follows the pruned one, sees the full one, or is refused."""

import pytest
import torch
from lvlms import IMAGE, Size, answer, build, inputs

import sparsight
from sparsight import PruneError

SAMPLES = [[3, Size(32, 16), 4], [2, Size(16, 32, 1), 2, Size(16, 16, 2), 6]]
ONE = [[3, Size(32, 16), 4]]
RECIPES = ["col_ln:tokens=3", "fastv:layer=1,keep=0.5"]


def labels_of(given):
    labels = given["input_ids"].masked_fill((given["input_ids"] == IMAGE) | (given["attention_mask"] == 0), -100)
    labels[torch.arange(len(labels)), given["attention_mask"].argmax(dim=1)] = -100
    return labels


@pytest.mark.parametrize("recipe", RECIPES)
@torch.no_grad()
def test_position_ids_without_a_mask_are_no_packed_rows(recipe):
    model = build("llava")
    given = inputs("llava", model, ONE)
    position = torch.arange(given["input_ids"].shape[1]).unsqueeze(0)
    with sparsight.prune(model, recipe):
        expected = model(**given, position_ids=position).logits
        del given["attention_mask"]
        assert torch.equal(model(**given, position_ids=position, use_cache=False).logits, expected)
        out = [answer(model, given, use_cache=cache, position_ids=position) for cache in (True, False)]
        assert torch.equal(*out)


@pytest.mark.parametrize("recipe", RECIPES)
@torch.no_grad()
def test_packed_rows_are_refused(recipe):
    model = build("llava")
    given = inputs("llava", model, ONE)
    del given["attention_mask"]
    length = given["input_ids"].shape[1]
    restarting = torch.cat([torch.arange(20), torch.arange(length - 20)]).unsqueeze(0)
    borders = {"cu_seq_lens_q": torch.tensor([0, 20, length]), "cu_seq_lens_k": torch.tensor([0, 20, length])}
    with sparsight.prune(model, recipe):
        for more in ({"position_ids": restarting}, borders, {"max_length_q": 20}):
            with pytest.raises(PruneError, match="packed rows"):
                model(**given, **more, use_cache=False)


@pytest.mark.parametrize("recipe", RECIPES)
@torch.no_grad()
def test_tuples_with_a_kept_cache(recipe):
    """return_dict=False hides the cache's name, not the cache; rows are padded on the left."""
    model = build("llava")
    given = inputs("llava", model, SAMPLES)
    token = torch.tensor([[5], [6]])
    mask = torch.cat([given["attention_mask"], torch.ones_like(token)], dim=1)
    with sparsight.prune(model, recipe):
        steps = []
        for kind in (True, False):
            out = model(**given, use_cache=True, return_dict=kind)
            cache = out.past_key_values if kind else out[1]
            steps.append(model(input_ids=token, attention_mask=mask, past_key_values=cache).logits)
    assert torch.equal(*steps)


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_generate_calls_sees_the_full_prompt(recipe):
    from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

    model, seen = build("llava"), {"logits": [], "stop": [], "allowed": []}
    given = inputs("llava", model, SAMPLES)
    length = given["input_ids"].shape[1]

    class Processor(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen["logits"].append(input_ids)
            return scores

    class AfterThree(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            seen["stop"].append(input_ids)
            return torch.full((len(input_ids),), input_ids[:, length:].shape[1] >= 3)

    def allowed(row, ids):
        seen["allowed"].append((row, ids))
        return list(range(80))

    options = {
        "logits_processor": LogitsProcessorList([Processor()]),
        "stopping_criteria": StoppingCriteriaList([AfterThree()]),
        "prefix_allowed_tokens_fn": allowed,
    }
    with sparsight.prune(model, recipe):
        for more in ({}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}):
            out = model.generate(**given, max_new_tokens=12, **{"do_sample": False, **options, **more})
            assert out.shape[1] == length + 3
            for ids in seen["logits"] + seen["stop"]:
                assert torch.equal(ids[:, :length], given["input_ids"].repeat_interleave(len(ids) // 2, dim=0))
            for row, ids in seen["allowed"]:
                assert torch.equal(ids[:length], given["input_ids"][row // (len(out) // 2)])
            seen = {key: [] for key in seen}


@pytest.mark.parametrize("recipe", RECIPES)
def test_logits_fit_labels(recipe):
    """With labels, in training, with places in logits_to_keep, and on request; else logits are those of the shortened prompt."""
    model = build("llava")
    given = inputs("llava", model, SAMPLES)
    labels, length = labels_of(given), given["input_ids"].shape[1]
    with sparsight.prune(model, recipe) as handle, torch.no_grad():
        short = model(**given).logits
        assert short.shape[1] < length
        out = model(**given, labels=labels)
        places = model(**given, logits_to_keep=torch.tensor([length - 2])).logits
        handle.full_length = True
        asked = model(**given).logits
        handle.full_length = False
        own = handle.shorten(labels)
    assert out.logits.shape[1] == asked.shape[1] == length
    torch.testing.assert_close(places, asked[:, [length - 2]])
    shifted = [(out.logits[:, :-1], labels[:, 1:]), (short[:, :-1], own[:, 1:])]
    losses = [torch.nn.functional.cross_entropy(one.flatten(0, 1), two.flatten()) for one, two in shifted]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], out.loss.to(losses[0]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("recipe", RECIPES)
def test_trainer(recipe, smoothing, tmp_path):
    """label_smoothing_factor takes the labels away before the model sees them; compute_metrics compares logits with them."""
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    model = build("llava").float()
    given = {k: v.float() if v.is_floating_point() else v for k, v in inputs("llava", model, SAMPLES[:1]).items()}
    row = {**{key: value[0] for key, value in given.items()}, "labels": labels_of(given)[0]}
    shapes = []

    def metrics(found):
        logits = found.predictions[0] if isinstance(found.predictions, tuple) else found.predictions
        shapes.append((logits.shape[:2], found.label_ids.shape))
        return {"right": float((logits.argmax(-1)[:, :-1] == found.label_ids[:, 1:]).mean())}

    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, per_device_eval_batch_size=2, max_steps=2, label_smoothing_factor=smoothing,
        report_to=[], use_cpu=True, save_strategy="no", remove_unused_columns=False, prediction_loss_only=False, disable_tqdm=True,
    )  # fmt: skip
    with sparsight.prune(model, recipe) as handle:
        handle.full_length = True  # what Trainer evaluates with smoothing has no labels, either
        trainer = Trainer(model=model, args=arguments, train_dataset=[row] * 4, eval_dataset=[row] * 3, compute_metrics=metrics)
        trainer.train()
        found = trainer.evaluate()
        assert handle.counts
    assert found["eval_loss"] > 0
    assert 0 <= found["eval_right"] <= 1
    assert shapes[0][0] == shapes[0][1]
