"""Handle.restore: tokens back on the full grid."""

import itertools

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import sparsight
from sparsight import PruneError
from sparsight.ops.dense import restore
from sparsight.plan import Plan

SIZES = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 0}
GRID = (4, 6)


def model(**options):
    torch.manual_seed(0)
    return VisionTransformer(**SIZES, **options).double().eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 32, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_hand(plan, tokens, grid):
    """The definition in loops: owner's value, else the nearest survivor's, the lower index first."""
    filled = torch.empty(tokens.shape[0], plan.total, tokens.shape[2], dtype=tokens.dtype)
    for b, n in itertools.product(range(tokens.shape[0]), range(plan.total)):
        slot = int(plan.owner[b, n])
        if slot < 0:
            place = [(int(p), s + plan.led) for s, p in enumerate(plan.keep[b]) if p >= 0]
            apart = [((p // grid[1] - n // grid[1]) ** 2 + (p % grid[1] - n % grid[1]) ** 2, p, s) for p, s in place]
            slot = min(apart)[2]
        filled[b, n] = tokens[b, slot]
    return filled


@torch.no_grad()
@pytest.mark.parametrize(
    "recipe",
    [
        "random:keep=0.3,layers=0",
        "col_ln:keep=0.5,layers=0/2",
        "similarity:keep=0.4,layers=input",
        "evit:keep=0.5,layers=0/2",
        "tome:remove=5,layers=all",
    ],
)
def test_restore_is_the_definition(recipe, x):
    net = model(reg_tokens=1)
    with sparsight.prune(net, recipe) as handle:
        tokens = net.forward_features(x)
        full = handle.restore(tokens)
        assert full.shape == (2, 2 + 24, 32)
        assert torch.equal(full[:, :2], tokens[:, :2])
        expected = by_hand(handle.sources()[-1], tokens[:, 2:], GRID)
        assert torch.equal(full[:, 2:], expected)
        assert torch.equal(handle.restore(tokens[:, 2:]), expected)
        assert torch.equal(handle.restore(tokens, as_map=True), expected.mT.reshape(2, 32, *GRID))


@torch.no_grad()
def test_identity_where_nothing_left(x):
    net = model()
    whole = net.forward_features(x)
    with sparsight.prune(net, "col_ln:keep=1,layers=0/2") as handle:
        tokens = net.forward_features(x)
        assert torch.equal(handle.restore(tokens), tokens)
        torch.testing.assert_close(handle.restore(tokens), whole)
    with sparsight.prune(net, "col_ln:keep=0.5,layers=3,where=block") as handle:
        tokens = net.forward_features(x)
        assert torch.equal(handle.restore(whole, after=2), whole), "nothing has left after block 2"
        kept = handle.plans[0].keep.unsqueeze(-1).expand(-1, -1, 32) + 1
        assert torch.equal(handle.restore(tokens).gather(1, kept), tokens[:, 1:])


@torch.no_grad()
def test_other_handles_count(x):
    net = model()
    with sparsight.prune(net, "tome:remove=4,layers=0") as first, sparsight.prune(net, "col_ln:keep=0.5,layers=2") as second:
        tokens = net.forward_features(x)
        assert tokens.shape[1] == 1 + 10
        assert torch.equal(first.restore(tokens), second.restore(tokens))
        assert torch.equal(first.restore(tokens)[:, 1:], by_hand(second.sources()[-1], tokens[:, 1:], GRID))


def test_padding_and_a_leading_slot():
    """Images with different numbers of tokens; a first slot that stands for no patch."""
    keep = torch.tensor([[0, 3, 5], [4, -1, -1]])
    valid = torch.tensor([[True, True, True], [True, False, False]])
    tokens = torch.arange(6.0).view(2, 3, 1)
    plan = Plan(keep, 6, valid=valid)
    assert restore(plan, tokens, (2, 3))[..., 0].tolist() == [[0, 0, 2, 1, 1, 2], [3] * 6]
    assert torch.equal(restore(plan, tokens, (2, 3)), by_hand(plan, tokens, (2, 3)))
    led = Plan(torch.tensor([[1, 2]]), 4, led=True)
    assert restore(led, torch.tensor([[[9.0], [1.0], [2.0]]]), (2, 2))[0, :, 0].tolist() == [1, 1, 2, 1]


def test_mixtures_give_back_what_they_took():
    mix = torch.tensor([[[1.0, 0.5, 0.0], [0.0, 1.5, 2.0]]])
    plan = Plan(torch.zeros(1, 2, dtype=torch.int64), 3, mix=mix)
    assert restore(plan, torch.tensor([[[4.0], [8.0]]]), (1, 3))[0, :, 0].tolist() == [4, 7, 8]


def test_gradients_reach_the_tokens(x):
    net = model()
    with sparsight.prune(net, "evit:keep=0.5,layers=1") as handle:
        handle.restore(net.forward_features(x)).square().sum().backward()
    assert net.patch_embed.proj.weight.grad.abs().max() > 0


@torch.no_grad()
def test_what_does_not_fit_is_said(x):
    net = model()
    with sparsight.prune(net, "col_ln:keep=0.5,layers=1") as handle:
        with pytest.raises(PruneError, match="has not run"):
            handle.restore(torch.zeros(2, 13, 32))
        tokens = net.forward_features(x)
        for wrong in (tokens[:, :9], tokens[0], torch.zeros(2, 25, 32)):
            with pytest.raises(PruneError, match=r"must be \[B, 12, C\], or \[B, 13, C\]"):
                handle.restore(wrong)
        with pytest.raises(PruneError, match=r"B=2"):
            handle.restore(tokens[:1])
        with pytest.raises(PruneError, match="after=4 is no block"):
            handle.restore(tokens, after=4)
    with pytest.raises(PruneError, match="grid of 3 x 3"):
        restore(handle.plans[0], tokens[:, 1:], (3, 3))
