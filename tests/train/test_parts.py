"""Order, augmentation, schedule, losses and keep rate, each by itself."""

import random

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F
from train_runs import RECIPE, SHORT, tiny

import sparsight
from sparsight.train.examples import Order, seed_all
from sparsight.train.learner import Learner, Teacher
from sparsight.train.objective import Objective, divergence, token_distance
from sparsight.train.optimise import make_optimiser, make_schedule
from sparsight.train.presets import find_preset
from sparsight.train.settings import TrainSettings
from sparsight.train.shrink import Shrink, gone


def images_of(order, epoch=0):
    return [[image for _, _, image in forward] for forward in order.forwards(epoch)]


@pytest.mark.parametrize("repeats", [1, 3])
def test_processes_share_the_images_of_a_step(repeats):
    alone = Order(512, 8, 8, 0, 1, 3, repeats)
    pair = [Order(512, 8, 2, rank, 2, 3, repeats) for rank in range(2)]
    assert pair[0].steps == alone.steps == 64
    assert pair[0].accumulated == 2
    places = [
        sorted(place for at in (2 * step, 2 * step + 1) for one in pair for place in one.forwards(1)[at])
        for step in range(alone.steps)
    ]
    assert places == [sorted(forward) for forward in alone.forwards(1)]


def test_every_image_once_in_an_epoch_and_another_order_in_the_next():
    order = Order(10, 3, 3, 0, 1, 0, 1)
    seen = [image for forward in images_of(order) for image in forward]
    assert order.steps == 3
    assert len(set(seen)) == 9
    assert images_of(order) == images_of(order)
    assert images_of(order) != images_of(order, 1)
    assert images_of(order) != images_of(Order(10, 3, 3, 0, 1, 1, 1))
    assert order.forwards(0, 2) == order.forwards(0)[2:]


def test_repeated_augmentation_shows_fewer_images_more_often():
    seen = [image for forward in images_of(Order(512, 8, 8, 0, 1, 0, 3)) for image in forward]
    assert len(seen) == 512
    assert 170 <= len(set(seen)) <= 171


def test_seeds_are_those_of_all_three():
    seed_all(1, 2, 3)
    first = random.random(), np.random.rand(), torch.rand(1).item()
    seed_all(1, 2, 3)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == first
    seed_all(1, 2, 4)
    assert all(a != b for a, b in zip(first, (random.random(), np.random.rand(), torch.rand(1).item()), strict=True))


def test_weight_decay_spares_biases_norms_position_and_class_token():
    learner = Learner(tiny().model, None)
    optimiser = make_optimiser(learner, TrainSettings(weight_decay=0.1))
    free = {id(p) for group in optimiser.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    names = {name for name, p in learner.model.named_parameters() if id(p) in free}
    assert {"pos_embed", "cls_token", "norm.weight", "head.bias"} <= names
    assert not {"head.weight", "blocks.0.attn.qkv.weight"} & names


def rates(settings, steps=4):
    optimiser = make_optimiser(Learner(tiny().model, None), settings)
    schedule = make_schedule(optimiser, settings, steps)
    found = []
    for step in range(settings.epochs * steps):
        epoch = step // steps
        schedule.step(max(0, epoch - settings.schedule_lag)) if settings.schedule_by == "epoch" else schedule.step_update(step)
        found.append(optimiser.param_groups[0]["lr"])
    return found


def test_the_evit_schedule_uses_its_first_rate_for_two_epochs():
    found = rates(find_preset("evit").settings, steps=1)
    assert found[0] == found[1] == pytest.approx(8e-5)
    assert found[1] > found[2] > found[-1] > 2e-6
    wanted = [2e-6 + (8e-5 - 2e-6) * (1 + np.cos(np.pi * max(0, epoch - 1) / 30)) / 2 for epoch in range(30)]
    assert found == pytest.approx(wanted)


def test_warm_up_by_steps():
    found = rates(TrainSettings(epochs=3, lr=1.0, warmup_epochs=1, warmup_lr=0.2))
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert max(found) <= 1.0


def test_learned_weights_have_a_rate_of_their_own():
    model = tiny().model
    handle = sparsight.prune(model, "patch_merger:keep=0.6,layers=1", weights="random")
    settings = TrainSettings(lr=1e-3, learned_lr=50.0, epochs=2)
    optimiser = make_optimiser(Learner(model, handle), settings)
    make_schedule(optimiser, settings, 4).step_update(0)
    learned = {id(p) for p in handle.learned.parameters()}
    for group in optimiser.param_groups:
        assert group["lr"] == pytest.approx(0.05 if any(id(p) in learned for p in group["params"]) else 1e-3)


def test_the_keep_rate_falls_as_a_cosine():
    settings = TrainSettings(epochs=10, shrink_start=2, shrink_epochs=4)
    assert [gone(settings, epoch) for epoch in (0, 2, 4, 6, 9)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert gone(TrainSettings(), 0) == 1


@torch.no_grad()
def test_the_model_is_pruned_anew_as_it_falls():
    model = tiny().model
    whole = model(torch.ones(1, 3, 64, 64))
    handle = sparsight.prune(model, RECIPE)
    shrink = Shrink.of(model, handle.recipe, TrainSettings(epochs=10, shrink_epochs=4))
    assert shrink.counts == [10, 6]  # without the slot of the rest
    shrink.at(0)
    assert sparsight.handles(model) == []
    assert torch.equal(model(torch.ones(1, 3, 64, 64)), whole)
    counts = []
    for epoch in (2, 3, 4, 5):
        shrink.at(epoch)
        model(torch.ones(1, 3, 64, 64))
        counts.append(sparsight.handle(model).counts)
    assert counts[0][0] > counts[1][0] > counts[2][0] == 11
    assert counts[-1] == counts[-2] == [11, 8]


def test_distillation_losses():
    torch.manual_seed(0)
    logits, taught = torch.randn(2, 4, 5).unbind()
    wanted = (
        sum((t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum() for s, t in zip(logits / 2, taught / 2, strict=True))
        * 4
        / 4
    )
    assert divergence(logits, taught, 2.0) == pytest.approx(float(wanted), rel=1e-5)
    tokens, goal = torch.zeros(1, 3, 2), torch.tensor([[[1.0, 1], [2, 2], [9, 9]]])
    assert token_distance(tokens, goal, torch.tensor([[[1.0], [1], [0]]])) == pytest.approx(2.5)


def test_the_objective_weighs_its_parts():
    settings = TrainSettings(distill_logits=0.5, distill_features=2.0, hard=0.25, smoothing=0.1)
    found = {"logits": torch.randn(2, 3), "pooled": torch.zeros(2, 4)}
    taught = {"logits": found["logits"].clone(), "pooled": torch.ones(2, 4)}
    parts = Objective.of(settings)(found, taught, torch.tensor([0, 2]))
    assert parts["distill_logits"].abs() < 1e-6
    assert parts["distill_features"] == 2
    assert parts["labels"] == pytest.approx(
        0.25 * float(F.cross_entropy(found["logits"], torch.tensor([0, 2]), label_smoothing=0.1)), rel=1e-5
    )
    assert parts["loss"] == pytest.approx(float(parts["labels"] + parts["distill_logits"] + parts["distill_features"]))


def test_dynamicvit_gives_its_losses_what_they_need():
    model = tiny().model
    teacher = Teacher(timm.create_model("test_vit", img_size=64, num_classes=3), tokens=True)
    handle = sparsight.prune(model, "dynamicvit:keep=0.6,layers=1/2", weights="random")
    learner = Learner(model, handle, tokens=True).train()
    images = torch.randn(2, 3, 64, 64)
    found, taught = learner(images), teacher(images)
    assert found["tokens"].shape == taught["tokens"].shape == (2, 16, 64)
    assert found["decision"].shape == (2, 16, 1)
    parts = Objective.of(TrainSettings(distill_tokens=0.5))(found, taught, torch.tensor([0, 1]))
    assert parts["ratio"].item() == pytest.approx(2 * handle.ratio_loss().item())
    parts["loss"].backward()
    assert all(p.grad is not None for p in handle.learned.parameters())
    assert "ratio" not in learner.eval()(images)


LEARNED = [
    "patch_merger:keep=0.6,layers=1/2",
    "sit:keep=0.6,layers=1/2",
    "sinkhorn:keep=0.6,layers=1/2",
    "dynamicvit:keep=0.6,layers=1/2",
]


@pytest.mark.parametrize(
    "recipe", [*LEARNED[:1], *(pytest.param(one, marks=pytest.mark.product) for one in LEARNED[1:3]), LEARNED[3]]
)
def test_learned_methods_train_and_load(images, tmp_path, recipe):
    more = {"distill_logits": 0.5, "distill_tokens": 0.5} if "dynamicvit" in recipe else {"frozen": True}
    start = tiny()
    sparsight.train(start, images, recipe, tmp_path / "x", **{**SHORT, "learned_lr": 10.0, **more})
    found = sparsight.load(str(tmp_path / "x"))
    learned = sparsight.handle(found.model).learned.state_dict()
    random_start = sparsight.prune(tiny().model, recipe, weights="random").learned.state_dict()
    assert learned.keys() == random_start.keys()
    assert any(not torch.equal(tensor, random_start[name]) for name, tensor in learned.items())
    own = {name: torch.equal(tensor, start.model.state_dict()[name]) for name, tensor in found.model.state_dict().items()}
    assert all(own.values()) == ("dynamicvit" not in recipe)
    with torch.no_grad():
        found.model(torch.zeros(1, 3, 64, 64))
    assert sparsight.handle(found.model).counts == [9, 5]


def test_accumulated_gradients_are_those_of_the_whole_batch(images, tmp_path):
    plain = {**SHORT, "flip": 0.0, "epochs": 1}
    outs = {}
    for size in (4, 2):
        sparsight.train(tiny(), images, RECIPE, tmp_path / str(size), per_forward=size, **plain)
        outs[size] = sparsight.load(str(tmp_path / str(size))).model.state_dict()
    for name, tensor in outs[4].items():
        torch.testing.assert_close(outs[2][name], tensor, atol=2e-4, rtol=1e-3)


@pytest.mark.product
def test_recomputed_activations_change_nothing(images, tmp_path):
    for checkpointing in (False, True):
        sparsight.train(
            tiny(), images, RECIPE, tmp_path / str(checkpointing), checkpointing=checkpointing, **{**SHORT, "epochs": 1}
        )
    one, two = (sparsight.load(str(tmp_path / name)).model.state_dict() for name in ("False", "True"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.product
def test_half_precision_trains_float32_weights(images, tmp_path):
    runs = {
        precision: sparsight.train(tiny(), images, RECIPE, tmp_path / precision, precision=precision, **SHORT)
        for precision in ("fp32", "bf16")
    }
    losses = [[line.loss for line in run.log] for run in runs.values()]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    one, two = (sparsight.load(str(tmp_path / precision)).model.state_dict() for precision in runs)
    assert {tensor.dtype for tensor in two.values()} == {torch.float32}
    assert max(float((tensor - two[name]).abs().max()) for name, tensor in one.items()) < 0.02


@pytest.mark.product
def test_the_moving_average_can_be_the_result(images, tmp_path):
    for ema_result in (False, True):
        sparsight.train(tiny(), images, RECIPE, tmp_path / str(ema_result), ema=0.9, ema_result=ema_result, **SHORT)
    last, average = (sparsight.load(str(tmp_path / name)).model.state_dict() for name in ("False", "True"))
    start = tiny().model.state_dict()
    moved = sum(float((last[name] - start[name]).abs().sum()) for name in start)
    assert 0 < sum(float((average[name] - start[name]).abs().sum()) for name in start) < moved
