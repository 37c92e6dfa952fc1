"""ToMe against facebookresearch/ToMe af95e4b."""

import pytest
import torch

import sparsight
from sparsight.ops.schedule import Schedule, removals

CASES = [(r, p) for r in (4, 10, 200) for p in (0, 1, 2)]
TAG = {0: "c0d0", 1: "c1d0", 2: "c1d1"}


def same_partition(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two maps token -> slot put the same tokens together."""
    return torch.equal(a.unsqueeze(-1) == a.unsqueeze(-2), b.unsqueeze(-1) == b.unsqueeze(-2))


def nearest(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    distance = torch.cdist(ours.double(), theirs.double())
    return max(distance.min(dim=1).values.max().item(), distance.min(dim=2).values.max().item())


@pytest.mark.parametrize(("r", "prefix"), CASES)
def test_matching(golden, r, prefix):
    d = golden("vit/tome_matching_N50_s0")
    tag = f"r{r}_{TAG[prefix]}"
    source = d[f"{tag}_source"].long()
    out = sparsight.reduce(
        f"tome:remove={r}", x=d["x"][:, prefix:], k=d["metric"][:, None], prefix=prefix, size=d["size_in"][:, prefix:]
    )
    assert out.plan.slots == d[f"{tag}_size"].shape[1] - prefix
    assert same_partition(out.plan.owner, source[:, prefix:])
    if f"{tag}_wmerged" in d:
        merged = torch.cat([d["x"][:, :prefix], out.x], dim=1)
        assert nearest(merged, d[f"{tag}_wmerged"]) < 1e-5
        sizes = torch.cat([d["size_in"][:, :prefix], out.size], dim=1)
        assert torch.allclose(sizes.sort(dim=1).values, d[f"{tag}_wsize"].sort(dim=1).values)


@pytest.mark.parametrize(("tag", "proportional"), [("p1", "true"), ("p0", "false")])
def test_four_blocks(golden, shared_block_vit, tag, proportional):
    d = golden("vit/tome_block_N50_s0")
    for depth in range(1, 5):
        model = shared_block_vit(depth)
        removed = "/".join(["6", "6", "0", "6"][:depth])
        with sparsight.prune(model, f"tome:remove={removed},layers=all,proportional={proportional}") as handle, torch.no_grad():
            out = model.blocks(d["x"])
            assert out.shape == d[f"{tag}_x{depth}"].shape
            assert same_partition(handle.sources()[-1].owner, d[f"{tag}_source{depth}"][:, 1:].long())
            assert nearest(out, d[f"{tag}_x{depth}"]) < 1e-4
            sizes = handle.outcomes[-1].size.squeeze(-1).sort(dim=1).values
            assert torch.allclose(sizes, d[f"{tag}_size{depth}"][:, 1:, 0].sort(dim=1).values)


def test_schedule(golden):
    for key, expected in golden("vit/tome_parse_r").items():
        sites, r, inflect = (part[1:] for part in key.split("_"))
        assert removals(int(r), float(inflect), int(sites)) == expected.tolist(), key


def test_inflect_reaches_the_schedule():
    falling = Schedule("all", remove=8, inflect=-1.0)
    assert [200 - falling.count(200, i, 12) for i in range(12)] == removals(8, -1.0, 12)
