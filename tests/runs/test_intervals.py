"""Intervals of shares and of paired differences, against formulas and published numbers."""

import math

import pytest

from sparsight.runs.intervals import paired, paired_means, share, spread


def test_paired_differences():
    same = paired([1] * 400, [1] * 400)
    assert same.value == 0
    assert -same.low == same.high < 0.006
    after, before = [1] * 40 + [0] * 60, [1] * 20 + [0] * 20 + [1] * 10 + [0] * 50
    found = paired(after, before)
    half = 1.96 * math.sqrt((0.3 - 0.1**2) / 100)
    assert found.value == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1 - half, abs=0.01)
    assert found.high == pytest.approx(0.1 + half, abs=0.01)


def test_wilson():
    """81 of 263: 0.2553 to 0.3662 (Newcombe, Statistics in Medicine 17, 1998, table I)."""
    found = share([1] * 81 + [0] * 182)
    assert (found.value, found.low, found.high) == pytest.approx((81 / 263, 0.2553, 0.3662), abs=5e-5)
    assert share([1] * 12).low == pytest.approx(0.7575, abs=1e-3)
    assert share([0] * 12).low == 0


def test_pictures_of_one_photo_are_no_more_than_the_photo():
    """Eight copies of twelve outcomes say what the twelve say; copies taken for independent would say more."""
    after, before = [1] * 8 + [0] * 4, [1] * 3 + [0] * 9
    photos = [f"{place}.jpg" for place in range(12)]
    few = paired(after, before, photos)
    many = paired(after * 8, before * 8, photos * 8)
    assert (many.value, many.low, many.high) == pytest.approx((few.value, few.low, few.high))
    assert many.high - many.low > 2 * (paired(after * 8, before * 8).high - paired(after * 8, before * 8).low)
    variance = 12 / 11 * (5 * (7 / 12) ** 2 + 7 * (5 / 12) ** 2) / 144
    assert many.high - many.value == pytest.approx(2.2010 * math.sqrt(variance + 1 / 14**2), rel=1e-4)
    assert share(after * 8, photos * 8) == share(after, photos)
    assert share(after * 8, photos * 8).low < share(after * 8).low - 0.1
    assert (share([1] * 96, photos * 8).low, share([1] * 96, photos * 8).high) == (pytest.approx(0.712, abs=1e-3), 1)
    assert paired([1, 0], [0, 0], ["a", "a"]).low == -1


def test_independent_photos_have_the_usual_interval():
    after, before = [1, 0, 1, 1] * 50, [1, 1, 0, 0] * 50
    photos = list(map(str, range(200)))
    usual, found = paired(after, before), paired(after, before, photos)
    assert (found.low, found.high) == pytest.approx((usual.low, usual.high), abs=0.01)
    assert share(after, photos).low == pytest.approx(share(after).low, abs=0.01)


def test_soft_scores():
    got = paired_means([1, 0.5, 0.6], [0.4, 0.5, 0])
    assert got.value == pytest.approx(0.4)
    assert got.high - got.value == pytest.approx(1.959964 * (0.12 / 3) ** 0.5, rel=1e-5)


def test_quartiles():
    found = spread([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (found.low, found.median, found.high, found.runs) == (2, 3, 4, 5)
