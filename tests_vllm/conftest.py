"""Servers of vLLM on tiny random checkpoints; the references are transformers' models pruned by `sparsight.prune`."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest

os.environ.update(
    VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_NO_USAGE_STATS="1", VLLM_ENGINE_READY_TIMEOUT_S="3000",
    VLLM_LOGGING_LEVEL="ERROR", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",  # the model runs in the engine's process, which saves one process to start
)  # fmt: skip

import checkpoints

from benchmarks import serving

ROOT = Path(__file__).parents[1]

FAMILIES = {
    "llava": [],
    "llava-next": ["--max-num-batched-tokens", "256"],
    "onevision": [],
    "qwen2.5": ["--block-size", "32"],
    "qwen3": ["--max-num-batched-tokens", "96"],  # prompts, and images, are cut into chunks
}
"""Families, and options of their servers, so different that caches and steps of several sizes are met."""
OWN = "divprune:tokens=5"
"""The recipe of every server."""
OPTIONS = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--trust-request-mm-kwargs"]
OPTIONS += ["--kv-cache-memory-bytes", "64000000"]


def pytest_collection_modifyitems(items):
    """A server takes minutes to start on a busy machine."""
    for item in items:
        item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    made = {}

    def find(name):
        if name not in made:
            made[name] = checkpoints.checkpoint(name, tmp_path_factory.mktemp(name))
        return made[name]

    return find


@pytest.fixture(scope="session")
def reference(folder):
    made = {}
    return lambda name: made.setdefault(name, checkpoints.Reference(name, folder(name)))


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """A context manager around a server; its last words are shown where it does not start."""

    @contextmanager
    def started(name, command, port):
        log = tmp_path_factory.mktemp("log") / f"{name}.log"
        try:
            with serving.running(command, port, log) as server:
                yield server
        except RuntimeError as error:
            raise AssertionError(f"{error}\n{log.read_text()[-3000:]}") from None

    return started
