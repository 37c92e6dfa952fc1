"""Positions of pruned images in vLLM: laid out before anybody knows which tokens stay, put right by digits behind the embeddings."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import lvlms
import torch
from lvlms import IMAGE, Size

import sparsight
from sparsight.vllm_plugin.mrope import DIGITS, TokenShifts, shifts_of, shortened_positions, with_digits


@dataclass(frozen=True)
class Place:
    offset: int
    length: int


@dataclass(frozen=True)
class Feature:
    """As much of vLLM's MultiModalFeatureSpec as is read."""

    mm_position: Place
    data: dict[str, Any] = field(default_factory=dict)
    modality: str = "image"


def feature(offset: int, length: int, grid: list[int]) -> Feature:
    return Feature(Place(offset, length), {"image_grid_thw": SimpleNamespace(data=torch.tensor(grid))})


def test_positions_are_those_of_transformers():
    """Two images, the first pruned to 3 tokens, the second left whole; text before, between and behind."""
    name, model = "qwen2.5", lvlms.build("qwen2.5")
    sizes = [Size(16, 32), Size(24, 16, seed=1)]
    given = lvlms.inputs(name, model, [[4, sizes[0], 3, sizes[1], 5]])
    ids = given["input_ids"][0].tolist()
    grids = given["image_grid_thw"].tolist()
    with sparsight.prune(model, "divprune:tokens=6"), torch.no_grad():
        seen = {}
        hook = model.model.language_model.register_forward_pre_hook(lambda m, a, k: seen.update(k), with_kwargs=True)
        model(**given)
        hook.remove()
        kept = sparsight.handle(model).plans
    start = ids.index(IMAGE)
    short = ids[: start + 6] + ids[start + 8 :]

    def lay_out(tokens, features):
        """vLLM's part: the whole prompt, whose images lie where they were said to lie."""
        assert tokens == ids
        assert [one.mm_position for one in features] == [Place(4, 8), Place(15, 6)]
        positions, delta = model.model.get_rope_index(
            given["input_ids"], mm_token_type_ids=given["mm_token_type_ids"], image_grid_thw=given["image_grid_thw"]
        )
        return positions[:, 0], int(delta)

    positions, lead = shortened_positions(lay_out, short, [feature(13, 6, grids[1]), feature(4, 6, grids[0])], 2)
    shifts = TokenShifts(len(short), 10**6)
    pruned = with_digits(torch.zeros(6, 5), kept[0].keep[0], grids[0][2] // 2)
    cut = shifts.read([pruned, torch.zeros(6, 5)], 5, torch.tensor(short) == IMAGE)
    assert [tuple(one.shape) for one in cut] == [(6, 5), (6, 5)]
    moved = shifts.moved(positions)
    expected = seen["position_ids"][-3:, 0]
    assert torch.equal(moved, expected)
    assert int(moved.max()) + 1 == len(short) + lead


def test_digits_in_half_precision():
    """Rows and columns up to 65,535 are exact in bfloat16."""
    anchors = torch.tensor([0, 257, 1001 * 300 + 299, 40000])
    tokens = with_digits(torch.randn(4, 8, dtype=torch.bfloat16), anchors, 300)
    assert tokens.shape == (4, 8 + DIGITS)
    assert tokens.dtype == torch.bfloat16
    assert torch.equal(shifts_of(tokens[:, 8:]), torch.stack([anchors // 300, anchors % 300], dim=-1))


def test_shifts_last_one_step():
    shifts, line = TokenShifts(8, 20), torch.arange(5).expand(3, -1)
    places = torch.tensor([False, True, True, False, False])
    shifts.read([with_digits(torch.zeros(2, 4), torch.tensor([3, 8]), 3)], 4, places)
    assert shifts.moved(line).tolist() == [[0, 1, 2, 3, 4], [0, 2, 4, 3, 4], [0, 1, 4, 3, 4]]
    shifts.read([], 4, None)
    assert torch.equal(shifts.moved(line), line)


def test_positions_stop_at_the_last_one_known():
    shifts = TokenShifts(4, 6)
    assert int(shifts.moved(torch.full((3, 2), 9)).max()) == 6


def test_buffers_are_never_contiguous():
    """torch.compile would take a contiguous first step for a rule."""
    shifts = TokenShifts(8, 100)
    assert not shifts.moved(torch.zeros(3, 8, dtype=torch.int64)).is_contiguous()
    assert shifts.moved(torch.zeros(3, 4, dtype=torch.int64)).data_ptr() == shifts.positions.data_ptr()
