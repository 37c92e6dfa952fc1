"""Positions follow the tokens: rows of rotary tables, rows and columns of relative biases."""

import copy

import pytest
import timm
import torch

import sparsight
from sparsight.models import timm_eva
from sparsight.models.positions import look_up_pairs, take_pairs, take_rows

Eva = pytest.importorskip("timm.models.eva").Eva


def test_rows_of_tokens_without_a_place():
    place = torch.tensor([[2, 0, -1]])
    table = torch.arange(12.0).view(3, 4)
    blank = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert take_rows(table, place, blank)[0, 0].tolist() == [[8, 9, 10, 11], [0, 1, 2, 3], [0, 0, 1, 1]]
    heads = torch.stack([table, -table])
    assert take_rows(heads, place, blank)[0, 1, :2].tolist() == [[-8, -9, -10, -11], [0, -1, -2, -3]]
    images = torch.stack([heads, heads + 100])
    assert torch.equal(take_rows(images, place.expand(2, -1), blank)[0], take_rows(heads, place, blank)[0])
    assert take_rows(images, place.expand(2, -1), blank)[1, 0, 0].tolist() == [108, 109, 110, 111]


@pytest.mark.parametrize("learning", [False, True], ids=["inference", "gradients"])
def test_rows_are_taken_once_per_site(learning, monkeypatch):
    """Blocks between two sites share them; with gradients each block takes its own, as checkpointing wants it."""
    taken = []
    monkeypatch.setattr(timm_eva, "take_rows", lambda *args: taken.append(args) or take_rows(*args))
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2}
    model = Eva(depth=6, use_rot_pos_emb=True, use_abs_pos_emb=False, **sizes).eval()
    with sparsight.prune(model, "col_ln:keep=0.5,layers=0/2"), torch.set_grad_enabled(learning):
        first = model(torch.randn(1, 3, 32, 32))
        assert len(taken) == (5 if learning else 2)
        assert not torch.equal(model(torch.randn(1, 3, 32, 32)), first)
        assert len(taken) == (10 if learning else 4)
        copy.deepcopy(model)


def test_pairs_of_tokens_without_a_place():
    bias = torch.arange(16.0).view(1, 1, 4, 4)
    place = torch.tensor([[2, -1]])
    assert take_pairs(bias, place, 1)[0, 0].tolist() == [[0, 3, 0], [12, 15, 12], [0, 3, 0]], "as the class token"
    alone = take_pairs(bias, place, 0)[0, 0]
    assert alone.tolist() == [[10, 9.5], [8, 7.5]], "the mean"
    images = torch.cat([bias, 2 * bias])
    assert torch.equal(take_pairs(images, place.expand(2, -1), 1)[1], 2 * take_pairs(bias, place, 1)[0])


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_pairs_that_are_looked_up(prefix):
    """The same as of the whole bias, of whose pairs most are not wanted."""
    torch.manual_seed(0)
    table, index = torch.randn(7, 3), torch.randint(7, (prefix + 6, prefix + 6))
    place = torch.tensor([[0, 2, 5], [4, 1, 3]])
    bias = table[index.flatten()].view(prefix + 6, prefix + 6, 3).permute(2, 0, 1).unsqueeze(0)
    assert torch.equal(look_up_pairs(table, index, place, prefix), take_pairs(bias, place, prefix))


@torch.no_grad()
@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_small_patch16_dinov3"])
def test_tables_that_changed_in_place_are_seen(name):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 2, "init_values": 1.0}
    model, x = timm.create_model(name, **sizes).eval(), torch.randn(1, 3, 32, 32)
    with sparsight.prune(model, "random:keep=0.5,layers=1"):
        before = model(x)
        real = model.rope.get_embed
        table = real(shape=[4, 4]).clone()
        model.rope.get_embed = lambda *_, **__: table
        torch.testing.assert_close(model(x), before)
        table.copy_(table.flip(0))
        assert not torch.allclose(model(x), before)
