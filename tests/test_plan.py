"""Plan: gather, fold, spread, compose."""

import torch

from sparsight.plan import Plan


def example() -> Plan:
    return Plan(torch.tensor([[1, 3, 4], [0, 2, 5]]), 6)


def test_owner_and_dropped():
    plan = example()
    assert plan.owner.tolist() == [[-1, 0, -1, 1, 2, -1], [0, -1, 1, -1, -1, 2]]
    assert plan.dropped().tolist() == [[0, 2, 5], [1, 3, 4]]
    assert plan.counts == [3, 3]


def test_fused_slot_owns_the_rest():
    plan = Plan(example().keep, 6, fused=True)
    assert plan.slots == 4
    assert plan.owner.tolist() == [[3, 0, 3, 1, 2, 3], [0, 3, 1, 3, 3, 2]]


def test_gather_fold_spread():
    plan = example()
    x = torch.arange(12.0).reshape(2, 6, 1)
    kept = plan.gather(x)
    assert kept.squeeze(-1).tolist() == [[1, 3, 4], [6, 8, 11]]
    assert torch.equal(plan.fold(x), kept)
    assert plan.spread(kept, fill=-1).squeeze(-1).tolist() == [[-1, 1, -1, 3, 4, -1], [6, -1, 8, -1, -1, 11]]


def test_fold_of_merged_tokens_adds_them():
    plan = Plan(torch.tensor([[0, 2]]), 4, merged=torch.tensor([[0, 1, 1, 0]]))
    x = torch.tensor([[[1.0], [2], [3], [4]]])
    assert plan.fold(x).squeeze(-1).tolist() == [[5, 5]]
    assert plan.spread(plan.fold(x)).squeeze(-1).tolist() == [[5, 5, 5, 5]]


def test_fold_of_several_images_leaves_dropped_tokens_out():
    plan = Plan(torch.tensor([[0, 2], [1, 3]]), 4, merged=torch.tensor([[0, -1, 1, 0], [-1, 0, -1, 1]]))
    x = torch.arange(1.0, 9).reshape(2, 4, 1).expand(2, 4, 20).requires_grad_()
    folded = plan.fold(x)
    assert folded.shape == (2, 2, 20)
    assert folded[..., 7].tolist() == [[1 + 4, 3], [6, 8]]
    assert torch.equal(plan.fold(x, plan.rows()), folded)
    assert torch.autograd.grad(folded.sum(), x)[0][..., 0].tolist() == [[1, 0, 1, 1], [0, 1, 0, 1]]


def test_spread_of_everything_is_the_identity():
    plan = Plan(torch.arange(5).expand(2, 5), 5)
    x = torch.randn(2, 5, 3)
    assert torch.equal(plan.spread(plan.gather(x)), x)


def test_composition_maps_original_tokens_to_final_slots():
    first = Plan(torch.tensor([[1, 3, 4]]), 6, fused=True)
    second = Plan(torch.tensor([[0, 3]]), 4)
    both = first.then(second)
    assert both.keep.tolist() == [[1, -1]]
    assert both.owner.tolist() == [[1, 0, 1, -1, -1, 1]]
    dropped = first.then(Plan(torch.tensor([[0, 1]]), 4))
    assert dropped.owner.tolist() == [[-1, 0, -1, 1, -1, -1]]


def test_composition_equals_applying_one_after_the_other():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 20, 4, generator=generator)
    one = Plan(torch.stack([torch.randperm(20, generator=generator)[:12].sort().values for _ in range(3)]), 20)
    two = Plan(torch.stack([torch.randperm(12, generator=generator)[:5].sort().values for _ in range(3)]), 12)
    assert torch.equal(one.then(two).gather(x), two.gather(one.gather(x)))
    assert torch.equal(one.then(two).owner, Plan(one.then(two).keep, 20).owner)


def test_padding():
    plan = Plan(torch.tensor([[0, 2, 3], [1, -1, -1]]), 4, valid=torch.tensor([[True, True, True], [True, False, False]]))
    x = torch.arange(1.0, 9).reshape(2, 4, 1)
    assert plan.counts == [3, 1]
    assert plan.gather(x).squeeze(-1).tolist() == [[1, 3, 4], [6, 0, 0]]
    assert plan.owner.tolist() == [[0, -1, 1, 2], [-1, 0, -1, -1]]
