"""Pruned forwards of a real LlamaModel against the authors' code: indices exact, hidden states within 5e-3, caches, one decode step."""

import pytest
import torch

import sparsight
from sparsight import PruneError
from sparsight.ops.cluster import density_peaks

IMAGE = slice(35, 611)
CLOSE = {"atol": 5e-3, "rtol": 0}


def forward(model, want):
    """Prefill and one decode step without position ids: hidden states, cache lengths, hidden state of the step."""
    with torch.no_grad():
        out = model(inputs_embeds=want["inputs_embeds"], use_cache=True)
        lengths = [out.past_key_values.get_seq_length(layer) for layer in range(18)]
        step = model(inputs_embeds=want["decode_embed"], past_key_values=out.past_key_values) if "decode_embed" in want else None
    return out.last_hidden_state, lengths, None if step is None else step.last_hidden_state


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_fastv(golden, tiny_llama, attention):
    want = golden("vlm/fastv_K3_r50_seed0")
    model = tiny_llama(attention=attention)
    handle = sparsight.prune(model, "fastv:layer=3,keep=0.5", visual=IMAGE)
    hidden, lengths, step = forward(model, want)
    assert torch.equal(handle.left[0][0], want["keep_indexs"])
    torch.testing.assert_close(handle.scores[0][0], want["image_attention_score"], atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden, want["last_hidden"], **CLOSE)
    torch.testing.assert_close(step, want["decode_hidden"], **CLOSE)
    doubled = want["cache_lens"].clone()
    doubled[2] //= 2  # the authors run this layer twice into the same cache
    assert lengths == doubled.tolist()


def test_pyramiddrop(golden, tiny_llama):
    want = golden("vlm/pdrop_L4_8_12_seed0")
    model = tiny_llama()
    handle = sparsight.prune(model, "pyramiddrop:layers=4/8/12,keep=0.5/0.25/0.125", visual=IMAGE)
    hidden, lengths, step = forward(model, want)
    text = torch.cat([torch.arange(35), torch.arange(611, 632)])
    for stage in range(3):
        kept = torch.cat([text, want[f"stage{stage}_keep_original"]]).sort().values
        assert torch.equal(handle.left[stage][0], kept)
        torch.testing.assert_close(handle.scores[stage][0], want[f"stage{stage}_scores"], atol=1e-5, rtol=0)
    assert handle.counts == [288, 144, 72]
    torch.testing.assert_close(hidden, want["last_hidden"], **CLOSE)
    torch.testing.assert_close(step, want["decode_hidden"], **CLOSE)
    assert lengths == want["cache_lens"].tolist()


@pytest.mark.parametrize("tokens", [192, 64])
def test_sparsevlm(golden, tiny_llama, tokens):
    want = golden(f"vlm/sparsevlm_e2e_retain{tokens}_seed0")
    model = tiny_llama()
    noise = [want[f"stage{stage}_noise"] for stage in range(3)]
    handle = sparsight.prune(model, f"sparsevlm:tokens={tokens}", visual=IMAGE, noise=noise)
    hidden, lengths, _ = forward(model, want)
    for stage, plan in enumerate(handle.plans):
        assert plan.total == int(want[f"stage{stage}_v_token_num_before"])
        assert torch.equal(plan.keep[0, : -plan.tail], want[f"stage{stage}_keep_local"])
        torch.testing.assert_close(handle.scores[stage], want[f"stage{stage}_vis_score"], atol=1e-5, rtol=0)
        clusters = density_peaks(want[f"stage{stage}_recycle_in"], plan.tail, noise[stage])
        assert torch.equal(clusters.centres, want[f"stage{stage}_centers"])
        assert torch.equal(clusters.member, want[f"stage{stage}_cluster_id"])
    torch.testing.assert_close(hidden, want["last_hidden"], **CLOSE)
    assert lengths == want["cache_lens"].tolist()


def test_noise_is_checked(tiny_llama):
    with pytest.raises(PruneError, match="one for each of 3 sites"):
        sparsight.prune(tiny_llama(), "sparsevlm", visual=IMAGE, noise=[torch.zeros(1, 9)])
