"""The documentation: links that lead somewhere, and examples that run as they stand."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md"), *ROOT.glob("src/**/*.md")])
CODE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def headings(page: Path) -> set[str]:
    """Anchors of a page as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(page: Path) -> list[str]:
    """Relative links of a page to files or headings that are not there."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in headings(file)):
            found.append(target)
    return found


def test_links_lead_somewhere():
    assert [(page.name, links) for page in PAGES if (links := broken(page))] == []


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    missing = [page.name for page in ROOT.glob("docs/*/*.md") if f"({page.relative_to(ROOT / 'docs').as_posix()})" not in index]
    assert missing == []


def test_the_readme_example_runs_as_it_stands(capsys):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    exec(code[1], {})
    assert capsys.readouterr().out == "okapi [180, 126, 89]\n"
    assert "# okapi [180, 126, 89]" in code[1]


@pytest.mark.product
def test_the_tutorial_prints_what_it_says(capsys):
    """Every Python block of the first hour, in one go, against the outputs beneath them."""
    pytest.importorskip("onnxruntime", reason="the tutorial compiles for onnxruntime")
    page = (ROOT / "docs" / "tutorials" / "first-hour.md").read_text(encoding="utf-8").partition("## 3.")[2]
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), {"__name__": "first_hour"})
    assert capsys.readouterr().out == "".join(re.findall(r"```\n\n```\n(.*?)```", page, re.DOTALL))


@pytest.mark.product
def test_the_arithmetic_of_serving_prints_its_table(capsys):
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code[1], {"__name__": "arithmetic"})
    assert capsys.readouterr().out in page


@pytest.mark.product
def test_the_manifests_start_what_there_is():
    """Every manifest has a container whose words the command line takes, a probe on a port that it opens, and a service that finds it."""
    yaml = pytest.importorskip("yaml")
    from typer.main import get_command

    from sparsight.cli.main import app

    for file in sorted((ROOT / "examples" / "kubernetes").glob("*.yaml")):
        deployment, service = yaml.safe_load_all(file.read_text(encoding="utf-8"))
        pod = deployment["spec"]["template"]
        (container,) = pod["spec"]["containers"]
        assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
        assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
        (port,) = container["ports"]
        assert f"--port={port['containerPort']}" in container["args"]
        assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": port["name"]}
        assert service["spec"]["ports"][0]["targetPort"] == port["name"]
        if container["args"][0] == "serve":
            verb = get_command(app).commands["serve"]
            given = verb.make_context("serve", container["args"][1:], resilient_parsing=False).params
            assert (given["host"], given["threads"], given["engine"], len(given["recipe"])) == ("0.0.0.0", 4, "openvino", 2)
