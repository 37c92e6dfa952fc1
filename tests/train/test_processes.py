"""Several processes end with the weights of one, whoever starts them; the program itself from the command line."""

import multiprocessing
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from train_runs import RECIPE, SHORT, StopAt, tiny

import sparsight
from sparsight import PruneError
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


def run_rank(rank, port, out, given, box):
    """What a launcher starts: one of two processes that meet by gloo."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    images, others, changes = given
    if changes.pop("sharded", False):
        shard_on_the_cpu()
    try:
        sparsight.train(tiny(), images, RECIPE, out, test=others, **{**SHORT, **changes})
        box.put(None)
    except BaseException as error:  # what a process says last
        box.put(str(error) if isinstance(error, PruneError) else repr(error))


def shard_on_the_cpu():
    """Let accelerate wrap the learner by torch's FSDP, which shards between gloo processes, too; accelerate itself does so for cards only."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    os.environ.update(
        ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP", FSDP_TRANSFORMER_CLS_TO_WRAP="Block",
        FSDP_RESHARD_AFTER_FORWARD="true",
    )  # fmt: skip
    begin = PartialState.__init__

    def begin_as_cards(self, *given, **more):
        begin(self, *given, **more)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = begin_as_cards


def two(out, *given):
    """Train in two processes; what each of them says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")  # autograd's threads do not survive a fork
    box = spawn.Queue()
    ranks = [spawn.Process(target=run_rank, args=(rank, port, out, given, box)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    said = [box.get(timeout=250) for _ in ranks]
    for rank in ranks:
        rank.join(30)
    return said


def compare(one, other):
    """Two runs of the same steps, up to rounding."""
    results = [Training.from_json((out / "results.json").read_text()) for out in (one, other)]
    assert [found.processes for found in results] == [1, 2]
    assert results[0].hits == results[1].hits
    assert [line.loss for line in results[1].log] == pytest.approx([line.loss for line in results[0].log], rel=1e-4)
    first, second = (load_file(out / "model" / "model.safetensors") for out in (one, other))
    start = tiny().model.state_dict()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=3e-4, rtol=1e-3)
    assert max(float((tensor - start[name]).abs().max()) for name, tensor in first.items()) > 2e-3


@pytest.mark.slow
def test_two_gloo_processes_end_as_one_with_the_doubled_batch(images, others, tmp_path):
    """A process of two has two images in a step, one after the other; the one alone has four."""
    changes = {"epochs": 2, "ema": 0.9, "per_forward": 1}
    sparsight.train(tiny(), images, RECIPE, tmp_path / "one", test=others, **{**SHORT, **changes})
    assert two(tmp_path / "two", images, others, changes) == [None, None]
    compare(tmp_path / "one", tmp_path / "two")


@pytest.mark.product
def test_sharded_weights_are_trained_kept_and_saved_whole(images, others, tmp_path):
    """FSDP between two processes, broken off after its first checkpoint; the weights are those of one process."""
    sparsight.train(tiny(), images, RECIPE, tmp_path / "one", test=others, **SHORT)
    changes = {"sharded": True, "listen": StopAt(4)}
    assert two(tmp_path / "two", images, others, changes) == ["KeyboardInterrupt()"] * 2
    assert two(tmp_path / "two", images, others, {"sharded": True}) == [None, None]
    compare(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_two_processes_agree_on_a_fault(images, others, tmp_path):
    """They find each other where there are no cards, also if the CPU is not named."""
    said = two(tmp_path / "x", images, others, {"batch_size": 3, "device": "auto"})
    assert all("batch_size=3 cannot be shared by 2 processes" in one for one in said)
    assert not (tmp_path / "x").exists()


LAUNCHERS = {
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"],
    "accelerate": [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
                   "--dynamo_backend", "no", "--main_process_port", "0"],
}  # fmt: skip


@pytest.mark.product
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers(given, tmp_path, launcher):
    run([sys.executable], given, tmp_path / "one")
    run(LAUNCHERS[launcher], given, tmp_path / "two")
    compare(tmp_path / "one", tmp_path / "two")
    sparsight.load(str(tmp_path / "two"))


@pytest.mark.product
def test_the_program_says_what_it_does(given, tmp_path):
    dry = run([sys.executable], [*given, "--dry-run"], tmp_path / "x")
    assert "steps: 6 = 2 epochs x 3, of 4 images" in dry.stdout
    assert not (tmp_path / "x").exists()
    done = run([sys.executable], given, tmp_path / "x")
    assert "6 steps, loss" in done.stdout
    assert "report.html" in done.stdout
    assert "test images: 9 of 9 images" in done.stderr
