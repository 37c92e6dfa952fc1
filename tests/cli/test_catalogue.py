"""docs/reference/methods.md is what the methods say of themselves."""

from pathlib import Path

import sparsight
from sparsight.cli.methods import markdown

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "methods.md"


def test_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == markdown(), "run `make docs`"


def test_every_method_is_there_with_a_source():
    page = markdown()
    for method in sparsight.methods():
        assert f"| `{method.name}` |" in page
        assert method.summary
        assert not method.summary.endswith(".")
