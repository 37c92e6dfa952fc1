"""What a model says about a folder of images: highest logits and pooled features, from its ordinary forward."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.images import Batches, Folder
from ..runs.intervals import Interval, paired, share

TOP = 5


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers on N readable images.

    index: their places in the folder's list; top [N, 5]: classes by falling logit, [N, 0] without a classifier; pooled [N, C]:
    features before the classifier; skipped: (name, reason) of unreadable images.
    """

    index: list[int]
    top: Tensor
    pooled: Tensor
    skipped: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.index)

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        from safetensors.torch import save

        note = {"index": json.dumps(self.index), "skipped": json.dumps(self.skipped)}
        path.write_bytes(save({"top": self.top, "pooled": self.pooled}, metadata=note))

    @staticmethod
    def load(path: Path) -> Answers:
        """Read what `save` wrote."""
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            note = file.metadata()
            skipped = [(name, reason) for name, reason in json.loads(note["skipped"])]
            return Answers(json.loads(note["index"]), file.get_tensor("top"), file.get_tensor("pooled"), skipped)


class Reader:
    """Runs a model as its user does and returns (logits or None, pooled features [B, C]).

    What enters the classifier is what timm calls pre-logits; models without a classifier give their own pooled output.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.head = classifier(model)
        self.entered: list[Tensor] = []

    @property
    def outputs(self) -> int:
        """Number of logits, 0 without a classifier."""
        return int(getattr(self.head, "out_features", 0))

    def __call__(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        self.entered.clear()
        hook = self.head.register_forward_pre_hook(lambda _m, given: self.entered.append(given[0])) if self.head else None
        try:
            result: Any = self.model(images)
        finally:
            if hook is not None:
                hook.remove()
        logits = None if self.head is None else getattr(result, "logits", result)
        pooled = self.entered[0] if self.entered else own_pooling(result)
        return logits, (pooled.mean(dim=1) if pooled.dim() == 3 else pooled).float()


def classifier(model: nn.Module) -> nn.Module | None:
    """The module that makes the logits (the first one if there are two), None if the model ends in features."""
    get = getattr(model, "get_classifier", None)
    found = (
        get() if callable(get) else next((getattr(model, n) for n in ("classifier", "cls_classifier") if hasattr(model, n)), None)
    )
    found = found[0] if isinstance(found, (tuple, list, nn.ModuleList)) else found
    return found if isinstance(found, nn.Module) and not isinstance(found, nn.Identity) else None


def own_pooling(result: Any) -> Tensor:
    """Pooled features of a model without a classifier: what it calls so, else the mean of its tokens."""
    if isinstance(result, Tensor):
        return result
    names = ("image_embeds", "pooler_output", "last_hidden_state")
    pooled: Tensor = next(value for name in names if isinstance(value := getattr(result, name, None), Tensor))
    return pooled


def collect(reader: Reader, batches: Batches, like: Tensor, step: Callable[[int], None]) -> Answers:
    """Run the model over all batches, on the device and in the precision of `like`; `step` hears how many images were run."""
    index: list[int] = []
    tops: list[Tensor] = []
    features: list[Tensor] = []
    for images, places in batches:
        logits, pooled = reader(images.to(like))
        top = pooled.new_zeros(len(places), 0) if logits is None else ranked(logits)["top"]
        index += places
        tops.append(top.long().cpu())
        features.append(pooled.cpu())
        step(len(places))
    skipped = [(name_of(batches.folder, item.path), item.reason) for item in batches.skipped]
    if not index:
        return Answers([], torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, 0), skipped)
    return Answers(index, torch.cat(tops), torch.cat(features), skipped)


def ranked(logits: Tensor, pairwise: bool = False) -> dict[str, Tensor]:
    """Classes by falling logit, top [n, 5], and the probability [n] of the first: its softmax, or its sigmoid if `pairwise`."""
    logits = logits.float()
    best = logits.topk(min(TOP, logits.shape[-1]))
    chance = best.values[:, 0].sigmoid() if pairwise else (best.values[:, 0] - logits.logsumexp(dim=-1)).exp()
    return {"top": best.indices.int(), "probability": chance}


def name_of(folder: Folder, path: Path) -> str:
    """The image's name below the folder."""
    return path.relative_to(folder.path).as_posix() if path.is_relative_to(folder.path) else path.name


def judge(answers: Answers, reference: Answers, labels: list[int] | None) -> dict[str, Any]:
    """Per-image outcomes and their summary, as the fields that `Row` and `Outcomes` have."""
    cosine = torch.nn.functional.cosine_similarity(answers.pooled.double(), reference.pooled.double(), dim=1)
    outcomes: dict[str, Any] = {"cosine": [round(value, 6) for value in cosine.tolist()]}
    found: dict[str, Any] = {"cosine": float(cosine.mean()), "outcomes": outcomes}
    found |= dict.fromkeys(("top1", "top5", "top1_change", "top5_change", "agreement"))
    if answers.top.shape[1]:
        outcomes["predicted"] = answers.top[:, 0].tolist()
        outcomes["agree"] = (answers.top[:, 0] == reference.top[:, 0]).int().tolist()
        found["agreement"] = share(outcomes["agree"])
    if labels is not None and answers.top.shape[1]:
        truth = torch.tensor([labels[place] for place in answers.index])
        for name, depth in (("top1", 1), ("top5", TOP)):
            right, before = hits(answers.top, truth, depth), hits(reference.top, truth, depth)
            outcomes[name] = right
            found[name] = sum(right) / len(right)
            found[f"{name}_change"] = change(right, before, answers is reference)
    return found


def hits(top: Tensor, truth: Tensor, depth: int) -> list[int]:
    """1 where the true class [N] is among the first `depth` of top [N, 5], else 0."""
    right: list[int] = (top[:, :depth] == truth.unsqueeze(1)).any(dim=1).int().tolist()
    return right


def change(after: list[int], before: list[int], same: bool) -> Interval | None:
    """The paired difference, none of the unpruned model to itself."""
    return None if same else paired(after, before)
