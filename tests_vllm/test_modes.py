"""vLLM's own configuration objects, before anything is loaded: what is refused there in one clear line, and what is left as it is."""

import json
import os
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest
from conftest import FAMILIES

TWO = {"distributed_executor_backend": "mp"}
TENSOR, PIPELINE = {**TWO, "tensor_parallel_size": 2}, {**TWO, "pipeline_parallel_size": 2}
NGRAM = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}}
ANY, HEADS = "divprune:tokens=5", "fastervlm:tokens=5,score=col_ln"
MODES = {
    "llava-recipe": ("llava", "prumerge", {}, "finds each image's count itself"),
    "llava-inside": ("llava", "fastv:keep=0.5", {}, "paged cache"),
    "llava-text": ("llava", "cdpruner:text=clip,tokens=5", {}, "reads the prompt"),
    "llava-tensor": ("llava", HEADS, TENSOR, "some heads only"),
    "llava-next-tensor": ("llava-next", HEADS, TENSOR, "some heads only"),
    "onevision-tensor": ("onevision", HEADS, TENSOR, "some heads only"),
    "qwen2.5-tensor": ("qwen2.5", HEADS, TENSOR, "some heads only"),
    "qwen3-tensor": ("qwen3", HEADS, TENSOR, "some heads only"),
    "qwen2.5-data": ("qwen2.5", HEADS, {"mm_encoder_tp_mode": "data"}, "an order of its own"),
    "qwen3-compiled": ("qwen3", HEADS, {"enforce_eager": False, "compilation_config": {"compile_mm_encoder": True}}, "hides it"),
    "qwen2.5-pipeline": ("qwen2.5", "none", PIPELINE, "pipeline_parallel_size"),
    "qwen3-pipeline": ("qwen3", ANY, PIPELINE, "pipeline_parallel_size"),
    "qwen3-video": ("qwen3", "none", {"video_pruning_rate": 0.5}, "video_pruning_rate"),
    "llava-adapters": ("llava", ANY, {"enable_lora": True, "enable_tower_connector_lora": True}, "enable_tower_connector_lora"),
    "llava-request-only": ("llava", None, {"mm_processor_kwargs": {"sparsight": ANY}}, "needs --hf-overrides"),
    "served-llava": ("llava", ANY, {}, None),
    "served-unpruned": ("llava", None, TENSOR, None),
    "served-llava-tensor": ("llava", ANY, TENSOR, None),
    "served-qwen3-tensor": ("qwen3", ANY, TENSOR, None),
    "served-llava-pipeline": ("llava", HEADS, PIPELINE, None),
    "served-qwen2.5-unpruned-pipeline": ("qwen2.5", None, PIPELINE, None),
    "served-qwen2.5-ngram": ("qwen2.5", ANY, NGRAM, None),
}


def configuration(folder, recipe, **modes):
    from vllm.engine.arg_utils import EngineArgs

    overrides = {} if recipe is None else {"sparsight": recipe}
    return EngineArgs(
        str(folder), **{"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "hf_overrides": overrides, **modes}
    ).create_engine_config()


@pytest.mark.parametrize("name", MODES)
def test_configuration(name, folder):
    family, recipe, modes, words = MODES[name]
    if words is None:
        configuration(folder(family), recipe, **modes)
        return
    with pytest.raises(ValueError, match=words):
        configuration(folder(family), recipe, **modes)


@pytest.mark.parametrize("method", ["draft_model", "eagle", "eagle3"])
def test_drafters(method, folder, tmp_path):
    """A model that drafts is refused beside a recipe, and left alone without one."""
    draft = folder("llava")
    if method != "draft_model":
        draft = tmp_path
        language = json.loads((folder("llava") / "config.json").read_text())["text_config"]
        kind = {"eagle": "EagleLlamaForCausalLM", "eagle3": "LlamaForCausalLMEagle3"}[method]
        (draft / "config.json").write_text(json.dumps({**language, "architectures": [kind], "num_hidden_layers": 1}))
    asked = {"speculative_config": {"method": method, "model": str(draft), "num_speculative_tokens": 2}}
    with pytest.raises(ValueError, match="speculative decoding by a model"):
        configuration(folder("llava"), ANY, **asked)
    assert configuration(folder("llava"), None, **asked).speculative_config.method == method


@pytest.mark.product
def test_nothing_is_switched_off_on_a_gpu(folder):
    """Async scheduling, compilation, graphs of language model and encoder, in a process that takes this machine for one with eight GPUs."""
    script, given = Path(__file__).with_name("pretended_gpu.py"), [f"{name}={folder(name)}" for name in ("llava", "qwen3")]
    done = subprocess.run(
        [sys.executable, str(script), *given], capture_output=True, text=True, env={**os.environ, "VLLM_PLUGINS": ""}, timeout=3000
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["without"] == found["unpruned"]
    for name, facts in found["pruned"].items():
        assert facts == {**found["without"][name], "encoder compiled": False}, name  # that was not asked for beside a recipe
        assert (facts["async scheduling"], facts["encoder graphs"]) == (True, True)
        assert facts["compilation"] == "CompilationMode.VLLM_COMPILE"


@pytest.mark.parametrize("family", FAMILIES)
def test_classes_can_do_what_their_parents_can(family, folder):
    """Everything that vLLM asks of a class of models before it makes one."""
    from vllm.model_executor.models import ModelRegistry, interfaces, interfaces_base
    from vllm.model_executor.models.registry import _ModelInfo
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    architecture = json.loads((folder(family) / "config.json").read_text())["architectures"][0]
    ours = ModelRegistry.models[architecture].load_model_cls()
    theirs = next(one for one in ours.__mro__ if one.__name__ == architecture)
    assert ours.__module__.startswith("sparsight.")
    assert theirs.__module__.startswith("vllm.")
    info = [vars(_ModelInfo.from_model_cls(one)) for one in (ours, theirs)]
    assert {**info[0], "architecture": architecture} == info[1]
    asked = {
        name: ask
        for room in (interfaces, interfaces_base)
        for name, ask in vars(room).items()
        if name.startswith(("supports_", "requires_", "is_", "has_")) and callable(ask) and len(signature(ask).parameters) == 1
    }
    assert {"supports_encoder_cudagraph", "supports_mrope", "supports_lora"} <= set(asked)
    assert {name: bool(ask(ours)) for name, ask in asked.items()} == {name: bool(ask(theirs)) for name, ask in asked.items()}
