"""DART against the numbers of the authors' code (VTC-Bench's copy, 983e443), and prompts on which that code fails."""

import itertools

import pytest
import torch

import sparsight
from sparsight import PruneError
from sparsight.methods import dart

VECTORS = ("llava_N100_b40", "qwen25_N100_r778", "llava_N576_b128", "llava_N576_b64")


def signals(d):
    """What the language model would hand over: the image's states and keys, and those of the text behind it."""
    hidden, k, start, n = d["hidden"].float(), d["k"].float(), int(d["image_start"]), int(d["N"])
    image, text = slice(start, start + n), slice(start + n, None)
    named = {"feats": hidden[:, image], "k": k[:, :, image], "text": hidden[:, text], "text_k": k[:, :, text]}
    return {"x": hidden[:, image], **named}, start


def test_vectors(newer):
    for name in VECTORS:
        d = newer(f"dart_{name}_seed0")
        given, start = signals(d)
        amount = f"keep={1 - float(d['budget'])}" if "qwen" in name else f"tokens={int(d['budget'])}"
        out = sparsight.reduce(f"dart:{amount},count=authors", **given)
        assert out.plan.slots == int(d["count"]), name
        assert torch.equal(out.plan.keep[0] + start, d["kept_positions_ascending_pivots"]), name
        own, words = dart.longest(given["k"], 4)[0], dart.longest(given["text_k"], 4)[0]
        assert torch.equal(own + start, d["image_pivots"].sort().values), name
        assert torch.equal(words + start + int(d["N"]), d["text_pivots"].sort().values), name
        pivots = d["hidden"].float()[:, d["pivot_order"].long()]
        takes = dart.shares(int(d["count"]), int(d["N"]), 4, 8, "exact", 4)
        plan = dart.least_alike(given["feats"], own.unsqueeze(0), pivots, takes)
        assert torch.equal(plan.keep[0] + start, d["kept_positions"]), name


def test_exactly_as_many_distinct_tokens_as_asked(rng):
    k = torch.randn(2, 2, 30, 4, generator=rng)
    inputs = (torch.randn(2, 30, 8, generator=rng), torch.ones(2, 30, 8), torch.zeros(2, 30, 8))
    for x, words in itertools.product(inputs, (0, 1, 3, 6)):
        text, text_k = x[:, :words], k[:, :, :words]
        for tokens in (1, 2, 4, 5, 12, 29, 30):
            keep = sparsight.reduce(f"dart:tokens={tokens}", x=x, k=k, text=text, text_k=text_k).plan.keep
            assert all(len(set(row)) == tokens and row == sorted(row) for row in keep.tolist())
        authors = sparsight.reduce("dart:tokens=29,count=authors", x=x, k=k, text=text, text_k=text_k).plan.keep
        assert authors.shape[1] == min(30, 4 + 3 * (4 + words if words < 4 else 8))
    with pytest.raises(PruneError, match="pivots=0"):
        sparsight.parse("dart:pivots=0")


@torch.no_grad()
def test_states_and_keys_are_the_decoders_own(tiny_decoder):
    """Against hidden states and keys that eager transformers gives: the norm of what enters layer 2, keys of layer 1 after RoPE."""
    model, ids = tiny_decoder, torch.randint(2, 97, (1, 38), generator=torch.Generator().manual_seed(4))
    out = model(ids, output_hidden_states=True, use_cache=True)
    states, keys = model.model.norm(out.hidden_states[2]), out.past_key_values.layers[1].keys
    with sparsight.prune(model, "dart:tokens=11", visual=slice(5, 29)) as handle:
        model(ids)
        image, text = slice(5, 29), slice(29, 38)
        want = dart.by_pivots(states[:, image], keys[:, :, image], states[:, text], keys[:, :, text], 11, 4, "exact")
        assert torch.equal(handle.plans[0].keep, want.keep)
        assert handle.counts == [11]
