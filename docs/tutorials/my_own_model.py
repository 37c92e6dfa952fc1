# %% [markdown]
# # My own model
#
# Code that no family knows: call `sparsight.reduce` where tokens may leave, on your own tensors. Here it is a small Vision Transformer in
# forty lines.

# %%
import torch
from torch import Tensor, nn

import sparsight


class Block(nn.Module):
    """Attention and MLP, each behind a norm; hands out q and k."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, n, c))
        return x + self.mlp(self.norm2(x)), q, k


class OwnViT(nn.Module):
    """Blocks over patches with a class token in front; `recipes` says where tokens leave."""

    def __init__(self, width: int = 64, depth: int = 6, heads: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, classes)
        self.recipes: dict[int, str] = {}

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        for index, block in enumerate(self.blocks):
            x, q, k = block(x)
            if index in self.recipes:
                reduced = sparsight.reduce(self.recipes[index], x=x[:, 1:], q=q, k=k)  # the class token stays out of it
                x = torch.cat([x[:, :1], reduced.x], dim=1)
        return self.head(x[:, 0])


torch.manual_seed(0)
model, images = OwnViT().eval(), torch.randn(2, 3, 64, 64)
print(model(images).shape)

# %% [markdown]
# ## Tokens leave
#
# Any method that works from the tensors you have. `reduce` also returns the Plan: which tokens survive, and where the others went.

# %%
for recipe in ("evit:keep=0.5", "tome:remove=20", "renyi:keep=0.5", "compose:score=col_ln,select=diverse,keep=0.5"):
    model.recipes = {2: recipe}
    print(f"{recipe:46} {model(images)[0].argmax().item()}")

out = sparsight.reduce("evit:keep=0.5", x=torch.randn(1, 64, 64), class_attn=torch.rand(1, 4, 64))
print(tuple(out.x.shape), out.plan.keep[0, :8].tolist())

# %% [markdown]
# ## A score of your own
#
# A function whose parameters are named after the signals that it needs; from then on `compose` has it, on every family.


# %%
@sparsight.register_score("key_length")
def key_length(k: Tensor, prefix: int) -> Tensor:
    """Mean over heads of the keys' norms. k [B, H, P+N, D] -> [B, N]."""
    return k[:, :, prefix:].norm(dim=-1).mean(dim=1)


model.recipes = {2: "compose:score=key_length,keep=0.5"}
print(tuple(model(images).shape))
