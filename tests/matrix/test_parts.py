"""A large batch runs through a block in parts that stay in the caches: the same result, and every part of the same size."""

import copy

import pytest
import torch
from test_line import COUNTED, MERGING, STRAIGHT
from torch import nn
from zoo import DEPTH, ZOO, images, made, outputs

import sparsight
from sparsight.models import _parts
from sparsight.models._line import Line
from sparsight.models._packed import store_of

BATCH = 6


@pytest.fixture
def sizes(monkeypatch):
    """Images in every call of an MLP since the list was cleared; parts are as large as two images of all tokens may be."""
    seen, real = [], Line.mlp

    def mlp(line, x):
        seen.append(x.shape[0])
        return real(line, x)

    monkeypatch.setattr(Line, "mlp", mlp)
    monkeypatch.setattr(_parts, "ROWS", 1)
    return seen


def limit(monkeypatch, name, width=64, count=2):
    """Room for so many images before any token has left."""
    monkeypatch.setattr(_parts, "BYTES", 8 * count * width * (ZOO[name].patches + ZOO[name].prefix))


@torch.no_grad()
@pytest.mark.parametrize("text", [COUNTED, MERGING])
@pytest.mark.parametrize("name", STRAIGHT)
def test_same_as_the_whole_batch(name, text, sizes, monkeypatch):
    with sparsight.prune(made(name), text) as handle:
        x = images(name, BATCH)
        whole = outputs(name, made(name), x)
        plans = [plan.keep for plan in handle.plans]
        assert sizes == [BATCH] * DEPTH
        sizes.clear()
        limit(monkeypatch, name, width=next(iter(handle.family.lines.of.values())).width)
        found = outputs(name, made(name), x)
        assert sizes[:3] == [2] * 3
        assert all(BATCH % size == 0 for size in sizes)
        assert all(torch.equal(plan.keep, keep) for plan, keep in zip(handle.plans, plans, strict=True))
    for key in whole:
        torch.testing.assert_close(found[key], whole[key], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("batch", "length", "width", "expected"),
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
    ],
)
def test_how_many_images_make_a_part(batch, length, width, expected):
    assert _parts.images(torch.empty(batch, length, 1), width) == expected


def test_other_devices_take_the_whole_batch():
    assert _parts.images(torch.empty(32, 257, 1, device="meta"), 1536) == 32


class Centred(nn.Module):
    """An activation that sees its batch."""

    def forward(self, x):
        return x - x.mean(dim=0)


@torch.no_grad()
def test_somebodys_own_activation_gets_all_images(sizes, monkeypatch):
    name = "timm-layerscale"
    model = copy.deepcopy(made(name))
    model.blocks[3].mlp.act = Centred().eval()
    limit(monkeypatch, name)
    with sparsight.prune(model, COUNTED):
        model(images(name, BATCH))
    assert sizes[0] == 2
    assert sizes[-1] == BATCH


@torch.inference_mode()
def test_parts_have_packed_weights(sizes, monkeypatch):
    from sparsight.models._kernel import kernel

    if kernel() is None:
        pytest.skip("this torch has no packed product")
    name = "timm-layerscale"
    model, x = copy.deepcopy(made(name)).float(), images(name, BATCH).float()
    limit(monkeypatch, name)
    with sparsight.prune(model, COUNTED):
        for _ in range(2):
            model(x)
        length = ZOO[name].patches + ZOO[name].prefix
        assert sizes[0] > 1
        assert store_of(model.blocks[0].mlp.fc1).packed.state[0] == sizes[0] * length
