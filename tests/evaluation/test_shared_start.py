"""Prompts that go on from their picture's cache: the logits of whole prompts, and what cannot be shared."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers")

from tiny_demo import IMAGE, make_model, make_processor, save_scenes

from sparsight import prune
from sparsight.data.questions import read_set
from sparsight.evaluation.asking import Asker, batched
from sparsight.evaluation.shared_start import SharedStart, going_on, is_shared
from sparsight.prune import resolve
from sparsight.runs.sweep import pruned

SHARED = (
    None,
    "divprune:tokens=4",
    "visionzip:tokens=5",
    "resize:tokens=4",
    "pool:tokens=4",
    "prumerge:tokens=6",
    "col_ln:tokens=3",
)


@pytest.fixture(scope="module")
def asker():
    return Asker(make_model(), make_processor(), 5)


@pytest.fixture(scope="module")
def asked(tmp_path_factory, asker):
    """Batches of questions about four pictures, and which picture each is about."""
    one = read_set(save_scenes(tmp_path_factory.mktemp("scenes") / "set", 4))
    about = {item.key: item.images for item in one.items}
    groups = batched([one.question(item) for item in one.items], 5)
    batches = [asker.prompted(group, [[p.convert("RGB") for p in q.pictures()] for q in group]) for group in groups]
    return batches, about, asker.processor.tokenizer.convert_tokens_to_ids(IMAGE)


def next_word(model, batch):
    """Logits of the first word of every answer."""
    made = model.generate(**batch.inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True)
    return made.logits[0]


@pytest.mark.parametrize("text", SHARED, ids=str)
def test_logits_and_counts_are_those_of_whole_prompts(asker, asked, text):
    batches, about, token = asked
    start = SharedStart.of(batches, about, token)
    assert start is not None
    assert len(start.inputs["input_ids"]) == 4
    recipe = None if text is None else resolve(text, {})
    assert is_shared(recipe)
    with pruned(asker.model, recipe) as handle, torch.no_grad():
        whole = [next_word(asker.model, batch) for batch in batches]
        counts = None if handle is None else handle.kept_per_image()[0]
        cache, kept = start.read(asker.model, handle)
    assert set(kept) == (set() if counts is None else {counts})
    lengths = set()
    for rest, want in zip(start.rests, whole, strict=True):
        torch.testing.assert_close(next_word(asker.model, going_on(rest, cache, 0)), want, atol=2e-4, rtol=1e-4)
        lengths |= set(rest.mask.sum(dim=1).tolist())
    assert len(lengths) > 1, "all questions are of one length: padding is not tested"
    assert cache.get_seq_length() == start.inputs["input_ids"].shape[1] - (0 if counts is None else 16 - counts)


def test_recipes_that_look_at_the_words_are_asked_whole():
    for text in ("fastv:tokens=4,layer=1", "cdpruner:tokens=4,text=llm", "sparsevlm:tokens=128", "dart:tokens=4,layer=1"):
        assert not is_shared(resolve(text, {})), text


def test_prompts_that_do_not_begin_alike_are_asked_whole(asker, asked):
    batches, about, token = asked
    other = Asker(asker.model, asker.processor, 5, prompt="{question} {images} ?")
    group = batches[0].questions
    assert SharedStart.of([other.prompted(group, [q.pictures() for q in group])], about, token) is None
    more = {**batches[0].inputs, "token_type_ids": torch.zeros_like(batches[0].inputs["input_ids"])}
    assert SharedStart.of([replace(batches[0], inputs=more)], about, token) is None
    assert SharedStart.of([replace(batches[0], images=[2] * len(group))], about, token) is None
    assert SharedStart.of([], about, token) is None


def test_counts_that_differ_are_asked_whole(asker, asked):
    start = SharedStart.of(*asked)
    with prune(asker.model, "divprune:tokens=4") as handle:
        counts = iter([[4, 4, 5, 4], [4, 4, 4, 4]])

        class Differing:
            def kept_per_image(self):
                handle.kept_per_image()
                return next(counts)

        assert start.read(asker.model, Differing()) is None
        assert start.read(asker.model, Differing())[1] == [4] * 4
