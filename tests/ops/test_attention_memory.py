"""No statistic makes the attention matrix: the highest point of memory at 4,097 tokens. Methods: tests/matrix/test_memory.py."""

import pytest
import torch

from sparsight.ops import attention
from sparsight.ops.distance import attention_distance
from sparsight.speed.timing import Alive

TOKENS, HEADS, WIDTH = 4097, 6, 16
MATRIX = 4 * HEADS * TOKENS**2
"""Bytes of the explicit matrix in float32."""


@pytest.fixture
def signals(rng):
    q, k = (torch.randn(1, HEADS, TOKENS, WIDTH, generator=rng) for _ in range(2))
    return q, k


@torch.no_grad()
@pytest.mark.parametrize(
    "statistic", ["column 2", "column 3", "entropy 1", "entropy 2", "lse", "column 2, average", "column 2, shifted", "distance"]
)
def test_statistics(signals, statistic):
    q, k = signals
    work = {
        "column 2": lambda: attention.column_norm(q, k, 1, 0.25, 2),
        "column 3": lambda: attention.column_norm(q, k, 1, 0.25, 3, stride=4),
        "entropy 1": lambda: attention.row_entropy(q, k, 1, 0.25, 1),
        "entropy 2": lambda: attention.row_entropy(q, k, 1, 0.25, 2),
        "lse": lambda: attention.row_normalisers(q, k, 0.25),
        "column 2, average": lambda: attention.column_norm(q, k, 1, 0.25, 2, "average", stride=8),
        "column 2, shifted": lambda: attention.column_norm(3 * q, 3 * k, 1, 0.25, 2),
        "distance": lambda: attention_distance(q, k, 1, 0.25, (64, 64)),
    }[statistic]
    with Alive() as alive:
        work()
    assert alive.peak <= 0.05 * MATRIX
