"""Classes of transformers' image-text-to-text map that nobody named: each is pruned, or refused with the reason; none runs unpruned."""

import inspect

import pytest
import torch
from generic_models import IMAGE, KINDS, VOCAB, grids, sized, squares
from lvlms import product

import sparsight
from sparsight import PruneError

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "depth": 2, "num_attention_heads": 4, "num_heads": 4,
    "num_key_value_heads": 4, "head_dim": 8, "vocab_size": VOCAB, "image_size": 32, "patch_size": 4, "out_hidden_size": 32,
    "num_experts": 4, "n_routed_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2,
    "max_position_embeddings": 512, "projection_dim": 32, "num_position_embeddings": 64, "shared_expert_intermediate_size": 16,
    "projector_hidden_size": 32, "sliding_window": 64, "text_hidden_size": 32, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "kv_lora_rank": 8, "q_lora_rank": 16, "num_global_layers": 1, "vision_output_dim": 32,
}  # fmt: skip


def small(config: dict) -> dict:
    """A configuration with small numbers in place of those that are known."""
    made = {}
    for key, value in config.items():
        if isinstance(value, dict) and key not in ("id2label", "label2id"):
            made[key] = small(value)
        elif key in SMALL and isinstance(value, int):
            made[key] = SMALL[key]
        elif key in ("image_size", "patch_size") and isinstance(value, list | tuple):
            made[key] = [SMALL[key]] * len(value)
        elif str(key).endswith("layer_types") and value:
            made[key] = value[:2]
        elif key in ("fullatt_block_indexes", "deepstack_visual_indexes"):
            made[key] = [1]
        elif str(key).endswith(("token_id", "token_index")) and isinstance(value, int):
            made[key] = IMAGE if str(key).startswith("image_token") else 0 if key == "pad_token_id" else min(value, VOCAB - 1)
        elif key not in ("id2label", "label2id", "transformers_version"):
            made[key] = value
    return made


def unnamed() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

    return [name for name in NAMES if name not in KINDS]


def built(name: str):
    """A tiny model of that type; the test is skipped where these small numbers do not make one."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

    kind = NAMES[name] if isinstance(NAMES[name], str) else NAMES[name][0]
    try:
        config = transformers.CONFIG_MAPPING[name]
        torch.manual_seed(0)
        model = getattr(transformers, kind)(config.from_dict(small(config().to_dict()))).eval()
    except Exception as error:
        pytest.skip(f"no tiny {kind} by these numbers: {error}")
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    return model


def prompt_for(model) -> tuple[dict, torch.Tensor]:
    """A prompt with one picture, as far as its shapes can be guessed, and the untouched model's logits."""
    takes = inspect.signature(model.forward).parameters
    core = model.base_model if hasattr(model.base_model, "get_image_features") else model
    rows = [[(32, 32, 1)]]
    pixels = (grids() if "image_grid_thw" in takes else sized if "image_sizes" in takes else squares)(rows)
    try:
        own = inspect.signature(core.get_image_features).parameters
        found = core.get_image_features(**{k: v for k, v in pixels.items() if k in own}, return_dict=True).pooler_output
        count = sum(one.shape[0] for one in found)
        ids = torch.tensor([[5, 6, *[IMAGE] * count, 7, 8]])
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **{k: v for k, v in pixels.items() if k in takes}}
        given.update({k: (ids == IMAGE).long() for k in ("mm_token_type_ids", "token_type_ids") if k in takes})
        return given, model(**given).logits
    except Exception as error:
        pytest.skip(f"no prompt for {type(model).__name__} by these shapes: {error}")


def reason(model, recipe: str) -> str:
    """Why `prune` refuses, in one line; "" if it does not."""
    try:
        sparsight.prune(model, recipe).remove()
    except PruneError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", product(unnamed(), lambda name: name in ("hyperclovax_vision_v2", "florence2")))
@torch.no_grad()
def test_it_is_pruned_or_refused(name):
    model = built(name)
    refused = reason(model, "divprune:keep=0.5")
    if refused:
        assert "\n" not in refused
        return
    given, plain = prompt_for(model)
    count = int((given["input_ids"] == IMAGE).sum())
    with sparsight.prune(model, "divprune:keep=1"):
        assert torch.equal(model(**given).logits, plain)
    for recipe in ("divprune:keep=0.5", "col_ln:keep=0.5"):
        if recipe.startswith("col_ln") and reason(model, recipe):
            continue
        with sparsight.prune(model, recipe) as handle:
            short = model(**given).logits
            assert abs(2 * sum(handle.counts) - count) <= len(handle.counts)
            assert plain.shape[1] - short.shape[1] == count - sum(handle.counts)
    assert torch.equal(model(**given).logits, plain)
