"""The entry point that vLLM calls in each of its processes: our model classes in place of its own, and a check when a server starts."""

from __future__ import annotations

ROOM = __name__.rpartition(".")[0]
MODELS = {
    "LlavaForConditionalGeneration": "llava:PrunedLlava",
    "LlavaNextForConditionalGeneration": "llava:PrunedLlavaNext",
    "LlavaOnevisionForConditionalGeneration": "llava:PrunedLlavaOnevision",
    "Qwen2_5_VLForConditionalGeneration": "qwen_vl:PrunedQwen25VL",
    "Qwen3VLForConditionalGeneration": "qwen_vl:PrunedQwen3VL",
}
"""Architectures as checkpoints name them, and our classes. Without the key in a model's configuration they do what their parents do."""


def register() -> None:
    """Let vLLM know the classes by name, which it imports when a model needs them."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from .startup import StartupCheck

    for architecture, place in MODELS.items():
        ModelRegistry.register_model(architecture, f"{ROOM}.{place}")
    for architecture in ModelRegistry.get_supported_archs():
        MODELS_CONFIG_MAP[architecture] = StartupCheck(tuple(MODELS), MODELS_CONFIG_MAP.get(architecture))
