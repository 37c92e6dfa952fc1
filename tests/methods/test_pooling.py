"""PatchMerger, SiT, Sinkhorn, DPC-KNN and K-Medoids against JoakimHaurum/TokenReduction 88fe07e."""

import pytest
import torch

import sparsight
from sparsight import PruneError


def in_order(index: torch.Tensor) -> torch.Tensor:
    return index.argsort(dim=1, stable=True)


def rows(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return x.gather(1, order.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


SOFT = [
    ("patch_merger", "pm_out", "pm_attn", ("pm_queries", "pm_norm.weight", "pm_norm.bias"), "pm_"),
    ("sit", "sit_out", "sit_w", ("sit_scale", *(f"sit_weight.{i}.{k}" for i in (0, 1, 3) for k in ("weight", "bias"))), "sit_"),
    ("sinkhorn", "sink_out", "sink_w", ("sink_v0",), "sink_"),
    ("sinkhorn:eps=0.1,rounds=5", "sink_eps01_it5_out", "sink_eps01_it5_w", ("sink_v0",), "sink_"),
]


@pytest.mark.parametrize(("recipe", "out", "mix", "names", "prefix"), SOFT, ids=[row[1] for row in SOFT])
def test_soft_poolers(golden, recipe, out, mix, names, prefix):
    d = golden("vit/softmerge_N49_s0")
    weights = {name.removeprefix(prefix).replace("v0", "v"): d[name] for name in names}
    done = sparsight.reduce(sparsight.parse(f"{recipe}{',' if ':' in recipe else ':'}tokens=8"), x=d["x"], weights=weights)
    torch.testing.assert_close(done.x, d[out], rtol=0, atol=1e-5)
    torch.testing.assert_close(done.plan.mix, d[mix], rtol=0, atol=1e-5)
    torch.testing.assert_close(done.size.sum(dim=1), torch.full((2, 1), 49.0))
    assert torch.equal(done.plan.owner, d[mix].argmax(dim=1))


@pytest.mark.parametrize("count", [34, 8])
@pytest.mark.parametrize("weigh", ["equal", "attention"])
def test_dpc_knn(golden, count, weigh):
    d, tag = golden("vit/dpcknn_N49_s0"), f"K{count}"
    done = sparsight.reduce(f"dpc_knn:tokens={count},weigh={weigh}", x=d["x"], noise=d["noise"], token_weight=d["weight"])
    order = in_order(d[f"{tag}_centers"])
    assert torch.equal(done.plan.keep, d[f"{tag}_centers"].gather(1, order))
    assert torch.equal(done.plan.owner, order.argsort(dim=1).gather(1, d[f"{tag}_cluster"]))
    merged = d[f"{tag}_merged_{'equal' if weigh == 'equal' else 'weighted'}"]
    torch.testing.assert_close(done.x, rows(merged, order), rtol=0, atol=1e-5)


def test_dpc_knn_learned_weights_are_exponentials_of_a_linear_score(golden):
    d, generator = golden("vit/dpcknn_N49_s0"), torch.Generator().manual_seed(0)
    weights = {"score.weight": torch.randn(1, 64, generator=generator) / 8, "score.bias": torch.tensor([0.3])}
    score = (d["x"] @ weights["score.weight"].T + 0.3).exp()
    given = sparsight.reduce("dpc_knn:tokens=8,weigh=attention", x=d["x"], token_weight=score)
    learned = sparsight.reduce("dpc_knn:tokens=8,weigh=learned", x=d["x"], weights=weights)
    torch.testing.assert_close(learned.x, given.x)


@pytest.mark.parametrize("count", [12, 5])
@pytest.mark.parametrize("rounds", [1, 3, 5])
def test_k_medoids(golden, count, rounds):
    d, tag = golden("vit/kmedoids_N49_s0"), f"K{count}_it{rounds}"
    done = sparsight.reduce(f"k_medoids:tokens={count},rounds={rounds}", x=d["x"], token_weight=d["token_weight"])
    order = in_order(d[f"{tag}_idx"])
    assert torch.equal(done.plan.keep, d[f"{tag}_idx"].gather(1, order))
    assert torch.equal(done.plan.owner, order.argsort(dim=1).gather(1, d[f"{tag}_assign"]))
    assert torch.equal(done.x, rows(d[f"{tag}_centers"], order))


@pytest.mark.parametrize("count", [12, 5])
def test_k_medoids_of_equal_weights(golden, count):
    d, tag = golden("vit/kmedoids_N49_s0"), f"K{count}_eq_it3"
    done = sparsight.reduce(f"k_medoids:tokens={count},weigh=equal", x=d["x"], first=d[f"K{count}_eq_first"])
    order = in_order(d[f"{tag}_idx"])
    assert torch.equal(done.plan.keep, d[f"{tag}_idx"].gather(1, order))
    assert torch.equal(done.plan.owner, order.argsort(dim=1).gather(1, d[f"{tag}_assign"]))


def test_token_weight_is_the_column_sum_over_heads_and_queries(rng):
    x, q, k = torch.randn(2, 9, 4, generator=rng), torch.randn(2, 3, 10, 4, generator=rng), torch.randn(2, 3, 10, 4, generator=rng)
    attn = (q @ k.transpose(-2, -1) * 4**-0.5).softmax(-1)
    derived = sparsight.reduce("k_medoids:tokens=3", x=x, q=q, k=k)
    given = sparsight.reduce("k_medoids:tokens=3", x=x, token_weight=attn.sum(dim=(1, 2))[:, 1:])
    assert torch.equal(derived.plan.keep, given.plan.keep)


def test_counts_are_of_the_patches_that_entered():
    schedule = sparsight.parse("dpc_knn:keep=0.7,layers=3/6/9").schedule
    assert [schedule.count(n, site, 3, 196) for site, n in enumerate((196, 137, 96))] == [137, 96, 67]
    each = sparsight.parse("dpc_knn:keep=0.5/0.5,layers=3/6").schedule
    assert [each.count(n, site, 2, 196) for site, n in enumerate((196, 98))] == [98, 49]


def test_more_slots_than_tokens_are_refused():
    weights = {"v": torch.randn(12, 8)}
    recipe = sparsight.parse("sinkhorn:tokens=5")
    with pytest.raises(PruneError, match=r"weight v must be a tensor \[5, 8\]"):
        sparsight.reduce(recipe, x=torch.randn(1, 9, 8), weights=weights)


BAD = ["sinkhorn:eps=0", "sinkhorn:rounds=0", "k_medoids:rounds=0", "dpc_knn:neighbours=0", "k_medoids:weigh=both"]


@pytest.mark.parametrize("recipe", BAD)
def test_bad_numbers(recipe):
    with pytest.raises(PruneError):
        sparsight.parse(recipe)
