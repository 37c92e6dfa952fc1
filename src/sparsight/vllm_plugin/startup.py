"""What is checked when a server starts: its recipe, and which of vLLM's modes a pruned model can run in.

vLLM calls `StartupCheck` with its whole configuration, in the process that the user sees, before anything is loaded.
"""

from __future__ import annotations

from typing import Any

from ..errors import PruneError
from .recipes import KEY, OFF, ServedRecipes, check_text

DEAF = "sparsight_deaf"
"""Name in the model's configuration of the reason why nobody can listen to its vision encoder."""
MROPE = ("Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration")
ONEVISION, RATIO = "LlavaOnevisionForConditionalGeneration", "anyres_max_9"
"""A model whose tiles vLLM lays out in one way, whatever its configuration says."""
BLIND_DRAFTS = ("ngram", "ngram_gpu", "suffix")
"""Methods of speculative decoding that draft from token ids alone."""


class StartupCheck:
    """vLLM's hook for the configuration of an architecture. served: those whose images are pruned; before: the hook that vLLM itself has."""

    def __init__(self, served: tuple[str, ...], before: Any = None) -> None:
        self.served, self.before = served, before

    def verify_and_update_model_config(self, model_config: Any) -> None:
        """Nothing of our own; the whole configuration comes later."""
        if self.before is not None:
            self.before.verify_and_update_model_config(model_config)

    def verify_and_update_config(self, vllm_config: Any) -> None:
        """Raise PruneError for a recipe or a mode that cannot be served; note what the processor of requests cannot see."""
        if self.before is not None:
            self.before.verify_and_update_config(vllm_config)
        model = vllm_config.model_config
        if not enabled(model.hf_config):
            if KEY in (getattr(model.multimodal_config, "mm_processor_kwargs", None) or {}):
                raise PruneError(f'{KEY} in --mm-processor-kwargs needs --hf-overrides \'{{"{KEY}": "{OFF}"}}\' beside it')
            return
        if model.architecture not in self.served:
            raise PruneError(
                f"{KEY} prunes images of {', '.join(self.served)} in vLLM; this model is a {model.architecture}, so leave it out"
            )
        refuse_modes(vllm_config)
        setattr(model.hf_config, DEAF, deaf(vllm_config))
        text = default_recipe(model.hf_config, model.multimodal_config)
        recipes = served_recipes(model.hf_config)
        if text != OFF:
            recipes.find(text)


def enabled(config: Any) -> bool:
    """Whether the model's configuration has the key that turns pruning on."""
    return getattr(config, KEY, None) is not None


def default_recipe(config: Any, multimodal_config: Any) -> str:
    """The server's recipe: that of --mm-processor-kwargs, else that of --hf-overrides."""
    given = (getattr(multimodal_config, "mm_processor_kwargs", None) or {}).get(KEY)
    return check_text(getattr(config, KEY) if given is None else given)


def served_recipes(config: Any) -> ServedRecipes:
    """The recipes that a model of this configuration can be served with."""
    return ServedRecipes(config, getattr(config, DEAF, ""))


def deaf(vllm_config: Any) -> str:
    """Why attention and features inside the vision encoder cannot be heard; "" if they can."""
    parallel, compilation = vllm_config.parallel_config, vllm_config.compilation_config
    if parallel.tensor_parallel_size > 1:
        return f"tensor_parallel_size={parallel.tensor_parallel_size} gives each rank some heads only"
    if vllm_config.model_config.multimodal_config.mm_encoder_tp_mode == "data":
        return "mm_encoder_tp_mode='data' hands the images out in an order of its own"
    if getattr(compilation, "compile_mm_encoder", False):
        return "compile_mm_encoder=true hides it"
    return ""


def refuse_modes(vllm_config: Any) -> None:
    """Raise PruneError for modes in which pruned answers would be wrong, or are not known to be right."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    mrope = model.architecture in MROPE
    draft, lora = vllm_config.speculative_config, vllm_config.lora_config
    asked = {
        "pipeline_parallel_size > 1 with M-RoPE (only the first rank sees where image tokens were)": mrope
        and parallel.pipeline_parallel_size > 1,
        "dual batch overlap with M-RoPE (half a batch would get the other half's places)": mrope and parallel.use_ubatching,
        "video_pruning_rate (vLLM's own pruning writes other columns behind the embeddings)": mrope
        and model.multimodal_config.is_multimodal_pruning_enabled(),
        f"a vision_aspect_ratio other than {RATIO} (vLLM lays out tiles by that one)": model.architecture == ONEVISION
        and model.hf_config.vision_aspect_ratio != RATIO,
        "a Pixtral vision tower (vLLM lays out its images in rows of their own)": model.hf_config.vision_config.model_type
        == "pixtral",
        "speculative decoding by a model (its drafts would read image embeddings that it was not made for; take ngram)": draft
        and draft.method not in BLIND_DRAFTS,
        "enable_tower_connector_lora (adapters of the vision encoder are laid out by the tokens that are left)": lora
        and lora.enable_tower_connector_lora,
    }
    for mode, wanted in asked.items():
        if wanted:
            raise PruneError(f"{KEY} does not go together with {mode}; leave one of the two out")
