"""Targets, the front, and the parts of the images."""

from dataclasses import dataclass, replace

import pytest
from compare_data import CLASSES, make_images

from sparsight import PruneError
from sparsight.data.sources import open_source
from sparsight.tune.parts import halves, labels_of, ordered, rungs, whole
from sparsight.tune.targets import Target, front, make_target


@dataclass(frozen=True)
class Row:
    quality: float
    cost: float
    change: float = 0.0
    speedup: float = 1.0


def rows(*pairs):
    """The unpruned model has quality 0.9 and cost 6."""
    return [Row(quality, cost, quality - 0.9, 6 / cost) for quality, cost in pairs]


ALL = rows((0.89, 5), (0.85, 3), (0.84, 3.5), (0.80, 2), (0.80, 2.5), (0.30, 1))


def test_the_front_has_what_nothing_beats():
    assert [(row.quality, row.cost) for row in front(ALL)] == [(0.30, 1), (0.80, 2), (0.85, 3), (0.89, 5)]
    assert front([]) == []


@pytest.mark.parametrize(
    ("target", "cost"),
    [
        (Target(speedup=2), 3), (Target(loss=1), 5), (Target(loss=10), 2), (Target(speedup=2.4, loss=10), 2),
        (Target(ms=2.2), 2), (Target(loss=100), 1),
    ],
    ids=str,
)  # fmt: skip
def test_the_best_that_meets_it_is_chosen(target, cost):
    chosen = target.choose(ALL)
    assert chosen.cost == cost
    assert target.shortfall(chosen) == 0


def test_else_the_nearest():
    assert Target(speedup=10).choose(ALL).cost == 1
    assert Target(speedup=10).shortfall(Target(speedup=10).choose(ALL)) > 0
    assert Target(loss=0).choose(ALL).cost == 5
    assert Target(loss=0).choose([]) is None
    assert Target(speedup=3).cost_gap(ALL[1]) == pytest.approx(0.5)
    assert Target(loss=0).cost_gap(ALL[1]) == 0


def test_targets_that_mean_nothing():
    for given in ({"speedup": 0.5}, {"speedup": float("nan")}, {"loss": -1}, {"ms": 0}, {"loss": float("inf")}):
        with pytest.raises(PruneError, match="is no target; give"):
            make_target(**{"speedup": None, "loss": None, "ms": None, **given}, engine="eager")
    with pytest.raises(PruneError, match="engine=macs measures none"):
        make_target(None, None, 5, "macs")
    assert str(make_target(None, None, None, "macs")) == "loss at most 1 points"
    assert str(make_target(2, 3, 4, "eager")) == "speed-up at least 2, at most 4 ms, loss at most 3 points"


def test_halves_share_nothing_and_have_equal_classes(tmp_path):
    source = open_source(make_images(tmp_path))
    one, other = halves(source, 0)
    assert sorted((*one.places, *other.places)) == list(range(6))
    assert sorted(labels_of(one)) == sorted(labels_of(other)) == [0, 1, 2]
    assert one.fingerprint() != other.fingerprint()
    assert [ref.place for ref in one.refs(lambda place: place != 1)] == [0, 2]
    assert one.ref(0).name == source.ref(one.places[0]).name
    assert halves(source, 0)[0] == one
    assert whole(source, 0).total == 6


def test_odd_classes_are_divided_alternately(tmp_path):
    source = open_source(make_images(tmp_path))
    folder = replace(source.folder, paths=source.folder.paths[::2], labels=source.folder.labels[::2])
    one, other = halves(replace(source, folder=folder), 0)
    assert abs(len(one.places) - len(other.places)) <= 1


def test_every_beginning_is_even():
    labels = [label for label in range(7) for _ in range(label + 3)]
    order = ordered(labels, 3)
    assert sorted(order) == list(range(len(labels)))
    assert {labels[place] for place in order[:7]} == set(range(7))
    assert {labels[place] for place in order[7:14]} == set(range(7))
    assert ordered(labels, 3) == order != ordered(labels, 4)


def test_rungs_cut_what_is_large_enough(tmp_path):
    source = open_source(make_images(tmp_path))
    assert [piece.total for piece in rungs(whole(source, 0))] == [6]
    large = replace(whole(source, 0), places=tuple(range(6)) * 40)
    assert [piece.total for piece in rungs(large)] == [30, 30, 60, 120]


def test_one_image_cannot_be_divided(tmp_path):
    make_images(tmp_path)
    for path in list(tmp_path.rglob("*.png"))[1:]:
        path.unlink()
    for name in CLASSES:
        if not any((tmp_path / name).iterdir()):
            (tmp_path / name).rmdir()
    with pytest.raises(PruneError, match="has 1 image"):
        halves(open_source(tmp_path), 0)
