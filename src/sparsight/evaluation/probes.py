"""Feature backbones as classifiers: nearest neighbours and a linear probe on features of a training set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..load.answers import TOP, ranked
from ..runs.store import Chunk

TEMPERATURE = 0.07
QUERIES_AT_ONCE = 1024


def neighbours(train: Tensor, labels: Tensor, test: Tensor, classes: int, k: int = 20, temperature: float = TEMPERATURE) -> Tensor:
    """Votes [M, K] of the k nearest training features by cosine, each weighted by exp(cosine / temperature).

    train [N, C], labels [N], test [M, C]. The protocol of Wu et al., CVPR 2018, arXiv:1805.01978, and DINO (Caron et al., ICCV 2021).
    Raises PruneError if k is not between 1 and N.
    """
    if not 1 <= k <= len(train):
        raise PruneError(f"k={k} neighbours of {len(train)} training images; give 1 to {len(train)}")
    # scikit-learn's neighbours give the same votes (a test compares them); by torch they need no extra and run on the features' device
    bank = nn.functional.normalize(train.float(), dim=-1)
    votes = []
    for queries in torch.split(nn.functional.normalize(test.float(), dim=-1), QUERIES_AT_ONCE):
        near = (queries @ bank.T).topk(k, dim=1)
        weights = (near.values / temperature).exp()
        votes.append(torch.zeros(len(queries), classes).scatter_add_(1, labels[near.indices], weights))
    return torch.cat(votes)


def linear_probe(train: Tensor, labels: Tensor, test: Tensor, classes: int, strength: float = 1.0) -> Tensor:
    """Logits [M, K] of a logistic regression (scikit-learn, L-BFGS) on standardised features.

    strength: C, the inverse of the L2 penalty. Classes without a training image have a logit of minus infinity.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise PruneError("a linear probe needs scikit-learn; pip install 'sparsight[eval]'") from None
    seen = sorted(set(labels.tolist()))
    if len(seen) < 2:
        raise PruneError(f"a linear probe needs two classes with training images; got {len(seen)}")
    probe: Any = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    probe.fit(train.double().numpy(), labels.numpy())
    found = torch.from_numpy(probe.predict_log_proba(test.double().numpy()))
    logits = torch.full((len(test), classes), -torch.inf, dtype=found.dtype)
    logits[:, seen] = found
    return logits


def classify(mode: str, train: Chunk, test: Chunk, classes: int, k: int) -> Chunk:
    """The test chunk with `top` and `probability` from its features and those of the training chunk."""
    fine = train.columns["finite"].tolist()
    known = [place for place, label in enumerate(train.labels) if label is not None and fine[place]]
    if not known:
        raise PruneError(f"{mode} needs labels of the training images; put them into one folder per class")
    features, labels = train.columns["pooled"][known], torch.tensor([train.labels[place] for place in known])
    finite = test.columns["finite"]
    queries = torch.where(finite.unsqueeze(1), test.columns["pooled"], 0.0)
    if mode == "knn":
        votes = neighbours(features, labels, queries, classes, k)
        best = votes.topk(min(TOP, classes))
        found = {"top": best.indices.int(), "probability": best.values[:, 0] / votes.sum(dim=1)}
    else:
        found = ranked(linear_probe(features, labels, queries, classes))
    found["top"] = found["top"].masked_fill(~finite.unsqueeze(1), -1)
    return replace(test, columns={**test.columns, **found})
