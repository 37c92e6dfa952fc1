"""Reducers and the pairing of ToMe against their definitions, written as loops."""

import pytest
import torch

from sparsight.ops import reduce, select
from sparsight.plan import Plan


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("n", [12, 13])
@pytest.mark.parametrize("removed", [0, 1, 4, 50])
def test_bipartite_by_its_definition(prefix, n, removed):
    k = random(2, 3, prefix + n, 4)
    plan = select.bipartite(k, prefix, max(1, n - removed))
    removed = min(removed, n // 2)
    for image in range(2):
        mean = k[image, :, prefix:].mean(dim=0)
        source = [i for i in range(n) if (prefix + i) % 2 == 0]
        target = [i for i in range(n) if (prefix + i) % 2 == 1]
        alike = torch.nn.functional.cosine_similarity(mean[source].unsqueeze(1), mean[target], dim=2)
        ranked = alike.amax(dim=1).argsort(descending=True).tolist()
        gone, left = ranked[:removed], ranked[removed:]
        left = sorted(left) if prefix else left
        keep = [source[i] for i in left] + target if removed else list(range(n))
        assert plan.keep[image].tolist() == keep
        hosts = {source[i]: keep.index(target[int(alike[i].argmax())]) for i in gone}
        assert plan.owner[image].tolist() == [hosts[i] if i in hosts else keep.index(i) for i in range(n)]


@pytest.mark.parametrize("sized", [False, True])
def test_merged_tokens_are_weighted_means(sized):
    x, n = random(2, 1 + 15, 5)[:, 1:], 15
    size = torch.arange(1.0, 31.0).view(2, n, 1) if sized else None
    plan = select.bipartite(random(2, 3, 1 + n, 4, seed=1), 1, 9)
    before = x.clone()
    merged, total = reduce.merge_sized(x, plan, size)
    assert torch.equal(x, before)
    weight = torch.ones(2, n) if size is None else size[..., 0]
    for image in range(2):
        for slot in range(9):
            own = plan.owner[image] == slot
            expected = (x[image, own] * weight[image, own, None]).sum(dim=0) / weight[image, own].sum()
            torch.testing.assert_close(merged[image, slot], expected)
            assert total[image, slot, 0] == weight[image, own].sum()


@pytest.mark.parametrize("sized", [False, True])
def test_rest_is_the_weighted_sum_of_what_lost_its_slot(sized):
    x, s = random(2, 6, 5), random(2, 6, seed=1)
    size = torch.arange(1.0, 13.0).view(2, 6, 1) if sized else None
    plan = Plan(torch.tensor([[1, 3, 4], [0, 2, 5]]), 6, fused=True)
    weight = torch.ones(2, 6) if size is None else size[..., 0]
    fused, counts = reduce.fuse_rest(x, plan, size, s)
    mean, same = reduce.fuse_rest_evenly(x, plan, size)
    assert torch.equal(counts, same)
    for image, rest in enumerate(([0, 2, 5], [1, 3, 4])):
        torch.testing.assert_close(fused[image, 3], s[image, rest] @ x[image, rest])
        share = weight[image, rest] / weight[image, rest].sum()
        torch.testing.assert_close(mean[image, 3], share.double() @ x[image, rest])
        assert counts[image].flatten().tolist() == [*weight[image, plan.keep[image]].tolist(), float(weight[image, rest].sum())]
    assert torch.equal(fused[:, :3], plan.gather(x))


def test_nothing_is_fused_where_all_stay():
    x, plan = random(1, 4, 2), Plan(torch.arange(4).unsqueeze(0), 4)
    for fused, counts in (reduce.fuse_rest(x, plan, None, random(1, 4)), reduce.fuse_rest_evenly(x, plan, None)):
        assert torch.equal(fused, x)
        assert counts.flatten().tolist() == [1, 1, 1, 1]
