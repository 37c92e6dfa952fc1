"""Interrupted or killed, a run goes on to the same weights, bit by bit."""

import multiprocessing
import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from train_runs import RECIPE, SHORT, StopAt, tiny

import sparsight
from sparsight.train.log import read_log

ALL = {
    "mixup": 0.8, "cutmix": 1.0, "erase": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1", "smoothing": 0.1, "repeats": 2, "ema": 0.9, "warmup_epochs": 1,
    "shrink_epochs": 2, "distill_logits": 0.5, "distill_features": 0.1, "per_forward": 2, "epochs": 3,
}  # fmt: skip
"""Everything that has a state or draws random numbers."""


def weights(out):
    """The result, and what the last checkpoint holds: weights, moving average, optimiser."""
    last = max((out / "checkpoints").iterdir())
    found = {f"model.{name}": tensor for name, tensor in load_file(out / "model" / "model.safetensors").items()}
    for name in ("weights", "average"):
        if (last / f"{name}.safetensors").exists():
            found |= {f"{name}.{key}": tensor for key, tensor in load_file(last / f"{name}.safetensors").items()}
    state = torch.load(last / "state.pt", weights_only=True)["optimiser"]["state"]
    return found | {f"{key}.{kind}": torch.as_tensor(value) for key, kept in state.items() for kind, value in kept.items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.product
@pytest.mark.parametrize("stops", [(1,), (4,), (2, 7)], ids=str)
def test_interrupted(images, others, tmp_path, stops):
    arguments = {**SHORT, **ALL, "test": others, "save_every": 2}
    quiet = sparsight.train(tiny(), images, RECIPE, tmp_path / "quiet", **arguments)
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            sparsight.train(tiny(), images, RECIPE, tmp_path / "out", listen=StopAt(stop), **arguments)
    done = sparsight.train(tiny(), images, RECIPE, tmp_path / "out", **arguments)
    assert same(weights(tmp_path / "out"), weights(tmp_path / "quiet"))
    assert done.log == quiet.log == read_log(tmp_path / "out" / "log.jsonl")
    assert (done.before, done.after) == (quiet.before, quiet.after)


@pytest.mark.parametrize(
    "recipe", ["dynamicvit:keep=0.6,layers=1/2", pytest.param("patch_merger:keep=0.6,layers=1/2", marks=pytest.mark.product)]
)
def test_interrupted_with_learned_weights(images, tmp_path, recipe):
    arguments = {**SHORT, "learned_lr": 10.0}
    sparsight.train(tiny(), images, recipe, tmp_path / "quiet", **arguments)
    with pytest.raises(KeyboardInterrupt):
        sparsight.train(tiny(), images, recipe, tmp_path / "out", listen=StopAt(5), **arguments)
    sparsight.train(tiny(), images, recipe, tmp_path / "out", **arguments)
    assert same(weights(tmp_path / "out"), weights(tmp_path / "quiet"))


@pytest.mark.product
def test_worker_processes_change_nothing(images, tmp_path):
    arguments = {**SHORT, **ALL, "epochs": 2}
    for workers in (0, 2):
        sparsight.train(tiny(), images, RECIPE, tmp_path / str(workers), workers=workers, **arguments)
    assert same(weights(tmp_path / "0"), weights(tmp_path / "2"))


@pytest.mark.product
def test_half_a_checkpoint_and_half_a_line_do_no_harm(images, tmp_path):
    sparsight.train(tiny(), images, RECIPE, tmp_path / "quiet", **SHORT)
    with pytest.raises(KeyboardInterrupt):
        sparsight.train(tiny(), images, RECIPE, tmp_path / "out", listen=StopAt(5), **SHORT)
    (tmp_path / "out" / "checkpoints" / "00000009.1.half").mkdir()
    with (tmp_path / "out" / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "epo')
    sparsight.train(tiny(), images, RECIPE, tmp_path / "out", **SHORT)
    assert same(weights(tmp_path / "out"), weights(tmp_path / "quiet"))
    assert not list((tmp_path / "out").rglob("*.half"))


@pytest.mark.slow
def test_killed(images, tmp_path):
    """A process of its own, under SIGKILL in the middle of a step, after its second checkpoint."""
    arguments = {**SHORT, **ALL, "epochs": 4, "save_every": 2}
    program = multiprocessing.get_context("spawn").Process(  # autograd's threads do not survive a fork
        target=sparsight.train, args=(tiny(), images, RECIPE, tmp_path / "out"), kwargs=arguments
    )
    program.start()
    while program.is_alive() and len(list((tmp_path / "out" / "checkpoints").glob("*/facts.json"))) < 2:
        time.sleep(0.001)
    assert program.is_alive()
    os.kill(program.pid, signal.SIGKILL)
    program.join(60)
    assert program.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out" / "results.json").exists()
    done, quiet = (sparsight.train(tiny(), images, RECIPE, tmp_path / out, **arguments) for out in ("out", "quiet"))
    assert done.log == quiet.log
    assert same(weights(tmp_path / "out"), weights(tmp_path / "quiet"))
