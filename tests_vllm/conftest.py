"""Engines and servers of vLLM on tiny random checkpoints; the references are transformers' models pruned by `sparsight.prune`."""

import gc
import os

import pytest

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="ERROR", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1",
)  # fmt: skip

import checkpoints

OPTIONS = {
    "llava": {"max_num_batched_tokens": 1024},
    "llava-next": {"max_num_batched_tokens": 256},
    "onevision": {"max_num_batched_tokens": 1024},
    "qwen2.5": {"max_num_batched_tokens": 1024, "block_size": 32},
    "qwen3": {"max_num_batched_tokens": 96},  # prompts, and images, are cut into chunks
}


def pytest_collection_modifyitems(items):
    """Tests of a server or engine take minutes on a busy machine."""
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


@pytest.fixture(scope="module", params=OPTIONS)
def engine(request, folder):
    """Family, its default recipe, and an engine in this process; one at a time."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    recipe = "divprune:tokens=5"
    llm = LLM(
        str(folder(request.param)), dtype="float32", enforce_eager=True, max_model_len=1024, limit_mm_per_prompt={"image": 3},
        hf_overrides={"sparsight": recipe}, disable_log_stats=True, **OPTIONS[request.param],
    )  # fmt: skip
    yield request.param, recipe, llm
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
