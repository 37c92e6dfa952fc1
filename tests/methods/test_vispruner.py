"""VisPruner against Theia-4869/VisPruner aefa01a."""

import pytest
import torch

import sparsight
from sparsight.errors import PruneError

NAMES = ["N100_T20_r50", "N576_T64_r50", "N576_T64_r75", "N576_T192_r50", "N576_T32_r50"]


@pytest.mark.parametrize("name", NAMES)
def test_kept_set(vlm, name):
    d = vlm(f"vispruner_{name}_seed0")
    features = d["features"]
    x = torch.randn(*features.shape[:2], 8)
    recipe = f"vispruner:tokens={int(d['T'])},ratio={float(d['important_ratio'])}"
    out = sparsight.reduce(recipe, x=x, feats=features, class_attn=d["cls_attn"])
    assert torch.equal(out.plan.keep, d["kept_sorted"])
    assert torch.equal(out.x, out.plan.gather(x))


def reference(s: torch.Tensor, feats: torch.Tensor, count: int, important: list[int]) -> list[int]:
    """One image, written out in Python lists; the even places are one more where their number is odd."""
    feats = torch.nn.functional.normalize(feats.double(), dim=-1)
    left = [i for i in s.sort(descending=True, stable=True).indices.tolist() if i not in important]
    want = count - len(important)
    while want and len(left) > want:
        even, odd = left[::2], left[1::2]
        closest = {i: float((feats[odd] @ feats[i]).max()) for i in even}
        ranked = sorted(even, key=lambda i: -closest[i])
        left = ranked[min(8, len(left) - want, len(even)) :] + odd
    return sorted(important + (left if want else []))


@pytest.mark.parametrize(
    ("n", "tokens", "ratio"), [(100, 30, 0.5), (576, 50, 0.5), (37, 2, 0.5), (9, 1, 0.0), (9, 9, 0.3), (40, 5, 1.0)]
)
def test_odd_sizes(rng, n, tokens, ratio):
    s, feats = torch.rand(2, 1, n, generator=rng), torch.randn(2, n, 16, generator=rng)
    out = sparsight.reduce(f"vispruner:tokens={tokens},ratio={ratio}", x=feats, class_attn=s)
    for image in range(2):
        a = s[image, 0]
        important = a.sort(descending=True, stable=True).indices[: int(tokens * ratio)].tolist()
        assert out.plan.keep[image].tolist() == reference(a, feats[image], tokens, important)


def test_rescue_gives_a_share_of_the_important_slots_to_col_ln(rng):
    q, k = (torch.randn(1, 2, 41, 8, generator=rng) for _ in range(2))
    x = torch.randn(1, 40, 16, generator=rng)
    plain = sparsight.reduce("vispruner:tokens=20,ratio=0.5,rescue=0", x=x, q=q, k=k)
    norm = sparsight.reduce("fastervlm:tokens=40,score=col_ln", x=x, q=q, k=k).score[0]
    ranked = plain.score[0].sort(descending=True).indices.tolist()
    rest = sorted(ranked[2:], key=lambda i: -norm[i])[:8]
    out = sparsight.reduce("vispruner:tokens=20,ratio=0.5,rescue=0.8", x=x, q=q, k=k)
    assert out.plan.keep[0].tolist() == reference(plain.score[0], x[0], 20, ranked[:2] + rest)


@pytest.mark.parametrize("recipe", ["vispruner:ratio=1.5", "vispruner:rescue=-0.1", "vispruner:rescue=0.8,score=col_ln"])
def test_bad_numbers(recipe):
    with pytest.raises(PruneError, match=r"outside \[0, 1\]|leave out"):
        sparsight.parse(recipe)
