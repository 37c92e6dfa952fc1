"""`generate` of a pruned model: modes of decoding, lengths, streams, chats with a kept cache."""

import pytest
import torch
from lvlms import BUILD, PAD, Size, answer, build, inputs, product

import sparsight

RECIPES = ["col_ln:tokens=3", "prumerge:score=column_mean"]
SAMPLES = [[3, Size(32, 16), 4], [9], [2, Size(16, 32, 1), 2, Size(16, 16, 2), 6]]


def concatenated(*parts):
    """Prompts one after another, without padding."""
    out = {}
    for part in parts:
        for key, value in part.items():
            along = key in ("input_ids", "attention_mask", "mm_token_type_ids")
            out[key] = torch.cat([out[key], value], dim=1 if along else 0) if key in out else value
    return out


def text_of(ids, like):
    """A prompt of text alone, in the keys that `like` has."""
    out = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**out, "mm_token_type_ids": torch.zeros_like(ids).int()} if "mm_token_type_ids" in like else out


@pytest.mark.parametrize("name", product(list(BUILD), lambda name: name in ("llava", "llava-next", "qwen2.5")))
def test_beams_and_several_answers(name):
    model = build(name)
    given = inputs(name, model, SAMPLES)
    options = {"num_beams": 3, "num_return_sequences": 2}
    with sparsight.prune(model, "col_ln:tokens=3"):
        together = answer(model, given, **options)
        for i, sample in enumerate(SAMPLES):
            assert torch.equal(answer(model, inputs(name, model, [sample]), **options), together[2 * i : 2 * i + 2])


@pytest.mark.parametrize("name", ["llava", "llava-next", "qwen2.5"])
def test_sampling(name):
    model = build(name)
    given = inputs(name, model, SAMPLES[:1])
    with sparsight.prune(model, "col_ln:tokens=3"):
        torch.manual_seed(0)
        out = model.generate(**given, max_new_tokens=5, do_sample=True, num_return_sequences=3)
        assert out.shape == (3, given["input_ids"].shape[1] + 5)
        torch.manual_seed(0)
        assert torch.equal(model.generate(**given, max_new_tokens=5, do_sample=True, num_return_sequences=3), out)


def test_lengths_count_the_users_prompt():
    model = build("llava")
    given = inputs("llava", model, SAMPLES)
    length = given["input_ids"].shape[1]
    with sparsight.prune(model, "col_ln:tokens=3"):
        assert model.generate(**given, max_length=length + 4).shape[1] == length + 4
        model.generation_config.max_length = length + 3
        assert model.generate(**given).shape[1] == length + 3
        model.generation_config.max_length = None
        assert model.generate(**given, max_length=length + 4, max_new_tokens=2).shape[1] == length + 2
        assert (
            model.generate(given["input_ids"], max_new_tokens=2, **{k: v for k, v in given.items() if k != "input_ids"}).shape[1]
            == length + 2
        )


def test_dict_and_streamer():
    class Streamer:
        def __init__(self) -> None:
            self.seen = []

        def put(self, value) -> None:
            self.seen.append(value)

        def end(self) -> None:
            self.seen.append(None)

    model = build("llava")
    given, streamer = inputs("llava", model, SAMPLES[:1]), Streamer()
    with sparsight.prune(model, "col_ln:tokens=3"):
        out = model.generate(**given, max_new_tokens=3, return_dict_in_generate=True, output_scores=True, streamer=streamer)
    assert torch.equal(out.sequences[:, :-3], given["input_ids"])
    assert torch.equal(streamer.seen[0], given["input_ids"])
    assert [int(token) for token in streamer.seen[1:4]] == out.sequences[0, -3:].tolist()
    assert streamer.seen[4] is None
    assert out.past_key_values.get_seq_length() == given["input_ids"].shape[1] - 13 + 2


CHATS = [(name, given_as, recipe) for name in BUILD for given_as in ("whole", "images again", "new") for recipe in RECIPES]


@pytest.mark.parametrize(
    ("name", "given_as", "recipe"),
    product(CHATS, lambda name, _given, recipe: name in ("llava", "qwen2.5") and recipe == RECIPES[name == "llava"]),
)
def test_a_chat_with_a_kept_cache_equals_one_from_the_start(name, given_as, recipe):
    from transformers import DynamicCache

    model = build(name)
    first = inputs(name, model, [[3, Size(32, 16), 4]])
    second = inputs(name, model, [[2, Size(16, 32, 1), 3]])
    third = torch.tensor([[5, 6, 7]])
    with sparsight.prune(model, recipe):
        cache, said = DynamicCache(), first
        for turn in (first, second, None):
            if turn is not first:
                new = text_of(third, first) if turn is None else turn
                said = concatenated(said, new)
            call = dict(said)
            if turn is not first:
                pixels = {k: v for k, v in new.items() if k not in ("input_ids", "attention_mask", "mm_token_type_ids")}
                if given_as != "images again":
                    call = {k: v for k, v in said.items() if k in ("input_ids", "attention_mask", "mm_token_type_ids")} | pixels
                if given_as.startswith("new"):
                    # what is new since the cache: the last token of the answer, and the new turn
                    tail = new["input_ids"].shape[1] + 1
                    call["input_ids"] = said["input_ids"][:, -tail:]
                    if "mm_token_type_ids" in call:
                        call["mm_token_type_ids"] = said["mm_token_type_ids"][:, -tail:]
            expected = answer(model, said)
            assert torch.equal(answer(model, call, past_key_values=cache), expected)
            said = concatenated(said, text_of(expected, first))


@pytest.mark.parametrize("name", product(list(BUILD), lambda name: name in ("llava", "onevision", "qwen2.5", "qwen3")))
@torch.no_grad()
def test_forwards_with_a_cache_by_hand(name):
    model = build(name)
    given = inputs(name, model, SAMPLES)
    with sparsight.prune(model, "prumerge:score=column_mean"):
        expected = answer(model, given, new=4)
        out = model(**given, use_cache=True)
        mask, tokens = given["attention_mask"], []
        for _ in range(4):
            token = out.logits[:, -1].argmax(dim=-1, keepdim=True)
            tokens.append(token)
            mask = torch.cat([mask, torch.ones_like(token)], dim=1)
            out = model(input_ids=token, attention_mask=mask, past_key_values=out.past_key_values, use_cache=True)
        assert torch.equal(torch.cat(tokens, dim=1), expected)


def test_chat_that_starts_without_images_or_before_pruning():
    from transformers import DynamicCache

    for name in ("llava", "qwen2.5"):
        model = build(name)
        first, second = inputs(name, model, [[6]]), inputs(name, model, [[2, Size(16, 32, 1), 3]])
        for before in (False, True):
            cache = DynamicCache()
            handle = None if before else sparsight.prune(model, "col_ln:tokens=3")
            reply = answer(model, first, past_key_values=cache)
            handle = handle or sparsight.prune(model, "col_ln:tokens=3")
            said = concatenated(first, text_of(reply, first), second)
            assert torch.equal(answer(model, said, past_key_values=cache), answer(model, said))
            assert handle.counts == [3]
            handle.remove()


def test_batched_chat_with_padding():
    from transformers import DynamicCache

    for name in ("llava", "qwen2.5"):
        model = build(name)
        given = inputs(name, model, SAMPLES)
        with sparsight.prune(model, "prumerge:score=column_mean"):
            cache = DynamicCache()
            reply = answer(model, given, past_key_values=cache)
            said = concatenated(given, text_of(reply, given), text_of(torch.tensor([[5, 6]] * 3), given))
            again = {k: said[k] for k in ("input_ids", "attention_mask", "mm_token_type_ids") if k in said}
            assert torch.equal(answer(model, again, past_key_values=cache), answer(model, said))


def test_ragged_rows_without_a_mask():
    model = build("llava")
    given = inputs("llava", model, [[3, Size(16, 16), 4], [2, Size(16, 16, 1), 5]])
    del given["attention_mask"]
    with sparsight.prune(model, "prumerge") as handle:
        together = answer(model, given)
        assert len(set(handle.counts)) == 2
        for i in range(2):
            one = {"input_ids": given["input_ids"][i : i + 1], "pixel_values": given["pixel_values"][i : i + 1]}
            assert torch.equal(answer(model, one)[0], together[i])
    assert not given["input_ids"].eq(PAD).any()


@pytest.mark.parametrize(
    "options",
    [{"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2}, {"prefill_chunk_size": 4}],
    ids=lambda o: next(iter(o)),
)
@pytest.mark.parametrize("name", ["llava", "llava-next", "qwen2.5"])
def test_other_ways_of_decoding(name, options):
    model = build(name)
    given = inputs(name, model, SAMPLES[:1] if "prompt_lookup_num_tokens" in options else SAMPLES[:2])
    with sparsight.prune(model, "prumerge:score=column_mean"):
        assert torch.equal(answer(model, given, **options), answer(model, given))
