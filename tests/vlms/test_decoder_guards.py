"""Decoders that nobody has seen yet: what they do is followed where it is understood, and refused where it is not."""

import pytest
import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaModel
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer

import sparsight
from sparsight import PruneError

VISUAL, LENGTH, SITE = slice(3, 15), 20, 1
TINY = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}


class Layer(LlamaDecoderLayer):
    """A layer that is given more than others."""

    def forward(self, hidden_states, gate=None, shelf=None, bias=None, **kwargs):
        hidden_states = hidden_states if gate is None else hidden_states * gate
        if bias is not None:
            hidden_states = hidden_states + bias.mean() * hidden_states.mean()
        if shelf is not None:
            shelf[len(shelf)] = hidden_states
        return super().forward(hidden_states, **kwargs)


class Unseen(LlamaModel):
    """A decoder of next month. does: what it does besides what Llama does."""

    def __init__(self, does=""):
        torch.manual_seed(0)
        super().__init__(LlamaConfig(**TINY))
        self.layers = nn.ModuleList([Layer(self.config, index) for index in range(3)])
        self.does = does
        self.eval()

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, past_key_values=None, use_cache=None, **kwargs):
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = DynamicCache(config=self.config) if use_cache and past_key_values is None else past_key_values
        length, start = hidden.shape[1], 0 if cache is None else cache.get_seq_length()
        position = torch.arange(start, start + length).unsqueeze(0)
        rope = self.rotary_emb(hidden, position_ids=position)
        more = {"and_mask_function": lambda _b, _h, _q, k: k != 5} if self.does == "hides" else {}
        mask = create_causal_mask(self.config, hidden, attention_mask, cache, **more)
        args, given = (), {}
        if self.does == "gates":
            args = ((1 + position.float() / 10).unsqueeze(-1),)
        elif self.does == "pairs":
            given["bias"] = torch.ones(4, 2, length)
        elif self.does == "keeps":
            given["shelf"] = {}
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, *args, attention_mask=mask, position_embeddings=rope, past_key_values=cache, **given, **kwargs)
            if self.does == "adds" and index == 1:
                hidden = hidden + 0.1
        return type("Output", (), {"last_hidden_state": self.norm(hidden), "past_key_values": cache})


class OwnAttention(LlamaAttention):
    def forward(self, hidden_states, **kwargs):
        return self.o_proj(self.v_proj(hidden_states)), None


class Alibi(LlamaAttention):
    def forward(self, hidden_states, attention_mask=None, past_key_values=None, alibi=None, **kwargs):
        from transformers.models.llama.modeling_llama import ALL_ATTENTION_FUNCTIONS

        return ALL_ATTENTION_FUNCTIONS["sdpa"](self, hidden_states, hidden_states, hidden_states, attention_mask)


def ids():
    return torch.randint(2, 60, (1, LENGTH), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_what_runs_along_the_tokens_follows():
    """A gate for every token, which no list of names knows."""
    model = Unseen("gates")
    plain = model(ids()).last_hidden_state
    with sparsight.prune(model, f"fastv:layer={SITE},keep=1", visual=VISUAL):
        assert torch.equal(model(ids()).last_hidden_state, plain)
    with sparsight.prune(model, f"fastv:layer={SITE},keep=0.5", visual=VISUAL) as handle:
        out = model(ids(), use_cache=True)
        stay = handle.left[0][0]
        step = model(torch.tensor([[7]]), past_key_values=out.past_key_values).last_hidden_state
        whole = model(torch.cat([ids(), torch.tensor([[7]])], dim=1)).last_hidden_state
    assert len(stay) == LENGTH - 6

    def drop(_module, args, kwargs):
        return (args[0][:, stay], args[1][:, stay]), {
            **kwargs,
            "position_embeddings": tuple(part[:, stay] for part in kwargs["position_embeddings"]),
        }

    def follow(_module, args, kwargs):
        return (args[0], args[1][:, stay]), {
            **kwargs,
            "position_embeddings": tuple(part[:, stay] for part in kwargs["position_embeddings"]),
        }

    hooks = [model.layers[i].register_forward_pre_hook(drop if i == SITE else follow, with_kwargs=True) for i in range(SITE, 3)]
    torch.testing.assert_close(out.last_hidden_state, model(ids()).last_hidden_state)
    for hook in hooks:
        hook.remove()
    assert whole.shape[1] == step.shape[1] + out.last_hidden_state.shape[1]


@pytest.mark.parametrize(
    ("does", "layer", "words"),
    [
        ("adds", 1, "changes the hidden states between layers 1 and 2"),
        ("hides", 1, "hides more than causality"),
        ("pairs", 1, r"bias \[4, 2, 20\] for 20 tokens"),
        ("keeps", 2, "shelf holds states of all tokens"),
    ],
)
@torch.no_grad()
def test_what_is_not_understood_is_refused(does, layer, words):
    model = Unseen(does)
    plain = model(ids()).last_hidden_state
    with sparsight.prune(model, f"fastv:layer={layer},keep=0.5", visual=VISUAL) as handle:
        with pytest.raises(PruneError, match=words):
            model(ids())
        assert handle.counts == []
    assert torch.equal(model(ids()).last_hidden_state, plain)


@pytest.mark.parametrize(
    ("kind", "words"),
    [(OwnAttention, "no attention that asks transformers' attention interface"), (Alibi, "is not given RoPE")],
)
def test_attention_of_another_kind_is_refused_when_pruning_begins(kind, words):
    model = Unseen()
    for index, layer in enumerate(model.layers):
        layer.self_attn = kind(model.config, index)
    with pytest.raises(PruneError, match=words):
        sparsight.prune(model, "fastv:layer=1,keep=0.5", visual=VISUAL)
