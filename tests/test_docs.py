"""The site of the documentation is built without a warning, fetches nothing, and its Python runs."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from examples import first

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```python\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
TUTORIAL = DOCS / "tutorial.md"
WITH_CODE = [page for page in sorted(DOCS.glob("*.md")) if BLOCK.search(page.read_text())]


def test_the_site_builds_without_warnings_and_fetches_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("index.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text()
        assert not re.search(r"""(?:src|href)=["']https?://[^"']*\.(?:js|css|woff2?|png|svg)""", text), page
        assert ":class:" not in text or "reference" not in page.parts
        assert "```" not in text, page


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r"[\w/-]+\.md", text[text.index("nav:") :]))
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if "decisions" not in page.parts}
    assert listed == there


def test_links_between_pages_lead_somewhere() -> None:
    lost = []
    for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]:
        for link in LINK.findall(re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)):
            target, _, anchor = link.partition("#")
            place = page.parent / target if target else page
            if not place.exists() or (anchor and anchor not in anchors(place.read_text())):
                lost.append(f"{page.relative_to(ROOT)}: {link}")
    assert lost == []


def anchors(text: str) -> set[str]:
    """Return what a page's headings are called in links to them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_the_notebook_is_the_tutorial() -> None:
    """Whose code the next test runs."""
    made = runpy.run_path(str(DOCS / "make_notebook.py"))
    text = (DOCS / "tutorial.ipynb").read_text()
    assert text == made["notebook"](), "write it anew: python docs/make_notebook.py"
    code = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert "\n\n".join(code) == "\n\n".join(block["text"].strip() for block in BLOCK.finditer(TUTORIAL.read_text()))


@pytest.mark.parametrize(
    "page",
    first(2, sorted(WITH_CODE, key=lambda page: page.stem not in ("tutorial", "index"))),
    ids=lambda page: page.stem,
)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    program = "\n".join(block["text"] for block in BLOCK.finditer(page.read_text()))
    (tmp_path / "page.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "page.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
