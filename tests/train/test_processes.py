"""Several processes end with the weights of one, whoever starts them; the program itself from the command line."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from train_runs import RECIPE, tiny

import sparsight
from sparsight.train.result import Training

WORDS = [
    "--recipe",
    RECIPE,
    "--device",
    "cpu",
    "--epochs",
    "2",
    "--batch-size",
    "4",
    "--lr",
    "1e-3",
    "--ema",
    "0.9",
    "--log-every",
    "1",
]


@pytest.fixture(scope="module")
def given(images, others, tmp_path_factory):
    file = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_file(tiny().model.state_dict(), file)
    return ["-m", "sparsight", "train", f"test_vit@{file}", "--data", str(images), "--test", str(others), *WORDS]


def run(start, words, out, ok=True):
    done = subprocess.run(
        [*start, *words, "--out", str(out)], capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=280,
    )  # fmt: skip
    assert (done.returncode == 0) == ok, done.stderr
    return done


LAUNCHERS = {
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"],
    "accelerate": [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
                   "--dynamo_backend", "no", "--main_process_port", "0"],
}  # fmt: skip


@pytest.mark.product
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_end_as_one(given, tmp_path, launcher):
    run([sys.executable], given, tmp_path / "one")
    run(LAUNCHERS[launcher], given, tmp_path / "two")
    one, two = (Training.from_json((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert (one.processes, two.processes) == (1, 2)
    assert one.hits == two.hits
    assert [line.loss for line in two.log] == pytest.approx([line.loss for line in one.log], rel=1e-4)
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    start = tiny().model.state_dict()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=3e-4, rtol=1e-3)
    assert any((tensor - start[name]).abs().max() > 1e-3 for name, tensor in first.items())
    sparsight.load(str(tmp_path / "two"))


@pytest.mark.product
def test_two_processes_agree_on_a_fault(given, tmp_path):
    words = [*given, "--batch-size", "3"]
    done = run(LAUNCHERS["torchrun"], words, tmp_path / "x", ok=False)
    assert "batch_size=3 cannot be shared by 2 processes" in done.stderr
    assert "Traceback" not in done.stderr.partition("ChildFailedError")[0].partition("torch/distributed")[0]


@pytest.mark.product
def test_the_program_says_what_it_does(given, tmp_path):
    dry = run([sys.executable], [*given, "--dry-run"], tmp_path / "x")
    assert "steps: 6 = 2 epochs x 3, of 4 images" in dry.stdout
    assert not (tmp_path / "x").exists()
    done = run([sys.executable], given, tmp_path / "x")
    assert "6 steps, loss" in done.stdout
    assert "report.html" in done.stdout
    assert "test images: 9 of 9 images" in done.stderr
