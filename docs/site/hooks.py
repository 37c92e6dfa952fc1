"""What the site has beyond docs/: menu from the index, Python and command line reference, files of the repository that pages point to.

The pages stay as they are read in the repository: docs/README.md is the only list of them.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

os.environ["PYTHONWARNINGS"] = "ignore:IProgress"
"""In notebooks: tqdm misses a widget that no page could show."""

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
SHELF = "repository"
"""Where files of the repository are in the site."""

PYTHON, SHELL, BOARD = "reference/python.md", "reference/cli.md", "leaderboard.html"


def on_config(config: Any) -> Any:
    """The menu: sections and links of the index, in their order."""
    menu: list[Any] = [{"Home": "README.md"}]
    section: list[Any] = menu
    for line in (DOCS / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = []
            menu.append({line[3:]: section})
            if line == "## Reference":
                section += [{"Python": PYTHON}, {"Command line": SHELL}]
            if line == "## Measurements":
                section.append({"Leaderboard": BOARD})
        for title, target in re.findall(r"\[([^]]+)\]\(([\w./-]+\.(?:md|py))\)", line):
            if not target.startswith(".."):
                section.append({title[0].upper() + title[1:]: target} if target.endswith(".py") else target)
    config["nav"] = menu
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add what is made here."""
    files.append(File.generated(config, PYTHON, content=python_reference()))
    files.append(File.generated(config, BOARD, content=leaderboard()))
    files.append(File.generated(config, SHELL, content=shell_reference()))
    for path in sorted(outside(files)):
        files.append(shelved(path, config))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to files of the repository lead to the site's copy."""
    place = origin(page.file.src_uri)
    return markdown if place is None else LINK.sub(lambda found: moved(found, place, page.file.src_uri), markdown)


def origin(uri: str) -> Path | None:
    """The file of the repository that a page was made of; None for what is made here."""
    if uri.startswith(f"{SHELF}/"):
        path = ROOT / uri.removeprefix(f"{SHELF}/")
        return path if path.is_file() else None
    return DOCS / uri if (DOCS / uri).is_file() else None


def targets(page: Path) -> set[Path]:
    """Files of the repository, outside docs, that a page points to."""
    found = {(page.parent / link[1]).resolve() for link in LINK.findall(page.read_text(encoding="utf-8"))}
    return {path for path in found if path.is_file() and ROOT in path.parents and DOCS not in path.parents}


def outside(files: Files) -> set[Path]:
    """All such files, and those that they point to in turn."""
    pages = [origin(file.src_uri) for file in files.documentation_pages()]
    todo = {target for page in pages if page is not None and page.suffix == ".md" for target in targets(page)}
    done: set[Path] = set()
    while todo - done:
        path = (todo - done).pop()
        done.add(path)
        todo |= targets(path) if path.suffix == ".md" else set()
    return done


def shelf_name(path: Path) -> str:
    """Where a file of the repository is in the site: code becomes a page."""
    uri = f"{SHELF}/{path.relative_to(ROOT).as_posix()}"
    return uri if path.suffix != ".py" else f"{uri}.md"


def shelved(path: Path, config: Any) -> File:
    """The site's copy."""
    if path.suffix == ".py":
        text = f"# {path.relative_to(ROOT).as_posix()}\n\n```python\n{path.read_text(encoding='utf-8')}```\n"
        return File.generated(config, shelf_name(path), content=text)
    return File.generated(config, shelf_name(path), abs_src_path=str(path))


def moved(found: re.Match[str], place: Path, uri: str) -> str:
    """A link, if need be to the copy."""
    path = (place.parent / found[2]).resolve()
    if re.match(r"\w+:", found[2]) or not path.exists() or ROOT not in path.parents:
        return found[0]
    up = "../" * uri.count("/")
    if DOCS in path.parents:
        return f"{found[1]}{up}{path.relative_to(DOCS).as_posix()}{found[3]}" if SHELF in uri else found[0]
    if path.is_dir():
        return f"{found[1][:1]} (`{path.relative_to(ROOT).as_posix()}/`)"
    return f"{found[1]}{up}{shelf_name(path)}{found[3]}"


def python_reference() -> str:
    """One entry for each public name, from its docstring."""
    import sparsight

    names = list(sparsight.__all__)
    entries = [f"::: sparsight.{sparsight._HOMES[name]}.{name}" for name in names]
    return "\n\n".join(["# Python", "`import sparsight` loads none of this before it is used.", *entries]) + "\n"


def leaderboard() -> str:
    """Measured and published numbers on one page."""
    sys.path.insert(0, str(ROOT))
    from reproduction.leaderboard import page

    return page()


def shell_reference() -> str:
    """What every verb says of itself."""
    from typer.main import get_command
    from typer.testing import CliRunner

    from sparsight.cli.main import app

    verbs = sorted(get_command(app).commands)  # type: ignore[attr-defined]
    parts = ["# Command line", "`sparsight VERB --help` prints the same."]
    for verb in verbs:
        text = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "110"}, prog_name="sparsight").output
        parts += [f"## {verb}", f"```text\n{text.strip()}\n```"]
    return "\n\n".join(parts) + "\n"
