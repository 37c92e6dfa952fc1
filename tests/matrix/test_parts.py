"""A large batch runs through a block in parts that stay in the caches: the same result, and every part of the same size."""

import copy

import pytest
import torch
from lines import COUNTED, MERGING, STRAIGHT
from torch import nn
from torch.utils._pytree import tree_leaves
from zoo import DEPTH, ZOO, images, made, outputs

import sparsight
from sparsight.models import _parts
from sparsight.models._line import Line
from sparsight.models._packed import store_of

BATCH = 6


@pytest.fixture
def seen(monkeypatch):
    """Shapes of what the MLPs got since the list was cleared."""
    shapes, real = [], Line.mlp

    def mlp(line, x):
        shapes.append(tuple(x.shape))
        return real(line, x)

    monkeypatch.setattr(Line, "mlp", mlp)
    monkeypatch.setattr(_parts, "ROWS", 1)
    return shapes


def length(name):
    """Tokens of an image before any has left."""
    return ZOO[name].patches + ZOO[name].prefix


def limit(monkeypatch, name, width=64, size=8):
    """Room for two images before any token has left."""
    monkeypatch.setattr(_parts, "BYTES", size * 2 * width * length(name))


@torch.no_grad()
@pytest.mark.parametrize("text", [COUNTED, MERGING])
@pytest.mark.parametrize("name", STRAIGHT)
def test_same_as_the_whole_batch(name, text, seen, monkeypatch):
    with sparsight.prune(made(name), text) as handle:
        x = images(name, BATCH)
        whole = outputs(name, made(name), x)
        plans = [plan.keep for plan in handle.plans]
        assert [shape[0] for shape in seen] == [BATCH] * DEPTH
        tokens = [shape[1] for shape in seen]
        seen.clear()
        line = handle.family.lines.of[0]
        limit(monkeypatch, name, line.width)
        found = outputs(name, made(name), x)
        assert [shape[0] * shape[1] for shape in seen[:3]] == [2 * tokens[0]] * 3
        assert sum(shape[0] * shape[1] for shape in seen) == BATCH * sum(tokens)
        assert all(torch.equal(plan.keep, keep) for plan, keep in zip(handle.plans, plans, strict=True))
    for key in whole:
        torch.testing.assert_close(found[key], whole[key], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("total", "rows", "width", "expected"),
    [
        (32, 257, 1536, 4),
        (30, 257, 1536, 5),
        (31, 257, 1536, 1),
        (32, 90, 1536, 8),
        (31, 90, 1536, 31),
        (4, 257, 1536, 4),
        (1, 4097, 4096, 1),
        (8, 4097, 4096, 1),
        (64, 257, 0, 64),
        (0, 257, 1536, 0),
        (31 * 90, 1, 1536, 930),
        (4097, 1, 4096, 241),
        (4099, 1, 4096, 4099),
    ],
)
def test_how_many_make_a_part(total, rows, width, expected):
    assert _parts.units(total, rows, width, torch.empty(0)) == expected


def test_other_devices_take_the_whole_batch():
    assert _parts.units(32, 257, 1536, torch.empty(0, device="meta")) == 32


class Centred(nn.Module):
    """An activation that sees its batch."""

    def forward(self, x):
        return x - x.mean(dim=0)


@torch.no_grad()
def test_somebodys_own_activation_gets_all_images(seen, monkeypatch):
    name = "timm-layerscale"
    model = copy.deepcopy(made(name))
    model.blocks[3].mlp.act = Centred().eval()
    limit(monkeypatch, name)
    with sparsight.prune(model, COUNTED):
        model(images(name, BATCH))
    assert seen[0][:2] == (2, length(name))
    assert seen[-1][0] == BATCH


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((name, COUNTED) for name in ("timm-eva02", "timm-dinov3", "timm-rope-mixed", "dinov3", "timm-beit")),
        ("timm-token", MERGING),
    ],
)
def test_positions_and_biases_are_cut_with_the_images(name, text, seen, monkeypatch):
    """Rows of rotary tables and biases of each image, behind sites; what is the same for all images stays whole."""
    shapes, real = [], Line.attended

    def attended(line, x, bias, positions):
        shapes.append((len(x), *(len(t) for t in tree_leaves((bias, positions)) if isinstance(t, torch.Tensor) and t.dim() == 4)))
        return real(line, x, bias, positions)

    monkeypatch.setattr(Line, "attended", attended)
    x = images(name, BATCH)
    with sparsight.prune(made(name), text) as handle:
        whole = outputs(name, made(name), x)
        limit(monkeypatch, name, handle.family.lines.of[0].width, size=4)
        shapes.clear()
        found = outputs(name, made(name), x)
    last = shapes[-1]
    assert len(last) > 1  # there was something to cut
    assert set(last) == {last[0]} < {1, 2, 3}
    assert shapes[-(BATCH // last[0]) :] == [last] * (BATCH // last[0])
    for key in whole:
        torch.testing.assert_close(found[key], whole[key], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_block_with_a_site_cuts_between_tokens(seen, monkeypatch):
    name = "timm-layerscale"
    limit(monkeypatch, name)
    with sparsight.prune(made(name), "col_ln:keep=0.9,layers=1") as handle:
        made(name)(images(name, BATCH))
    left = handle.counts[0] + ZOO[name].prefix
    assert seen == [*[(2, length(name), 32)] * 3, *[(2 * left, 1, 32)] * 3, *[(2, left, 32)] * 3 * (DEPTH - 2)]


@torch.inference_mode()
def test_parts_have_packed_weights(seen, monkeypatch):
    from sparsight.models._kernel import kernel

    if kernel() is None:
        pytest.skip("this torch has no packed product")
    name = "timm-layerscale"
    model, x = copy.deepcopy(made(name)).float(), images(name, BATCH).float()
    limit(monkeypatch, name, size=4)
    with sparsight.prune(model, COUNTED):
        for _ in range(2):
            model(x)
        assert seen[0][:2] == (2, length(name))
        assert store_of(model.blocks[0].mlp.fc1).packed.state[0] == 2 * length(name)
