"""Watching blocks: what is handed out, and that the model's answers stay as they are."""

import pytest
import torch

import sparsight
from sparsight import PruneError
from sparsight.look.watch import watch

timm = pytest.importorskip("timm")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=3).eval()


def test_signals_of_every_place(model):
    images = torch.randn(2, 3, 160, 160)
    seen, inside = [], []
    hook = model.blocks[1].norm2.register_forward_pre_hook(lambda _m, args: inside.append(args[0]))
    with torch.no_grad():
        before = model(images)
        for where in ("attn", "block", "before"):
            with watch(
                model, where, [1], ["q", "grid"], lambda layer, given: seen.append((layer, given["x"], given["q"], given["grid"]))
            ):
                torch.testing.assert_close(model(images), before)
    hook.remove()
    assert [layer for layer, *_ in seen] == [1, 1, 1]
    assert all(grid == (10, 10) for *_, grid in seen)
    torch.testing.assert_close(seen[0][1], inside[0][:, 1:])  # after attention and its residual
    torch.testing.assert_close(seen[0][2], seen[1][2])  # the block's own queries in both
    assert not torch.equal(seen[1][2], seen[2][2])  # those of the block in front
    assert not hasattr(model, "_sparsight")
    assert not model.blocks[1].__dict__.get("forward")


def test_what_cannot_be_watched(model):
    with (
        sparsight.prune(model, "random:layers=0"),
        pytest.raises(PruneError, match="remove the handle first"),
        watch(model, "attn", [0], [], print),
    ):
        pass
    with pytest.raises(PruneError, match="no known family"), watch(torch.nn.Linear(2, 2), "attn", [0], [], print):
        pass
    with pytest.raises(ValueError, match="mine"), watch(model, "attn", [0], [], print):
        raise ValueError("mine")
    assert not hasattr(model, "_sparsight")
