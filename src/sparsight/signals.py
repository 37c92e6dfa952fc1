"""The vocabulary of signals: what they are, what they follow from, and whether raw tensors fit together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .errors import PruneError
from .ops import attention
from .ops.attention_torch import exact

SIGNALS: dict[str, str] = {
    "x": "[B, N, C] tokens to be reduced, prefix excluded",
    "q": "[B, H, P+N, D] queries of the scoring attention, prefix first",
    "k": "[B, H, P+N, D] keys",
    "v": "[B, H, P+N, D] values",
    "prefix": "P, the number of prefix tokens in q, k, v (derived: k.shape[2] - N)",
    "scale": "factor of the attention logits (derived: D ** -0.5)",
    "class_attn": "[B, H, N] class token's softmax row, patch columns (derived from q, k)",
    "shallow_q": "[B, H, P+N, D] queries of an earlier block, which the recipe names (its `shallow`), prefix first",
    "shallow_k": "[B, H, P+N, D] keys of that block",
    "shallow_class_attn": "[B, H, N] class token's softmax row there, patch columns (derived from shallow_q, shallow_k)",
    "shallow_token_weight": "[B, N] attention that each token received there, as token_weight (derived from shallow_q, shallow_k)",
    "frames": "T, the number of frames that the tokens are of, one after the other (derived: 1)",
    "depth": "share of the encoder's blocks that are in front of the site, 0 to 1 (derived: 0)",
    "feats": "[B, N, D'] features that similarity compares (derived: x)",
    "class_token": "[B, 1, D'] the class token's feature, from where feats comes",
    "size": "[B, N, 1] how many patches each token stands for (derived: ones)",
    "position": "[B, N] place of each token on the grid, -1 for none (derived: 0..N-1)",
    "grid": "(h, w) patch grid",
    "attn": "[B, H, P+N, P+N] the whole softmax matrix (never derived; stands in for q and k where somebody has it)",
    "text": "[B, T, C] text embeddings, to compare with x or feats",
    "text_k": "[B, H, T, D] keys of the text tokens, of the attention that k is of",
    "text_attn": "[B, T, N] attention of the chosen text queries over the tokens",
    "attns": "attention matrices [B, H, P+N, P+N] of all blocks up to the site, the first block's first: a list, or stacked",
    "moves": "for each of attns but the last, the Plan of the tokens that left behind it, None for none (derived: none left)",
    "token_weight": "[B, N] attention that each token received, summed over heads and queries (derived from q, k)",
    "first": "[B] index of the first centre, where authors draw it at random (derived: 0)",
    "noise": "[B, M] random numbers that break ties in clustering, as authors' code draws them (derived: zeros)",
    "training": "whether the model trains (derived: false)",
    "valid": "[B, N] bool, which tokens are real where images have different counts, padding last (derived: None, all of them)",
    "weights": "learned tensors of the method by name (shapes: see the method; in a model from prune's weights=)",
}
"""The fixed vocabulary of signals. Families may offer them, callers of `reduce` may pass them."""

SHALLOW = "shallow_"
"""Prefix of the signals of an earlier block; without it they are named as those of the scoring attention."""

FROM_HEADS = ("class_attn", "token_weight")
"""What follows from q and k."""

AS_GIVEN = ("q", "k", "v", "shallow_q", "shallow_k", "text_k")
"""In the model's own precision: statistics of attention convert as they go, and kernels multiply half precision without loss. A step
that takes them otherwise converts by itself."""

USUAL: dict[str, Callable[[Tensor], Any]] = {
    "feats": exact,
    "training": lambda x: False,
    "depth": lambda x: 0.0,
    "frames": lambda x: 1,
    **dict.fromkeys(("size", "moves", "valid", "attended"), lambda x: None),
    "first": lambda x: torch.zeros(x.shape[:1], dtype=torch.int64, device=x.device),
    "position": lambda x: torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1),
    "noise": lambda x: torch.zeros(x.shape[:2], dtype=torch.float32, device=x.device),
}
"""What follows from the tokens x alone."""

INTERNAL = ("s", "plan", "count", "attended")


def heads_of(names: Iterable[str]) -> set[str]:
    """Of q, k, v and the shallow q, k those that the named signals are, or follow from."""
    names = set(names)
    for ahead in ("", SHALLOW):
        if names & {ahead + name for name in FROM_HEADS}:
            names |= {f"{ahead}q", f"{ahead}k"}
    return names & {"q", "k", "v", f"{SHALLOW}q", f"{SHALLOW}k"}


def shallow_signals(given: dict[str, Any]) -> dict[str, Any]:
    """The signals of the earlier block under the names of those of the scoring attention."""
    own = {name.removeprefix(SHALLOW): value for name, value in given.items() if name.startswith(SHALLOW)}
    return {**own, **{name: given[name] for name in ("x", "prefix", "scale") if name in given}}


def derivable(name: str, given: dict[str, Any]) -> bool:
    """Whether the signal is given or follows from what is given."""
    if name in given or name in USUAL:
        return True
    if name.startswith(SHALLOW):
        return derivable(name.removeprefix(SHALLOW), shallow_signals(given))
    if name in ("class_attn", "token_weight"):
        return ("attn" in given or ("q" in given and "k" in given)) and (prefix_of(given) > 0 or name == "token_weight")
    if name == "attns":
        return "attn" in given
    if name == "prefix":
        return any(source in given for source in ("q", "k", "v", "attn"))
    if name == "scale":
        return "k" in given or "attn" in given
    if name in ("q", "k"):
        return "attn" in given
    return name == "grid" and square(given["x"].shape[1]) is not None


def derive(name: str, given: dict[str, Any]) -> Any:
    """The signal itself, computed from its sources if it is not given; floating point in float32 or better, but for `AS_GIVEN`."""
    if name in given:
        value = given[name]
        if name == "weights":
            return {key: weight.to(exact(given["x"])) for key, weight in value.items()}
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return exact(value) if floating and name not in AS_GIVEN else value
    x = given["x"]
    if name in USUAL:
        return USUAL[name](x)
    if name.startswith(SHALLOW):
        return derive(name.removeprefix(SHALLOW), shallow_signals(given))
    if name == "prefix":
        return prefix_of(given)
    if name == "attns":
        return [exact(given["attn"])]
    if name == "token_weight":
        sources = {source: derive(source, given) for source in ("q", "k", "prefix", "scale")}
        return attention.column_norm(**sources, order=1.0, heads="joint", rows="all", diagonal=True)
    if "attn" in given:
        return from_matrix(name, exact(given["attn"]), prefix_of(given))
    if name == "scale":
        return given["k"].shape[-1] ** -0.5
    if name == "grid":
        return square(x.shape[1])
    q, k, prefix, scale = (derive(source, given) for source in ("q", "k", "prefix", "scale"))
    return attention.class_row(q, k, prefix, scale, valid=given.get("valid"), attended=given.get("attended"))


def from_matrix(name: str, attn: Tensor, prefix: int) -> Any:
    """What a whole attention matrix says in place of q, k and scale: its logarithm as queries and unit vectors as keys,
    whose softmax is the matrix again, so that every statistic has one definition."""
    if name == "class_attn":
        return attn[:, :, 0, prefix:]
    if name == "q":
        return attn.clamp(min=torch.finfo(attn.dtype).tiny).log()
    if name == "k":
        return torch.eye(attn.shape[-1], dtype=attn.dtype, device=attn.device).expand_as(attn)
    return 1.0


def prefix_of(given: dict[str, Any]) -> int:
    """Number of prefix tokens: given, or what the attention's sequence has more than x."""
    if "prefix" in given:
        return int(given["prefix"])
    sequence = next((given[name].shape[2] for name in ("k", "q", "v", "attn") if name in given), given["x"].shape[1])
    return int(sequence - given["x"].shape[1])


def square(n: int) -> tuple[int, int] | None:
    side = round(n**0.5)
    return (side, side) if side * side == n else None


def as_usual(given: dict[str, Any]) -> dict[str, Any]:
    """The signals in their usual shapes. One head is added where the caller has averaged over heads (class_attn [B, N], q, k, v
    [B, P+N, D]); token_weight may be [B, N, 1], first a number; a stack of matrices [L, B, H, P+N, P+N] or, of one image, [L, H, P+N, P+N], may be given as attn for attns."""
    heads = {"class_attn": 2, "q": 3, "k": 3, "v": 3}
    heads |= {SHALLOW + name: dims for name, dims in heads.items()}
    given = dict(given)
    stack = next(
        (given.pop(name) for name in ("attns", "attn") if isinstance(given.get(name), Tensor) and stacked(given, name)), None
    )
    if stack is not None:
        given["attns"] = stack.unsqueeze(1) if stack.dim() == 4 else stack
    for name, value in given.items():
        if isinstance(value, Tensor) and value.dim() == heads.get(name):
            given[name] = value.unsqueeze(1)
        elif name == "token_weight" and isinstance(value, Tensor) and value.dim() == 3:
            given[name] = value.squeeze(-1)
        elif name == "first" and isinstance(given.get("x"), Tensor):
            given[name] = torch.as_tensor(value, dtype=torch.int64).to(given["x"].device).expand(given["x"].shape[:1])
    return given


def stacked(given: dict[str, Any], name: str) -> bool:
    """Whether the tensor is a stack of attention matrices of several blocks: [L, B, H, ...], or [L, H, ...] of one image."""
    alone = isinstance(given.get("x"), Tensor) and given["x"].shape[0] == 1
    return given[name].dim() == 5 or (given[name].dim() == 4 and alone and (name == "attns" or given[name].shape[0] > 1))


def check_shapes(signals: dict[str, Any]) -> None:
    """Raise a PruneError that shows both sides where the raw tensors do not fit together."""
    unknown = [name for name in signals if name not in SIGNALS]
    if unknown:
        raise PruneError(f"no signal {', '.join(unknown)}; the signals are {', '.join(SIGNALS)}")
    x = signals.get("x")
    if not isinstance(x, Tensor) or x.dim() != 3:
        raise PruneError(f"x must be a tensor [B, N, C], got {shape_of(x)}")
    b, n = x.shape[:2]
    for name in ("q", "k", "v", "attn", "shallow_q", "shallow_k"):
        if name in signals and (not isinstance(signals[name], Tensor) or signals[name].dim() != 4):
            raise PruneError(f"{name} must be {SIGNALS[name]}, got {shape_of(signals[name])}")
    frames = signals.get("frames", 1)
    if not isinstance(frames, int) or frames < 1 or n % frames:
        raise PruneError(f"frames must be {SIGNALS['frames']}: {n} tokens are not {frames} frames of equal size")
    prefix = prefix_of(signals)
    expected: dict[str, tuple[int | None, ...]] = {
        **dict.fromkeys("qkv", (b, None, prefix + n, None)),
        **{name: (b, None, max(n, signals[name].shape[2]), None) for name in ("shallow_q", "shallow_k") if name in signals},
        "shallow_class_attn": (b, None, n),
        "shallow_token_weight": (b, n),
        "attn": (b, None, prefix + n, prefix + n),
        "class_attn": (b, None, n),
        "feats": (b, n, None),
        "class_token": (b, 1, None),
        "size": (b, n, 1),
        "position": (b, n),
        "text_attn": (b, None, n),
        "text_k": (b, None, None, None),
        "token_weight": (b, n),
        "noise": (b, None),
        "valid": (b, n),
    }
    for name, shape in expected.items():
        value = signals.get(name)
        if value is None:
            continue
        fits = isinstance(value, Tensor) and value.dim() == len(shape)
        if prefix < 0 or not fits or any(want not in (None, got) for want, got in zip(shape, value.shape, strict=True)):
            raise PruneError(f"{name} must be {SIGNALS[name]}: x is {shape_of(x)}, prefix {prefix}, {name} is {shape_of(value)}")


def shape_of(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
