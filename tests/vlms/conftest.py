"""Language models for tests: the golden tiny Llama, and small random ones."""

import sys

import pytest
import torch


@pytest.fixture(autouse=True)
def own_accelerator():
    """accelerate keeps one state per process, which would be that of the first test that uses it."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def tiny_llama(golden):
    """`make(head=False, attention="sdpa")`: a LlamaModel (or LlamaForCausalLM) with the golden weights."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

    weights = golden("vlm/tiny_llama")
    vocab, hidden, inter, layers, heads, kv_heads, longest = weights.pop("config").tolist()

    def make(head: bool = False, attention: str = "sdpa") -> torch.nn.Module:
        config = LlamaConfig(
            vocab_size=vocab, hidden_size=hidden, intermediate_size=inter, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=kv_heads, max_position_embeddings=longest, rms_norm_eps=1e-6, pad_token_id=None,
        )  # fmt: skip
        config._attn_implementation = attention
        torch.manual_seed(0)
        model = LlamaForCausalLM(config) if head else LlamaModel(config)
        missing = (model.model if head else model).load_state_dict(weights, strict=False)
        assert not missing.missing_keys
        return model.eval()

    return make
