"""Rows of a vision encoder: which of them make a token of the language model, and how they attend to each other.

Read with transformers 5.23. Attention is heard through transformers' attention interface (`attention_listener`). Which rows make a token is asked of the model itself: what comes behind the last block is recorded by autograd, and each bit of a token's
number is asked for by one gradient, so that 2 log2(n) passes through the projector tell the token of every row (`row_tokens`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from .attention_listener import Attended, AttentionListener, attention_in
from .call_state import calls


@dataclass(eq=False)
class EncoderCall:
    """An encoder that runs while somebody listens: to some attention modules, and to the output of the block that features are made of.

    block  None if nobody asks which rows make a token.
    heard  each module's calls.      hidden  that output [B, S, C] or [S, C], which the features' gradients reach.
    own    autograd records for the user as well.
    """

    owner: Any
    block: nn.Module | None
    heard: dict[nn.Module, list[Attended]]
    hidden: Tensor | None = None
    own: bool = False

    def note(self, module: nn.Module, one: Attended) -> None:
        """An attention module has been called: keep it with one key and value for every head."""
        groups = one.q.shape[1] // one.k.shape[1]
        k, v = (part if groups == 1 else part.repeat_interleave(groups, dim=1) for part in (one.k, one.v))
        self.heard[module].append(replace(one, k=k, v=v))


class EncoderListener(AttentionListener):
    """Listens in one model until `remove`: to attention modules, by what their signals' names begin with ("" or "shallow_"), and by a hook to
    the block that features are made of."""

    def __init__(self, modules: dict[str, Any], block: nn.Module) -> None:
        super().__init__(modules.values())
        self.named = modules
        self.block = block
        self.hook: Any = None

    def install(self) -> EncoderListener:
        super().install()
        self.hook = self.block.register_forward_hook(begin_gradients)
        return self

    def remove(self) -> None:
        super().remove()
        self.hook.remove()


def begin_gradients(module: nn.Module, _args: Any, output: Any) -> Any:
    """Hook on the block: from its output on autograd records, whoever else asks for it."""
    call = next((one for one in calls() if isinstance(one, EncoderCall) and one.block is module), None)
    if call is None:
        return None
    hidden = output[0] if isinstance(output, tuple) else output
    if hidden.requires_grad and torch.is_grad_enabled():
        call.hidden, call.own = hidden, True
        return None
    call.own = torch.is_grad_enabled()
    call.hidden = hidden.detach().requires_grad_()
    torch.set_grad_enabled(True)  # until the context around the encoder ends
    made = call.hidden.clone()
    return (made, *output[1:]) if isinstance(output, tuple) else made


def blocks_in(encoder: nn.Module) -> list[nn.Module]:
    """The blocks of an encoder: its longest list of modules with such attention; empty if there is none."""
    lists = [list(part) for part in encoder.modules() if isinstance(part, nn.ModuleList) and len(part)]
    found = [blocks for blocks in lists if attention_in(blocks[0]) is not None]
    return max(found, key=len, default=[])


# ---- which rows make a token ------------------------------------------------------------------------------------------


def row_tokens(features: Tensor, hidden: Tensor, kind: str) -> Tensor:
    """The token [R] that each row of the encoder is part of, -1 for rows of none. features [n, D] of all images, made of hidden [..., C]
    with R rows. A PruneError if a row goes into several tokens (resamplers, necks), or if gradients do not reach the rows."""
    n = features.shape[0]
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(0)).to(features)
    number = torch.arange(n, device=features.device)
    token = torch.zeros(hidden.shape[:-1].numel(), dtype=torch.long, device=features.device)
    several, reached = torch.zeros_like(token, dtype=torch.bool), torch.zeros_like(token, dtype=torch.bool)
    for bit in range(max(1, (n - 1).bit_length())):
        inside = (number >> bit & 1).bool()
        ones, zeros = (touched(features, hidden, weights * chosen.unsqueeze(1)) for chosen in (inside, ~inside))
        several |= ones & zeros
        reached |= ones | zeros
        token += ones.long() << bit
    if bool(several.any()):
        raise PruneError(
            f"in {kind} a row of the vision encoder goes into several tokens (a resampler, or a neck of convolutions), so no attention "
            "belongs to one of them; use a method that looks at tokens alone: divprune, fps, random"
        )
    if not bool(reached.any()):
        raise PruneError(f"the tokens of {kind} are not made of the block of its vision encoder where pruning listens")
    return token.masked_fill(~reached, -1)


def touched(features: Tensor, hidden: Tensor, weights: Tensor) -> Tensor:
    """Which rows [R] of hidden the weighted features depend on."""
    if not features.requires_grad:
        return torch.zeros(hidden.shape[:-1].numel(), dtype=torch.bool, device=features.device)
    (gradient,) = torch.autograd.grad(features, hidden, weights, retain_graph=True, allow_unused=True)
    gradient = torch.zeros_like(hidden) if gradient is None else gradient
    return gradient.reshape(-1, hidden.shape[-1]).ne(0).any(dim=1)


# ---- how rows attend --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Domain:
    """Rows that attend to each other: their numbers [m] among all rows, factor of the logits."""

    rows: Tensor
    scale: float


def domains(heard: dict[str, list[Attended]], token: Tensor, kind: str) -> list[Domain]:
    """The domains that have tokens, in the order of the rows. A call's batch element is one, or each block of its mask."""
    found = [domains_of(calls, token, kind) for calls in heard.values()]
    if any([one.rows.tolist() for one in other] != [one.rows.tolist() for one in found[0]] for other in found[1:]):
        raise PruneError(
            f"in {kind} the rows of the earlier block attend in other groups than those of the scored one; leave the earlier one out"
        )
    return found[0]


def domains_of(heard: list[Attended], token: Tensor, kind: str) -> list[Domain]:
    """Those of one attention module."""
    count = sum(call.q.shape[0] * call.q.shape[2] for call in heard)
    if count != token.shape[0]:
        raise PruneError(
            f"a block of the vision encoder of {kind} has {count} rows where pruning listens, but its tokens are made of {token.shape[0]}; "
            "use a method that looks at tokens alone, or at the last block: divprune, fps, col_ln"
        )
    found, first = [], 0
    for call in heard:
        batch, _, length, _ = call.q.shape
        for element in range(batch):
            rows = torch.arange(first, first + length, device=token.device)
            for members in blocks_of(allowed(call.mask, element, length), token[rows] >= 0):
                found.append(Domain(rows if members is None else rows[members], call.scale))
            first += length
    return found


def allowed(mask: Tensor | None, element: int, length: int) -> Tensor | None:
    """Which keys each query of a batch element may see, bool [S, S]; None where there is no mask."""
    if mask is None or mask.dim() != 4:
        return None if mask is None else mask[min(element, mask.shape[0] - 1)].bool().expand(length, length)
    one = mask[min(element, mask.shape[0] - 1), 0, -length:, -length:]
    return (one if one.dtype == torch.bool else one > torch.finfo(one.dtype).min / 2).expand(length, length)


def blocks_of(seen: Tensor | None, useful: Tensor) -> list[Tensor | None]:
    """Members [m] of each set of rows that see the same keys, as far as tokens are among them; [None] for all rows."""
    if seen is None or bool(seen.all()):
        return [None] if bool(useful.any()) else []
    marks = torch.randint(2**40, (seen.shape[1],), generator=torch.Generator().manual_seed(0)).to(seen.device)
    keys = (seen.long() * marks).sum(dim=1)
    found = []
    for key in sorted(set(keys[useful].tolist())):
        row = (keys == key).nonzero()[0, 0]
        found.append(seen[row].nonzero().squeeze(1))
    found.sort(key=lambda members: int(members[0]))
    return [*found]


@dataclass(frozen=True, eq=False)
class TileRows:
    """Rows of the encoder that a tile's tokens are made of: rows [P + n * each] by rising token, behind a prefix of those that are of none;
    columns [n] of the tokens among the image's; factor of the logits. They go by the sizes of the images alone."""

    columns: Tensor
    rows: Tensor
    prefix: int
    each: int
    scale: float


def token_order(token: Tensor, class_last: bool = False) -> tuple[Tensor, int, int] | None:
    """Rows of a domain by rising token, behind those that are of no token, how many these are, and how many rows make a token; token [m]:
    that of each row, -1 for none. None: rows are not shared out evenly."""
    order, prefix = token.argsort(stable=True), int((token < 0).sum())
    order[:prefix] = order[:prefix].flip(0) if class_last else order[:prefix]
    counts = torch.unique_consecutive(token[order[prefix:]], return_counts=True)[1].tolist()
    return (order, prefix, counts[0]) if len(set(counts)) == 1 else None


def token_signals(heads: dict[str, Tensor], token: Tensor, scale: float) -> dict[str, Any] | None:
    """`signals_of` heads [H, m, D] whose rows are of these tokens [m]; None: rows are not shared out evenly."""
    found = token_order(token)
    return None if found is None else signals_of(heads, TileRows(token, *found, scale))


def signals_of(heads: dict[str, Tensor], tile: TileRows) -> dict[str, Any]:
    """Signals of a tile's tokens from heads [H, R, D].

    They begin with the rows that are of no token, as a prefix: these take part in attention, and the class token is the first of them (or the
    last, `class_last`). Where a token is made of several rows, heads are means over them, and those of the rows themselves are under `patches`.
    """
    ordered = {name: value[:, tile.rows] for name, value in heads.items()}
    shared: dict[str, Any] = {"prefix": tile.prefix, "scale": tile.scale}
    if tile.each == 1:
        return {**ordered, **shared}
    return {
        **{name: averaged(value, tile.prefix, tile.each) for name, value in ordered.items()},
        **shared,
        "patches": {**ordered, **shared},
    }


def whole(heard: dict[str, list[Attended]]) -> dict[str, Tensor]:
    """Queries, keys and values of all rows [H, R, D], in the order of the calls and their batch elements."""
    return {
        f"{ahead}{name}": torch.cat([getattr(call, name).transpose(0, 1).flatten(1, 2) for call in calls], dim=1)
        for ahead, calls in heard.items()
        for name in ("q", "k", "v")
    }


def averaged(value: Tensor, prefix: int, each: int) -> Tensor:
    """[H, P + n * each, D] -> [H, P + n, D]: means over the rows of each token, behind the prefix."""
    h, _, d = value.shape
    return torch.cat([value[:, :prefix], value[:, prefix:].reshape(h, -1, each, d).mean(dim=2)], dim=1)
