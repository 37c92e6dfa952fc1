"""All pages: whole, self-contained, escaped, with every row; plots with round ticks; best only where intervals separate."""

import base64
import hashlib
import itertools
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import made_up
import pytest

from sparsight.pages.analysis_page import Figure, analysis_page
from sparsight.pages.bench_report import bench_report
from sparsight.pages.evaluation_page import evaluation_page
from sparsight.pages.page import render
from sparsight.pages.plots import LogAxis, Plot, Point, Series, axis
from sparsight.pages.report import report
from sparsight.pages.robustness_page import robustness_page
from sparsight.pages.stage_report import STAGES, stage_report
from sparsight.pages.training_page import training_page
from sparsight.pages.tuning_page import sensitivity_page, tuning_page
from sparsight.pages.vlm_evaluation_page import vlm_evaluation_page
from sparsight.pages.vlm_report import vlm_report
from sparsight.runs.intervals import Spread

PIXEL = "data:image/png;base64,AAAA"
FIGURES = {name: Figure(PIXEL, PIXEL, 9) for name in ("scores0.png", "entropy.png", "distance.png", "agreement.png", "rank.png")}
PAGES = {
    "report": lambda: report(made_up.comparison(), []),
    "bench": lambda: bench_report(made_up.bench()),
    "stages": lambda: stage_report(made_up.stages()),
    "evaluation": lambda: evaluation_page(made_up.evaluation()),
    "questions": lambda: vlm_report(made_up.questions(), []),
    "asked": lambda: vlm_evaluation_page(made_up.asked()),
    "analysis": lambda: analysis_page(made_up.analysis(), FIGURES),
    "training": lambda: training_page(made_up.training()),
    "tuning": lambda: tuning_page(made_up.tuning()),
    "robustness": lambda: robustness_page(made_up.robustness(made_up.HOSTILE)),
    "sensitivity": lambda: sensitivity_page(made_up.sites()),
}
EMPTY = ("meta", "img", "source", "wbr")


class Tags(HTMLParser):
    """Collects start tags and text, and fails on unbalanced tags."""

    def __init__(self):
        super().__init__()
        self.found, self.open, self.text, self.scripts = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts.append(data)
        elif "style" not in self.open:
            self.text.append(data)


def parsed(page):
    parser = Tags()
    parser.feed(page)
    assert not parser.open
    return parser


@pytest.fixture(params=PAGES)
def page(request):
    return PAGES[request.param]()


def test_pages_are_whole_and_need_nothing_from_outside(page):
    found = parsed(page)
    assert page.startswith("<!doctype html>")
    assert not {tag for tag, _ in found.found} & {"link", "iframe", "object", "base"}
    digest = base64.b64encode(hashlib.sha256("".join(found.scripts).encode()).digest()).decode()
    policy = next(attrs["content"] for _, attrs in found.found if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.endswith(f"script-src 'sha256-{digest}'")  # no other script runs, whatever a name holds
    links = [value for _, attrs in found.found for name, value in attrs.items() if name in ("src", "href", "srcset")]
    assert all(link.startswith("data:image/") for link in links)
    assert not re.search(r"https?:|@import|url\((?!\"data:)", page)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_names_are_text_and_nothing_else(page):
    """A name of tags, quotes and template marks is read as it is, everywhere."""
    found = parsed(page)
    assert made_up.HOSTILE in "".join(found.text)
    assert "{{ 7 * 7 }}" in page
    assert not any("alert" in name for _, attrs in found.found for name in attrs)
    titles = [attrs["title"] for _, attrs in found.found if "title" in attrs]
    assert all("&lt;" not in title for title in titles)


def test_every_recipe_is_there_uncut(page):
    assert made_up.LONG in "".join(parsed(page).text)


def test_file_names_need_not_be_text():
    page = report(made_up.comparison("photo\udcff"), [])
    assert "photo\\udcff" in page
    page.encode("utf-8")


def test_a_forgotten_value_is_an_error():
    with pytest.raises(Exception, match="is undefined"):
        render("report.html")


def test_best_is_marked_only_where_intervals_separate():
    """At keep 0.7 the intervals overlap, so nothing is marked; at 0.5 accuracy, agreement, cosine and speed-up are."""
    done = made_up.comparison()
    for measure in ("top1", "top5", "agreement", "speedup"):
        assert done.best(measure) == {made_up.HOSTILE + ",keep=0.5"}
    page = report(done, [])
    marked = [
        part.partition("</tbody>")[0].count('class="best"') for part in page.partition("<h2>Results")[2].split("<tbody>")[1:3]
    ]
    assert marked == [1, 5]  # the cosines differ image by image alike, in both


def test_plots_have_every_point_and_the_origin():
    page = report(made_up.comparison(), [])
    assert page.count('<path class="dot"') == 2 * 4 + 4  # and the legend
    assert page.count('class="origin"') == 2


def test_numbers_that_are_none_have_no_place():
    done = made_up.comparison()
    rows = [done.rows[0], replace(done.rows[1], speedup=Spread(math.nan, math.nan, math.nan, 6), top1=math.inf), *done.rows[2:]]
    page = report(replace(done, rows=rows), [])
    assert page.count('<path class="dot"') == 2 * 3 + 4
    assert not re.search(r'(d|cx|cy)="[^"]*(nan|inf)', page)


def test_bars_share_one_axis():
    page = stage_report(made_up.stages())
    widths = [[float(w) for w in re.findall(r"width:([\d.]+)%", row)] for row in page.split('<div class="bar">')[1:]]
    assert [len(row) for row in widths] == [len(STAGES)] * 3
    assert sum(widths[0]) == pytest.approx(100, abs=0.5)
    assert sum(widths[2]) < sum(widths[1]) < 100


def test_stages_are_those_that_are_measured():
    from sparsight.speed.stages import STAGES as MEASURED

    assert list(STAGES) == list(MEASURED)


def test_an_analysis_shows_a_picture_for_dark_pages():
    figures = {name: Figure(PIXEL, "data:image/png;base64,BBBB", 9) for name in FIGURES}
    page = analysis_page(made_up.analysis(), figures)
    assert page.count('media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,BBBB"') == len(figures)


def test_axis_has_round_ticks():
    assert axis([1.0, 1.9], 0, 100).ticks == [1.0, 1.2, 1.4, 1.6, 1.8]
    assert max(axis([97.0, 100.0], 0, 100, most=100).ticks) <= 100
    assert max(axis([100.0, 100.0], 0, 100, most=100).ticks) <= 100
    assert len(axis([3.0, 3.0], 0, 100).ticks) >= 3


def test_the_line_of_a_series_is_sorted():
    plot = Plot([Series("a", 0, points=[Point(3, 2, "b"), Point(2, 1, "a")])], Point(1, 1, "o"), "x", "y")
    xs = [float(part.split()[0]) for part in plot.line(plot.drawn(plot.series[0]))[1:].split("L")]
    assert xs == sorted(xs)


def test_doublings_are_equally_far_apart():
    doublings = LogAxis(6, 300, 0, 100)
    assert doublings.ticks == [8, 16, 32, 64, 128, 256]
    places = [doublings.at(tick) for tick in doublings.ticks]
    steps = [after - before for before, after in itertools.pairwise(places)]
    assert max(steps) - min(steps) < 0.15
    plot = Plot([Series("one", 0, points=[Point(16, 40, "")])], Point(256, 60, ""), "tokens", "%", log=True)
    assert plot.x.at(64) == pytest.approx((plot.x.at(16) + plot.x.at(256)) / 2, abs=0.1)
    assert plot.between(20, 90).y.low < 20


def test_the_front_holds_what_nothing_beats():
    points = [
        Point(2, 70, "a"),
        Point(3, 60, "dear and bad"),
        Point(4, 90, "b"),
        Point(4, 80, "as dear"),
        Point(math.nan, 99, "nowhere"),
    ]
    plot = Plot([Series("one", 0, points=points)], Point(6, 90, "unpruned"), "GMACs", "%", better=-1)
    assert [point.label for point in plot.front] == ["a", "b"]
    assert [point.label for point in replace(plot, better=1).front] == ["unpruned"]
    assert not replace(plot, better=0).front


def test_whiskers_reach_as_far_as_the_intervals():
    point = Point(2, 50, "a", (1, 3), (40, 70))
    plot = Plot([Series("one", 0, points=[point, Point(2, 45, "b", None, (math.nan, 50))])], None, "x", "%")
    y = plot.y
    assert y.low < 40 < 70 < y.high
    assert plot.whiskers(point) == f"M{plot.x.at(1)} {y.at(50)}H{plot.x.at(3)}M{plot.x.at(2)} {y.at(40)}V{y.at(70)}"
    assert plot.whiskers(plot.points[1]) == ""
