"""Methods inside the language model on tiny random decoders: identity, caches, padding, chats, beams, errors."""

import pytest
import torch

import sparsight
from sparsight import PruneError

METHODS = {
    "fastv": "fastv:layer=2,keep=0.5",
    "fastv_renumbered": "fastv:layer=2,keep=0.5,positions=renumbered",
    "pyramiddrop": "pyramiddrop:layers=2/4,keep=0.5/0.25",
    "sparsevlm": "sparsevlm:keep=0.4,layers=1/2/4",
    "dart": "dart:layer=2,keep=0.5",
    "sparsevlm_rank": "sparsevlm:count=rank,scale=1,bias=2,layers=1/3",
}
ALL = ["fastv:layer=2,keep=1", "pyramiddrop:layers=2/4,keep=1/1", "sparsevlm:keep=1,layers=1/2/4", "dart:keep=1"]
KINDS = ["llama", "qwen2", "mistral"]
PAIRS = [
    ("llama", "fastv"),
    ("qwen2", "pyramiddrop"),
    ("mistral", "sparsevlm"),
    ("mistral", "fastv"),
    ("qwen2", "sparsevlm_rank"),
    ("qwen2", "dart"),
]
MAIN = ["fastv", "pyramiddrop", "sparsevlm"]
VISUAL = slice(5, 29)
LENGTH = 38


def build(kind: str = "llama", attention: str = "sdpa", **more) -> torch.nn.Module:
    """A decoder with language-model head; Qwen2 and Mistral with grouped queries; Mistral with its default sliding window."""
    import transformers as hf

    classes = {
        "llama": (hf.LlamaConfig, hf.LlamaForCausalLM),
        "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM),
        "mistral": (hf.MistralConfig, hf.MistralForCausalLM),
    }
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 4 if kind == "llama" else 2}
    plain = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "initializer_range": 0.3}
    config = classes[kind][0](**{**sizes, **heads, **plain, **more})
    config._attn_implementation = attention
    torch.manual_seed(3)
    return classes[kind][1](config).eval()


def prompt(batch: int = 1, length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def generate(model, ids, tokens=5, **kwargs):
    kwargs.setdefault("attention_mask", torch.ones_like(ids))
    return model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, **kwargs)


@torch.no_grad()
def logits(model, ids, **kwargs):
    return model(input_ids=ids, **kwargs).logits


def padded(right: bool):
    """Three prompts of different lengths and visual counts: ids, mask, visual mask, and each one alone."""
    spans = [(5, 29), (2, 20), (7, 19)]
    rows = [prompt(1, length, seed)[0] for length, seed in ((38, 1), (27, 2), (33, 3))]
    ids, mask, visual = (
        torch.zeros(3, 38, dtype=torch.long),
        torch.zeros(3, 38, dtype=torch.long),
        torch.zeros(3, 38, dtype=torch.bool),
    )
    for b, (row, (start, stop)) in enumerate(zip(rows, spans)):
        first = 0 if right else 38 - len(row)
        ids[b, first : first + len(row)], mask[b, first : first + len(row)] = row, 1
        visual[b, first + start : first + stop] = True
    return ids, mask, visual, [(row[None], slice(*span)) for row, span in zip(rows, spans)]


@pytest.mark.parametrize("kind", KINDS)
def test_keeping_all_changes_nothing(kind):
    model, ids = build(kind), prompt(2)
    want, want_ids = logits(model, ids), generate(model, ids)
    for recipe in ALL:
        with sparsight.prune(model, recipe, visual=VISUAL):
            assert torch.equal(logits(model, ids), want)
            assert torch.equal(generate(model, ids), want_ids)


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_generating_with_a_cache_equals_without(kind, name):
    model, ids = build(kind), prompt(1, seed=5)
    handle = sparsight.prune(model, METHODS[name], visual=VISUAL)
    fast = generate(model, ids)
    assert handle.counts[0] < 24
    assert torch.equal(fast, generate(model, ids, use_cache=False))
    assert torch.equal(fast[:, :LENGTH], ids)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("right", [False, True], ids=["left", "right"])
def test_item_of_a_batch_equals_item_alone(name, right):
    model = build("qwen2")
    ids, mask, visual, alone = padded(right)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    handle = sparsight.prune(model, METHODS[name], visual=visual)
    together = logits(model, ids, attention_mask=mask, position_ids=position)
    plans = handle.plans
    handle.remove()
    for b, (row, span) in enumerate(alone):
        with sparsight.prune(model, METHODS[name], visual=span) as single:
            want = logits(model, row)[0]
        kept = single.plans[-1].slots
        assert plans[-1].counts[b] == kept
        assert torch.equal(plans[0].keep[b, : single.plans[0].keep.shape[1]], single.plans[0].keep[0])
        got = together[b, : len(want)] if right else together[b, -len(want) :]
        torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MAIN)
def test_batched_generation_with_left_padding(name):
    model = build("qwen2")
    ids, mask, visual, alone = padded(right=False)
    with sparsight.prune(model, METHODS[name], visual=visual):
        together = generate(model, ids, 4, attention_mask=mask)
        assert torch.equal(together, generate(model, ids, 4, attention_mask=mask, use_cache=False))
    for b, (row, span) in enumerate(alone):
        with sparsight.prune(model, METHODS[name], visual=span):
            assert torch.equal(generate(model, row, 4)[0, -4:], together[b, -4:])


@pytest.mark.parametrize("name", MAIN)
def test_beams(name):
    """Caches are expanded and reordered; with and without cache the same beams win, also in a padded batch."""
    model = build("llama")
    ids, mask, visual, _ = padded(right=False)
    with sparsight.prune(model, METHODS[name], visual=visual):
        fast = generate(model, ids, 4, attention_mask=mask, num_beams=2)
        assert torch.equal(fast, generate(model, ids, 4, attention_mask=mask, num_beams=2, use_cache=False))


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_eager_equals_sdpa(kind, name):
    sdpa, eager = build(kind), build(kind, "eager")
    ids, mask, visual, _ = padded(right=False)
    with sparsight.prune(sdpa, METHODS[name], visual=visual) as a, sparsight.prune(eager, METHODS[name], visual=visual) as b:
        got, want = logits(sdpa, ids, attention_mask=mask), logits(eager, ids, attention_mask=mask)
        for one, other in zip(a.plans, b.plans):
            assert torch.equal(one.keep, other.keep)
        torch.testing.assert_close(got[:, -8:], want[:, -8:], atol=2e-4, rtol=1e-4)
        assert torch.equal(generate(sdpa, ids, 3, attention_mask=mask), generate(eager, ids, 3, attention_mask=mask))


def test_caches_lose_the_tokens():
    model = build("qwen2")
    for recipe in METHODS.values():
        with sparsight.prune(model, recipe, visual=VISUAL) as handle, torch.no_grad():
            cache = model(input_ids=prompt(), use_cache=True).past_key_values
            after = dict(zip(handle.layers, handle.counts))
        left = 24
        for layer in range(6):
            left = after.get(layer, left)
            assert cache.get_seq_length(layer) == LENGTH - 24 + left


@pytest.mark.parametrize("name", METHODS)
def test_second_turn_of_a_chat(name):
    """New text in one piece on a pruned cache is the same as token by token; already cached tokens are not pruned again."""
    model, first, second = build("llama"), prompt(2), prompt(2, 7, seed=9)
    handle = sparsight.prune(model, METHODS[name], visual=VISUAL)
    with torch.no_grad():
        cache = model(input_ids=first, use_cache=True).past_key_values
        plans = handle.plans
        whole = model(input_ids=second, past_key_values=cache)
        assert all(a is b for a, b in zip(plans, handle.plans))
        steps = model(input_ids=first, use_cache=True).past_key_values
        single = [model(input_ids=second[:, i : i + 1], past_key_values=steps).logits for i in range(7)]
    torch.testing.assert_close(whole.logits, torch.cat(single, dim=1), atol=2e-4, rtol=1e-4)
    lengths = [whole.past_key_values.get_seq_length(layer) for layer in range(6)]
    assert lengths == [steps.get_seq_length(layer) for layer in range(6)]


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "sparsevlm"])
def test_images_of_a_second_turn(name):
    """Only the new turn's visual tokens are pruned; decoding goes on; a batch with padding equals its items alone."""
    model, spans = build("llama"), [(5, 29), (40, 56)]
    ids, longer = prompt(1, 60), torch.zeros(1, 60, dtype=torch.bool)
    for start, stop in spans:
        longer[:, start:stop] = True
    pad = torch.zeros(1, 4, dtype=torch.long)

    def chat(ids, mask, visual):
        with sparsight.prune(model, METHODS[name], visual=visual) as handle, torch.no_grad():
            split = ids.shape[1] - 22
            position = (mask.cumsum(1) - 1).clamp(min=0)
            kwargs = {"attention_mask": mask[:, :split], "position_ids": position[:, :split]}
            cache = model(input_ids=ids[:, :split], use_cache=True, **kwargs).past_key_values
            out = model(input_ids=ids[:, split:], attention_mask=mask, past_key_values=cache, position_ids=position[:, split:])
            assert handle.plans[0].total == 16
            more = torch.cat([mask, mask[:, :1] * 0 + 1], dim=1)
            step = model(input_ids=ids[:, -1:], attention_mask=more, past_key_values=cache, position_ids=position[:, -1:] + 1)
        return handle.plans, out.logits[:, -1], step.logits[:, -1], [cache.get_seq_length(i) for i in range(6)]

    plans, last, step, lengths = chat(ids, torch.ones_like(ids), longer)
    assert lengths[0] == 61
    assert lengths[5] < 61
    two = torch.cat([torch.cat([pad, ids], dim=1), torch.cat([pad, ids], dim=1)])
    mask = torch.ones_like(two)
    mask[:, :4] = 0
    both = chat(two, mask, torch.nn.functional.pad(longer, (4, 0)))
    assert torch.equal(both[0][-1].keep[0], plans[-1].keep[0])
    torch.testing.assert_close(both[1][1:], last, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(both[2][1:], step, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MAIN)
def test_small_sliding_window(name):
    """The window counts the tokens that are left; a cache that forgets what is outside changes nothing."""
    model, ids = build("mistral", sliding_window=12), prompt(2)
    with sparsight.prune(model, METHODS[name], visual=VISUAL):
        fast = generate(model, ids)
        assert torch.equal(fast, generate(model, ids, use_cache=False))


def test_text_only_prompts_pass():
    model, ids = build("qwen2"), prompt(2, 20)
    ids[ids == 96] = 5
    want, visual = logits(model, ids), ids.clone()
    visual[:, 3:17] = 96
    for recipe in METHODS.values():
        with sparsight.prune(model, recipe, visual=96) as handle:
            assert torch.equal(logits(model, ids), want)
            assert handle.plans == []
            assert logits(model, visual).shape[1] < 20


def test_remove_restores():
    model, ids = build(), prompt(2)
    before, want, keys = generate(model, ids), logits(model, ids), set(model.__dict__)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    handle = sparsight.prune(model, METHODS["pyramiddrop"], visual=VISUAL)
    other = sparsight.prune(model, "fastv:layer=3,keep=0.5", visual=VISUAL)
    assert logits(model, ids).shape[1] < LENGTH
    handle.remove()
    other.remove()
    other.remove()
    assert torch.equal(logits(model, ids), want)
    assert torch.equal(generate(model, ids), before)
    assert set(model.__dict__) == keys
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in model.modules())
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_loss_follows_the_tokens_that_are_left(name):
    model, ids = build(), prompt(2)
    labels = ids.clone()
    labels[:, VISUAL] = -100
    with sparsight.prune(model, METHODS[name], visual=VISUAL), torch.no_grad():
        out = model(input_ids=ids, labels=labels)
        short = model(input_ids=ids).logits
    assert out.logits.shape[1] == LENGTH
    before, after = short[:, :4], short[:, -10:-1]  # the text after the image is predicted from the token before it on
    predicted = torch.cat([before, after], dim=1)
    want = torch.cat([ids[:, 1:5], ids[:, 29:]], dim=1)
    loss = torch.nn.functional.cross_entropy(predicted.flatten(0, 1), want.flatten())
    torch.testing.assert_close(out.loss, loss)


def test_bad_recipes():
    cases = [
        ("fastv:layer=0", "layer 0 is out of range"),
        ("fastv:layer=6", "layer 6 is out of range: the language model has 6 layers"),
        ("pyramiddrop:layers=2/9,keep=0.5/0.25", "layer 2/9 is out of range"),
        ("pyramiddrop:layers=2/4", "3 values for 2 sites"),
        ("sparsevlm", "layer 2/6/15 is out of range"),
        ("sparsevlm:layers=1/2", "three layers"),
        ("fastv:keep=0", "outside"),
        ("fastv:keep=1.5", "outside"),
        ("fastv:where=attn", "where"),
    ]
    model = build()
    for recipe, words in cases:
        with pytest.raises(PruneError, match=words):
            sparsight.prune(model, recipe, visual=VISUAL)


def test_bad_calls():
    import transformers as hf

    model = build()
    with pytest.raises(PruneError, match="nobody says which tokens are visual"):
        sparsight.prune(model, "fastv")
    for visual in (slice(5, None), slice(-9, -1), torch.ones(3), "image", True):
        with pytest.raises(PruneError, match="visual"):
            sparsight.prune(model, "fastv", visual=visual)
    other = hf.GPT2Model(hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=11))
    with pytest.raises(PruneError, match="no decoder that is known"):
        sparsight.prune(other, "fastv", visual=VISUAL)
    sparsight.prune(model, "fastv:layer=3", visual=VISUAL)
    with pytest.raises(PruneError, match="pruned already"):
        sparsight.prune(model, "fastv:layer=3", visual=VISUAL)
    with pytest.raises(PruneError, match="2-D attention mask"):
        logits(model, prompt(), attention_mask=torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool))
