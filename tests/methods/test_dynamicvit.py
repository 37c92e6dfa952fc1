"""DynamicViT against raoyongming/DynamicViT, and its training against plain masked attention."""

import copy

import pytest
import torch

import sparsight
from sparsight import PruneError, prune
from sparsight.models.key_bias import key_bias
from sparsight.models.site import Site
from sparsight.models.state import SiteOutcome
from sparsight.plan import Plan


def weights_of(d):
    return {key.removeprefix("w_"): value for key, value in d.items() if key.startswith("w_")}


def test_three_stages(golden):
    """Scores, kept tokens and what goes on, stage after stage; the authors' order is by descending score."""
    d = golden("vit/dynamicvit_pred_s0")
    x = d["x"][:, 1:]
    counts = [sparsight.parse("dynamicvit").schedule.count(n, i, 3, entered=196) for i, n in enumerate((196, 137, 96))]
    assert counts == [d[f"s{i}_keep"].shape[1] for i in range(3)]
    for i, count in enumerate(counts):
        out = sparsight.reduce(f"dynamicvit:tokens={count}", x=x, weights=weights_of(d))
        assert torch.allclose(out.score, d[f"s{i}_pred"][..., 0], atol=1e-5)
        ranked = out.score.sort(dim=1, descending=True, stable=True).indices[:, :count]
        assert torch.equal(ranked, d[f"s{i}_keep"])
        assert torch.equal(out.plan.keep, d[f"s{i}_keep"].sort(dim=1).values)
        x = d[f"s{i}_x"][:, 1:]
        assert torch.allclose(out.x, x.gather(1, d[f"s{i}_keep"].argsort(dim=1).unsqueeze(-1).expand_as(x)), atol=1e-5)


def test_golden_weights_in_a_model(golden, shared_block_vit):
    model, d = shared_block_vit(4), golden("vit/dynamicvit_pred_s0")
    with torch.no_grad(), prune(model, "dynamicvit:layers=1/2/3", weights=weights_of(d)) as handle:
        model.blocks(d["x"][:, :50])
        assert handle.counts == [int(49 * 0.7), int(49 * 0.49), int(49 * 0.343)]
        saved = handle.learned.state_dict()
        assert torch.equal(saved["2.out_conv.4.bias"], d["w_out_conv.4.bias"])


def training(model, x, **options):
    torch.manual_seed(5)
    model.train()
    handle = prune(model, "dynamicvit:layers=1/2", weights="random", **options)
    return handle, model.blocks(x)


@pytest.fixture
def x():
    return torch.randn(2, 50, 96, generator=torch.Generator().manual_seed(0))


def test_training_hides_and_keeps_all(shared_block_vit, x):
    handle, out = training(shared_block_vit(3), x)
    assert out.shape == x.shape
    assert handle.counts == [49, 49]
    first, second = (site.size.squeeze(-1) for site in handle.outcomes)
    assert set(first.unique().tolist()) == set(second.unique().tolist()) == {0.0, 1.0}
    assert (second <= first).all(), "what was dropped stays dropped"
    assert 0.3 < first.mean() < 0.7


@torch.no_grad()
def test_the_class_token_sees_the_kept_tokens_alone(shared_block_vit, x):
    """After masked blocks the kept tokens are what they are when the others are not there."""
    model = shared_block_vit(3)
    handle, out = training(model, x)
    first, second = (site.size.squeeze(-1) > 0.5 for site in handle.outcomes)
    handle.remove()
    for image in range(2):
        y = model.blocks[0](x[image : image + 1])
        y = torch.cat([y[:, :1], y[:, 1:][:, first[image]]], dim=1)
        y = model.blocks[1](y)
        y = torch.cat([y[:, :1], y[:, 1:][:, second[image][first[image]]]], dim=1)
        y = model.blocks[2](y)
        kept = torch.cat([out[image : image + 1, :1], out[image : image + 1, 1:][:, second[image]]], dim=1)
        torch.testing.assert_close(kept, y, rtol=1e-4, atol=1e-4)


def test_a_hidden_token_sees_itself():
    site = Site(0, "block", (), lambda count, given: given, hides=True)
    plan, size = Plan(torch.tensor([[0, 1]]), 2), torch.tensor([[[1.0], [0.0]]])
    outcome = SiteOutcome(site, None, plan, size, None, hiding=True)
    weight = key_bias(outcome, False, 1, torch.zeros(1, 3, 4)).softmax(dim=-1)[0, 0]
    expected = torch.tensor([[1 / 2, 1 / 2, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize("loss", ["task", "ratio"])
def test_gradients_reach_the_predictors(shared_block_vit, x, loss):
    handle, out = training(shared_block_vit(3), x)
    (out[:, 0].square().sum() if loss == "task" else handle.ratio_loss()).backward()
    for site in handle.learned:
        for key, parameter in site.named_parameters():
            assert torch.isfinite(parameter.grad).all(), key
            assert parameter.grad.abs().max() > 0, key


def test_ratio_loss_by_hand_and_training_meets_the_budget(shared_block_vit, x):
    handle, _ = training(shared_block_vit(3), x, keep=0.5)
    shares = [site.size.mean(dim=1) for site in handle.outcomes]
    expected = (((shares[0] - 0.5) ** 2).mean() + ((shares[1] - 0.25) ** 2).mean()) / 2
    assert handle.ratio_loss().item() == pytest.approx(expected.item())
    optimizer = torch.optim.Adam(handle.learned.parameters(), lr=3e-3)
    before, model = copy.deepcopy(handle.learned.state_dict()), handle.family.model
    for _ in range(30):
        optimizer.zero_grad()
        model.blocks(x)
        handle.ratio_loss().backward()
        optimizer.step()
    assert handle.outcomes[1].size.mean().item() == pytest.approx(0.25, abs=0.12)
    assert any(not torch.equal(before[key], value) for key, value in handle.learned.state_dict().items())
    with torch.no_grad():
        model.eval().blocks(x)
    assert handle.counts == [24, 12]
    with pytest.raises(PruneError, match=r"call model\.train"):
        handle.ratio_loss()


def test_ratio_loss_of_a_budget_in_tokens(shared_block_vit, x):
    handle, _ = training(shared_block_vit(3), x, tokens=(20, 10))
    share = [site.size.mean(dim=1) for site in handle.outcomes]
    expected = (((share[0] - 20 / 49) ** 2).mean() + ((share[1] - 10 / 49) ** 2).mean()) / 2
    assert handle.ratio_loss().item() == pytest.approx(expected.item())


def test_refused(shared_block_vit, golden):
    with pytest.raises(PruneError, match="learned method"):
        prune(shared_block_vit(2), "dynamicvit:layers=1")
    wrong = weights_of(golden("vit/dynamicvit_pred_s0")) | {"out_conv.4.bias": torch.zeros(3)}
    with pytest.raises(PruneError, match=r"out_conv\.4\.bias"):
        prune(shared_block_vit(2), "dynamicvit:layers=1", weights=wrong)
    with pytest.raises(PruneError, match="evit"):
        prune(shared_block_vit(2), "evit:layers=1").ratio_loss()
