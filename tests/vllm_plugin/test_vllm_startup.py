"""What is refused when a vLLM server starts, from its configuration alone."""

from types import SimpleNamespace

import lvlms
import pytest
from transformers import PixtralVisionConfig

from sparsight.errors import PruneError
from sparsight.vllm_plugin.startup import DEAF, StartupCheck

SERVED = ("LlavaForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration")


def server(name: str = "llava", recipe: object = "fastervlm:tokens=5", **modes):
    """As much of vLLM's configuration as is read."""
    config = lvlms.build(name).config
    if "tower" in modes:
        config.vision_config = modes["tower"]
    if recipe is not None:
        config.sparsight = recipe
    multimodal = SimpleNamespace(
        mm_processor_kwargs=modes.pop("mm_processor_kwargs", None), mm_encoder_tp_mode=modes.pop("mm_encoder_tp_mode", "weights"),
        is_multimodal_pruning_enabled=lambda: modes.get("video", False),
    )  # fmt: skip
    parallel = SimpleNamespace(
        tensor_parallel_size=modes.get("tp", 1), pipeline_parallel_size=modes.get("pp", 1), use_ubatching=modes.get("dbo", False)
    )
    draft = SimpleNamespace(method=modes["draft"]) if "draft" in modes else None
    lora = SimpleNamespace(enable_tower_connector_lora=modes["lora"]) if "lora" in modes else None
    kinds = {"llava": SERVED[0], "qwen2.5": SERVED[1], "qwen2": "Qwen2VLForConditionalGeneration"}
    return SimpleNamespace(
        model_config=SimpleNamespace(hf_config=config, multimodal_config=multimodal, architecture=kinds[name]),
        parallel_config=parallel, speculative_config=draft, lora_config=lora,
        compilation_config=SimpleNamespace(compile_mm_encoder=modes.get("compiled", False)),
    )  # fmt: skip


def check(**given):
    made = server(**given)
    StartupCheck(SERVED).verify_and_update_config(made)
    return made


def test_served():
    assert getattr(check().model_config.hf_config, DEAF) == ""
    check(recipe="none", tp=2)
    check(tp=2, recipe="divprune:tokens=5")
    check(pp=2)
    check(draft="ngram")
    check(recipe="none", mm_processor_kwargs={"sparsight": "divprune:tokens=5"})


def test_without_a_recipe_nothing_is_looked_at():
    made = check(recipe=None, name="qwen2.5", pp=2, video=True, draft="eagle")
    assert not hasattr(made.model_config.hf_config, DEAF)


REFUSED = [
    ({"recipe": "prumerge"}, "finds each image's count itself"),
    ({"recipe": {"tokens": 5}}, "takes a recipe such as"),
    ({"mm_processor_kwargs": {"sparsight": "fastv"}}, "paged cache"),
    ({"recipe": None, "mm_processor_kwargs": {"sparsight": "divprune"}}, "needs --hf-overrides"),
    ({"name": "qwen2"}, "this model is a Qwen2VL"),
    ({"tp": 2}, "some heads only"),
    ({"mm_encoder_tp_mode": "data"}, "an order of its own"),
    ({"compiled": True}, "compile_mm_encoder"),
    ({"draft": "eagle"}, "speculative decoding"),
    ({"tower": PixtralVisionConfig()}, "Pixtral"),
    ({"lora": True}, "enable_tower_connector_lora"),
    ({"name": "qwen2.5", "recipe": "none", "pp": 2}, "pipeline_parallel_size"),
    ({"name": "qwen2.5", "recipe": "none", "dbo": True}, "dual batch overlap"),
    ({"name": "qwen2.5", "recipe": "none", "video": True}, "video_pruning_rate"),
]


def test_refused():
    for given, words in REFUSED:
        with pytest.raises(PruneError, match=words):
            check(**given)
