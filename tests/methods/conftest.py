"""A real timm model whose blocks all carry the golden block's weights."""

import pytest
import timm
import torch


@pytest.fixture
def shared_block_vit(golden):
    """`make(depth)`: VisionTransformer of width 96, 6 heads, every block the golden one."""

    def make(depth: int) -> torch.nn.Module:
        model = timm.models.VisionTransformer(
            img_size=28, patch_size=4, embed_dim=96, num_heads=6, depth=depth, num_classes=0, qkv_bias=True
        ).eval()
        weights = golden("vit/block_weights_C96_H6")
        for block in model.blocks:
            block.load_state_dict(weights)
        return model

    return make


@pytest.fixture
def tiny_decoder():
    """A random Llama of four layers with grouped queries and its head."""
    import transformers as hf

    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    torch.manual_seed(3)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, num_key_value_heads=2, pad_token_id=0, initializer_range=0.3)).eval()
