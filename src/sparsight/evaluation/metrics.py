"""Metrics of LVLM pruning studies: effective rank, attention entropy, CHAIR, POPE, MME. Shares are between 0 and 1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import PruneError
from ..ops import rank
from .captions import Chair, chair

__all__ = [
    "MME", "Binary", "Chair", "attention_entropy", "calibration", "chair", "effective_rank", "mean_f1", "mme", "pope",
]  # fmt: skip

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
"""The tasks of MME's two halves."""


def effective_rank(x: Tensor) -> Tensor:
    """exp of the entropy of x's singular values over their sum, in [1, min(N, D)]; neither centred nor normalised.
    x [N, D] -> scalar, [B, N, D] -> [B]; float64. Equation 7 of arXiv:2603.01236."""
    if x.dim() < 2 or not x.numel():
        raise PruneError(f"effective_rank needs features [N, D] or [B, N, D], got {list(x.shape)}")
    return rank.effective_rank(x)


def attention_entropy(attention: Tensor) -> Tensor:
    """Entropy (nats) of the class token's attention over the patches, renormalised without the class token; at most ln N.
    attention [N] -> scalar, [B, N] -> [B], [B, H, N] (mean over heads first) -> [B]; float64."""
    if attention.dim() == 3:
        attention = attention.mean(dim=1)
    if not 1 <= attention.dim() <= 2 or not attention.numel() or bool((attention < 0).any()):
        raise PruneError(
            f"attention_entropy needs attention [N], [B, N] or [B, H, N], none of it negative, got {list(attention.shape)}"
        )
    return rank.attention_entropy(attention)


def calibration(samples: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Averages that `agile` and `mix` compare an image with, over samples of (features [B, N, D], class attention [B, H, N]).
    -> {"erank_avg": ..., "entropy_avg": ...}, options for `prune(model, "agile", **averages)`."""
    ranks, entropies = [], []
    for features, attention in samples:
        ranks.append(effective_rank(features).reshape(-1).cpu())
        entropies.append(attention_entropy(attention).reshape(-1).cpu())
    if not ranks:
        raise PruneError("calibration got no samples; give at least one pair of features and attention")
    return {"erank_avg": float(torch.cat(ranks).mean()), "entropy_avg": float(torch.cat(entropies).mean())}


@dataclass(frozen=True)
class Binary:
    """Outcome of yes/no questions, "yes" being positive; shares with nothing to divide by are 0."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @property
    def accuracy(self) -> float:
        return share(self.true_positive + self.true_negative, self.total)

    @property
    def precision(self) -> float:
        return share(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        return share(self.true_positive, self.true_positive + self.false_negative)

    @property
    def f1(self) -> float:
        return share(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def yes_ratio(self) -> float:
        """Share of answers that are yes."""
        return share(self.true_positive + self.false_positive, self.total)

    @property
    def total(self) -> int:
        return self.true_positive + self.false_positive + self.true_negative + self.false_negative

    def __str__(self) -> str:
        names = ("f1", "accuracy", "precision", "recall", "yes_ratio")
        return ", ".join(f"{name} {100 * getattr(self, name):.2f}" for name in names) + f" ({self.total} questions)"


def pope(answers: Sequence[str], labels: Sequence[str | bool]) -> Binary:
    """POPE's score of answers, in the order of the labels ("yes" or "no"). Li et al., EMNLP 2023, arXiv:2305.10355.

    An answer is no if its first sentence has the word No, no or not, commas aside; else yes, so "I cannot tell" is yes.
    Papers report the plain mean of F1 over the splits random, popular and adversarial: see `mean_f1`.
    """
    if len(answers) != len(labels):
        raise PruneError(f"{len(answers)} answers for {len(labels)} labels; give one answer per question, in the same order")
    pairs = [(not says_no(answer), as_bool(label)) for answer, label in zip(answers, labels, strict=True)]
    return Binary(*(pairs.count(pair) for pair in ((True, True), (True, False), (False, False), (False, True))))


def mean_f1(splits: Mapping[str, Binary]) -> float:
    """Unweighted mean of F1 over the splits."""
    if not splits:
        raise PruneError("mean_f1 got no splits; give for example random, popular and adversarial")
    return sum(result.f1 for result in splits.values()) / len(splits)


def says_no(answer: str) -> bool:
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return any(word in words for word in ("No", "not", "no"))


def as_bool(label: str | bool) -> bool:
    text = {True: "yes", False: "no"}.get(label, label) if isinstance(label, bool) else label.strip().lower()
    if text not in ("yes", "no"):
        raise PruneError(f"label {label!r} is neither yes nor no")
    return text == "yes"


@dataclass(frozen=True)
class MME:
    """Scores of MME tasks, each 100 * (accuracy + accuracy+), at most 200, and their sums over the tasks that are there."""

    accuracy: dict[str, float]
    accuracy_plus: dict[str, float]

    @property
    def scores(self) -> dict[str, float]:
        return {task: 100 * (value + self.accuracy_plus[task]) for task, value in self.accuracy.items()}

    @property
    def perception(self) -> float:
        """Sum over the ten perception tasks, at most 2000."""
        return sum(value for task, value in self.scores.items() if task in PERCEPTION)

    @property
    def cognition(self) -> float:
        """Sum over the four cognition tasks, at most 800."""
        return sum(value for task, value in self.scores.items() if task in COGNITION)

    @property
    def total(self) -> float:
        return self.perception + self.cognition

    def __str__(self) -> str:
        tasks = ", ".join(f"{task} {value:.2f}" for task, value in self.scores.items())
        return f"MME {self.total:.2f} = perception {self.perception:.2f} + cognition {self.cognition:.2f} ({tasks})"


def mme(rows: Mapping[str, Sequence[tuple[Any, str, str]]]) -> MME:
    """MME's scores of rows (image, answer, label) per task, the two questions of an image one after the other.

    Lower-cased, an answer is exactly yes or no, or has yes or no in its first four letters, or else is wrong. accuracy = right
    questions / questions, accuracy+ = images with both right / images. Fu et al., arXiv:2306.13394.
    """
    unknown = [task for task in rows if task not in PERCEPTION + COGNITION]
    if unknown:
        raise PruneError(f"no MME task {', '.join(unknown)}; the tasks are {', '.join(PERCEPTION + COGNITION)}")
    accuracy, plus = {}, {}
    for task, entries in rows.items():
        pairs = list(zip(entries[::2], entries[1::2]))
        if not entries or len(entries) % 2 or any(a[0] != b[0] for a, b in pairs):
            raise PruneError(f"MME task {task}: give two questions per image, one after the other ({len(entries)} rows)")
        right = [[yes_or_no(answer) == ("yes" if as_bool(label) else "no") for _, answer, label in pair] for pair in pairs]
        accuracy[task] = share(sum(map(sum, right)), len(entries))
        plus[task] = share(sum(map(all, right)), len(right))
    return MME(accuracy, plus)


def yes_or_no(answer: str) -> str:
    text = answer.lower()
    if text in ("yes", "no"):
        return text
    return next((word for word in ("yes", "no") if word in text[:4]), "other")


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
