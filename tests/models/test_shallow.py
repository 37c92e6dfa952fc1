"""A site that looks back at an earlier block of a vision model."""

import pytest
import timm
import torch

import sparsight
from sparsight import PruneError
from sparsight.ops import reduce, schedule, select
from sparsight.recipe import Recipe


def model():
    torch.manual_seed(0)
    return timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=32, num_heads=2, depth=4, num_classes=0).eval()


def recipe(score, layer, shallow=None):
    return Recipe(score, select.topk, reduce.drop, schedule.staged(0.5, (layer,)), shallow=shallow)


@torch.no_grad()
def test_an_earlier_blocks_queries_and_keys_are_its_own():
    """Block 1 as its own site sees it, and as a site at block 3 does; (3, 12) is block 1 of these four."""
    net, x, seen = model(), torch.randn(2, 3, 32, 32), {}

    def own(q, k):
        seen["own"] = q, k
        return k[:, 0, 1:, 0]

    def early(q, shallow_q, shallow_k, shallow_class_attn):
        seen["early"], seen["late"], seen["row"] = (shallow_q, shallow_k), q, shallow_class_attn
        return shallow_class_attn.mean(dim=1)

    with sparsight.prune(net, recipe(own, 1)):
        net(x)
    with sparsight.prune(net, recipe(early, 3, (3, 12))) as handle:
        net(x)
        assert handle.counts == [8]
    q, k = seen["own"]
    assert torch.equal(q, seen["early"][0])
    assert torch.equal(k, seen["early"][1])
    assert not torch.allclose(q, seen["late"])
    torch.testing.assert_close(seen["row"], (q[:, :, :1] @ k.transpose(-2, -1) / 4).softmax(dim=-1)[:, :, 0, 1:])


def test_what_cannot_be_looked_back_at_is_refused():
    def early(shallow_token_weight):
        return shallow_token_weight

    with pytest.raises(PruneError, match="says of which block"):
        recipe(early, 3)
    for layer, shallow, words in (
        (3, (4, 0), "block 4 is out of range"),
        (1, (2, 0), "looks back at block 2"),
        (3, (1, 0), "block 2 in between"),
    ):
        net = model()
        other = sparsight.prune(net, "col_ln:keep=0.5,layers=2")
        with pytest.raises(PruneError, match=words):
            sparsight.prune(net, recipe(early, layer, shallow))
        other.remove()
    with pytest.raises(PruneError, match="no language model"):
        sparsight.prune(model(), "hiprune")
