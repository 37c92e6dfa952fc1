"""Nearest neighbours and linear probe against scikit-learn and by hand."""

import math

import pytest
import torch
from compare_data import make_images, make_model

from sparsight.errors import PruneError
from sparsight.evaluation.evaluate import evaluate
from sparsight.evaluation.probes import linear_probe, neighbours


def test_votes_by_hand():
    train = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [-1.0, 0.0]])
    votes = neighbours(train, torch.tensor([0, 1, 1, 2]), torch.tensor([[5.0, 0.0]]), classes=3, k=3, temperature=0.5)
    diagonal = math.exp(math.sqrt(0.5) / 0.5)
    assert votes[0].tolist() == pytest.approx([math.exp(2), 1 + diagonal, 0], rel=1e-5)


def test_neighbours_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.neighbors")
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(60, 8, generator=generator), torch.randn(30, 8, generator=generator)
    labels = torch.randint(4, (60,), generator=generator)
    peer = sklearn.KNeighborsClassifier(
        9, metric="cosine", weights=lambda d: torch.tensor((1 - d) / 0.07).exp().numpy(), algorithm="brute"
    )
    peer.fit(train.numpy(), labels.numpy())
    votes = neighbours(train, labels, test, 4, k=9)
    assert torch.allclose(
        votes / votes.sum(dim=1, keepdim=True), torch.from_numpy(peer.predict_proba(test.numpy())).float(), atol=1e-5
    )


@pytest.mark.parametrize("k", [0, 61])
def test_bad_k(k):
    with pytest.raises(PruneError, match=f"k={k} neighbours of 60"):
        neighbours(torch.randn(60, 2), torch.zeros(60, dtype=torch.long), torch.randn(1, 2), 1, k=k)


def test_a_probe_separates_what_can_be_separated():
    pytest.importorskip("sklearn")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2 * 2
    train = torch.randn(40, 5, generator=generator) + labels.unsqueeze(1)
    logits = linear_probe(train, labels, train, classes=4)
    assert (logits.argmax(dim=1) == labels).double().mean() > 0.9
    assert logits[:, [1, 3]].isneginf().all()
    assert torch.allclose(logits.exp().sum(dim=1), torch.ones(40, dtype=torch.float64))
    with pytest.raises(PruneError, match="two classes"):
        linear_probe(train, torch.zeros(40, dtype=torch.long), train, 4)


@pytest.mark.parametrize("mode", ["knn", "probe"])
def test_features_of_a_backbone_know_their_own_images(mode, tmp_path):
    pytest.importorskip("timm")
    pytest.importorskip("sklearn")
    make_images(tmp_path / "data" / "train")
    make_images(tmp_path / "data" / "val")
    recipes = ["random:keep=0.5,layers=1/3"]
    done = evaluate(make_model(0), tmp_path / "data", recipes, tmp_path / "out", mode=mode, split="val", k=1)
    assert [score.top1.value for score in done.scores] == [1, 1]
    assert done.classes == 3
    assert done.mode.startswith(mode)
    other = evaluate(
        make_model(0), tmp_path / "data" / "val", recipes, tmp_path / "o", mode=mode, train=tmp_path / "data" / "train", k=1
    )
    assert other.scores == done.scores
