"""The page of measured and published numbers."""

from reproduction import leaderboard
from reproduction.published import entries


def test_every_measured_recipe_and_every_published_number_is_there():
    known = leaderboard.published(entries().values())
    unpruned, groups, images = leaderboard.vision(known)
    rows = {row.recipe: row for _, rows in groups for row in rows}
    assert (unpruned.recipe, images, len(rows)) == ("unpruned", 1010, 50)
    assert {"tome", "evit", "col_ln", "renyi", "similarity", "tca", "ats", "k_medoids"} <= {name.partition(":")[0] for name in rows}
    beside = rows["col_ln:keep=0.7,layers=0/3/6"].beside
    assert (beside.where, beside.value, beside.unpruned) == ("ViT-S/16, colln table 2", 76.65, 81.38)
    assert rows["random:keep=0.5,layers=0/3/6"].beside is None
    tuned = rows["renyi:keep=0.7,layers=0/3/6"].beside
    assert tuned.where.endswith("after fine-tuning")
    assert {one.method for one in known} >= {"divprune", "vispruner", "fastv", "sparsevlm", "evit"}


def test_the_language_model_s_tables_and_the_page():
    known = leaderboard.published(entries().values())
    sheets = leaderboard.sheets(known)
    sheet = next(sheet for sheet in sheets if sheet.title.startswith("64 tokens"))
    found = {cells[0]: beside for cells, beside in sheet.rows}
    assert found["unpruned"] is None
    assert found["divprune"].measure == "relative"
    page = leaderboard.page()
    assert page.count("<table") == 2 + len(sheets)
    assert len(page) < 3_000_000
    assert "http" not in page.partition("<body>")[2]
