"""Modes of vLLM that were made for many GPUs or for speed, run on CPUs: answers stay those of one process."""

import pytest
from checkpoints import same
from conftest import FAMILIES, OPTIONS, OWN
from test_server import ask, requests

from benchmarks.serving import free_port, vllm

pytestmark = pytest.mark.product
EAGER = [*OPTIONS, "--distributed-executor-backend", "mp"]
COMPILED = [one for one in OPTIONS if one != "--enforce-eager"]
NGRAM = '{"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}'
MODES = {
    "llava-tensor": ("llava", [*EAGER, "--tensor-parallel-size", "2"], ("divprune", "fps", "random", "none")),
    "qwen2.5-tensor": ("qwen2.5", [*EAGER, "--tensor-parallel-size", "2"], ("divprune", "fps", "random", "none")),
    "llava-pipeline": ("llava", [*EAGER, "--pipeline-parallel-size", "2"], None),
    "qwen2.5-ngram": ("qwen2.5", [*OPTIONS, "--speculative-config", NGRAM], None),
    "qwen3-compiled": ("qwen3", [*COMPILED, *FAMILIES["qwen3"]], None),
}
"""Family, options, methods (None: all)."""


@pytest.mark.parametrize("mode", MODES)
def test_answers_are_those_of_transformers(mode, folder, reference, start, monkeypatch):
    family, options, names = MODES[mode]
    asked = [one for one in requests(family) if names is None or one[0].partition(":")[0] in names]
    port = free_port()
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with start(mode, vllm(str(folder(family)), OWN, port, options), port) as server:
        found = [ask(server, *one) for one in asked]
    wrong = [one[0] for one, answer in zip(asked, found) if not same(answer, reference(family).answer(*one, 12))]
    assert asked
    assert wrong == []
