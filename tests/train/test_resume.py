"""Interrupted or killed, a run goes on to the same weights, bit by bit."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
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


@pytest.mark.parametrize("recipe", ["dynamicvit:keep=0.6,layers=1/2", "patch_merger:keep=0.6,layers=1/2"])
def test_interrupted_with_learned_weights(images, tmp_path, recipe):
    arguments = {**SHORT, "learned_lr": 10.0}
    sparsight.train(tiny(), images, recipe, tmp_path / "quiet", **arguments)
    with pytest.raises(KeyboardInterrupt):
        sparsight.train(tiny(), images, recipe, tmp_path / "out", listen=StopAt(5), **arguments)
    sparsight.train(tiny(), images, recipe, tmp_path / "out", **arguments)
    assert same(weights(tmp_path / "out"), weights(tmp_path / "quiet"))


def test_worker_processes_change_nothing(images, tmp_path):
    arguments = {**SHORT, **ALL, "epochs": 2}
    for workers in (0, 2):
        sparsight.train(tiny(), images, RECIPE, tmp_path / str(workers), workers=workers, **arguments)
    assert same(weights(tmp_path / "0"), weights(tmp_path / "2"))


def test_half_a_checkpoint_and_half_a_line_do_no_harm(images, tmp_path):
    sparsight.train(tiny(), images, RECIPE, tmp_path / "quiet", **SHORT)
    with pytest.raises(KeyboardInterrupt):
        sparsight.train(tiny(), images, RECIPE, tmp_path / "out", listen=StopAt(5), **SHORT)
    (tmp_path / "out" / "checkpoints" / "00000009.1.part").mkdir()
    with (tmp_path / "out" / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "epo')
    sparsight.train(tiny(), images, RECIPE, tmp_path / "out", **SHORT)
    assert same(weights(tmp_path / "out"), weights(tmp_path / "quiet"))
    assert not list((tmp_path / "out").rglob("*.part"))


@pytest.mark.slow
def test_killed(images, tmp_path):
    """The program itself, under SIGKILL, as soon as its first checkpoint is there."""
    save_file(tiny().model.state_dict(), tmp_path / "tiny.safetensors")
    words = [
        sys.executable, "-m", "sparsight", "train", f"test_vit@{tmp_path / 'tiny.safetensors'}", "--data", str(images), "--recipe", RECIPE, "--device", "cpu",
        "--epochs", "20", "--batch-size", "4", "--save-every", "4", "--lr", "1e-3", "--mixup", "0.8", "--ema", "0.9",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = subprocess.Popen([*words, "--out", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True, env=environment)
    while program.poll() is None and not (tmp_path / "out" / "checkpoints" / "00000008").exists():
        time.sleep(0.002)
    assert program.poll() is None, program.stderr.read()
    program.send_signal(signal.SIGKILL)
    program.communicate(timeout=60)
    assert not (tmp_path / "out" / "results.json").exists()
    for out in ("out", "quiet"):
        done = subprocess.run([*words, "--out", str(tmp_path / out)], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
    assert "loss" in done.stdout
    assert same(weights(tmp_path / "out"), weights(tmp_path / "quiet"))
