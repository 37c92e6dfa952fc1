"""What an analysis measures, on tensors whose values are known."""

import numpy as np
import pytest
import torch
from PIL import Image

from sparsight.evaluation import metrics
from sparsight.look.block_probe import Tally, correlations, mask_of, moments, random_rank, shared
from sparsight.look.heat import heat
from sparsight.look.rank import pearson
from sparsight.ops.attention import head_entropy, row_entropy
from sparsight.ops.distance import attention_distance, uniform_distance
from sparsight.plan import Plan


def test_random_rank_ignores_padding():
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    draws = torch.stack([torch.randperm(9), torch.randperm(9)])
    got = random_rank(x, [3, 7], draws)
    for item, count in enumerate((3, 7)):
        assert got[item] == pytest.approx(float(metrics.effective_rank(x[item, draws[item, :count]])))


def test_overlap_by_hand():
    sums = shared(torch.tensor([[1, 1, 1, 0, 0, 0]]).bool(), torch.tensor([[0, 1, 1, 1, 1, 0]]).bool())
    assert sums == pytest.approx((1, 2 / 3, 2 / 5, 4 / 6))
    tally = Tally(1)
    mask = torch.rand(4, 20).argsort(dim=1) < 10
    tally.compare({0: mask, 3: ~mask})
    assert {key: value[1] for key, value in tally.pairs.items()} == {(0, 0): 4, (0, 3): 0, (3, 3): 4}
    keep = torch.tensor([[0, 2, -1], [1, 2, 3]])
    assert mask_of(Plan(keep, 4, valid=keep >= 0)).tolist() == [[True, False, True, False], [False, True, True, True]]


def test_correlation_sign():
    """Sharper attention to what is near is less even and reaches less far; sharper attention to what is far reaches farther."""
    grid, n = (6, 6), 36
    places = torch.tensor([divmod(i, 6) for i in range(n)]).double()
    far = torch.cdist(places, places)
    eye = torch.eye(n, dtype=torch.float64)[None, None]
    sharp = torch.linspace(0, 8, n, dtype=torch.float64)[torch.randperm(n, generator=torch.Generator().manual_seed(0))][:, None]

    def correlation(sign):
        logits = (sign * sharp * far / far.amax())[None, None]
        entropy = head_entropy(logits, eye, 0, 1.0, 1.0)
        distance = attention_distance(logits, eye, 0, 1.0, grid)
        found = correlations(moments(distance.transpose(0, 1).flatten(1), entropy.transpose(0, 1).flatten(1)))
        assert found[0] == pytest.approx(pearson(distance.flatten().tolist(), entropy.flatten().tolist()))
        return found[0]

    assert correlation(-1) > 0.4
    assert correlation(1) < -0.2
    assert correlations(moments(torch.ones(1, 5), torch.arange(5.0)[None])) == [None]


def test_distance_of_known_attention():
    """Attention to oneself reaches nowhere, even attention the mean distance; prefix tokens do not count; heads may share keys."""
    grid, patch, n = (2, 3), (8.0, 4.0), 6
    eye = torch.eye(n)[None, None]
    assert attention_distance(eye * 1e3, eye, 0, 1.0, grid, patch).abs().max() == 0
    even = attention_distance(torch.zeros(1, 1, n, 4), torch.randn(1, 1, n, 4), 0, 1.0, grid, patch)
    assert float(even.mean()) == pytest.approx(uniform_distance(grid, patch))
    assert float(even[0, 0, 0]) == pytest.approx((0 + 4 + 8 + 8 + 80**0.5 + 128**0.5) / 6)
    q, k = torch.randn(2, 4, 2 + n, 8), torch.randn(2, 2, 2 + n, 8)
    got = attention_distance(q, k, 2, 0.5, grid, patch)
    other = torch.cat([torch.randn(2, 2, 2, 8), k[:, :, 2:]], dim=2)
    torch.testing.assert_close(got, attention_distance(q, other, 2, 0.5, grid, patch))
    torch.testing.assert_close(got[:, 3:], attention_distance(q[:, 3:], k[:, 1:], 2, 0.5, grid, patch))
    torch.testing.assert_close(head_entropy(q, k, 2, 0.5, 2).mean(1), row_entropy(q, k, 2, 0.5, 2))


def test_heat_maps_are_smooth():
    """Between patches the colours run: no two neighbouring pixels are as far apart as the patches are."""
    score = torch.zeros(4, 4).double().numpy()
    score[1:3, 2:] = 1
    drawn = torch.from_numpy(np.array(heat(Image.new("RGB", (160, 160), "gray"), score).convert("L"))).int()
    assert drawn[60, 130] - drawn[60, 10] > 100
    assert (drawn[60, 1:] - drawn[60, :-1]).abs().max() < 20
