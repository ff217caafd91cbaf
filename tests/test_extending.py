"""The pages on extending hold all that is to be written: applied to a copy, the newcomer passes its suite."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in (ROOT / "docs" / "extending").glob("*.md") if path.name != "README.md")
BLOCK = re.compile(r"^`(?P<file>[\w/.]+)`\n\n```(?P<kind>python|diff)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
CHECK = re.compile(r"^Checked by `pytest (?P<arguments>[^`]+)`$", re.MULTILINE)


def apply_page(page: Path, root: Path) -> dict[str, str]:
    """Write what a page says into a copy of the project; return the kind of change by file."""
    touched = {}
    for block in BLOCK.finditer(page.read_text()):
        path = root / block["file"]
        touched[block["file"]] = block["kind"]
        if block["kind"] == "python":
            assert not path.exists(), path
            path.write_text(block["text"])
            continue
        text = path.read_text()
        for change in re.finditer(r"^-(?P<old>.*)\n(?P<new>(?:\+.*\n)+)", block["text"], re.MULTILINE):
            assert text.count(change["old"] + "\n") == 1, f"{page.name}: {change['old']!r} is not once in {path.name}"
            new = "".join(line.removeprefix("+") for line in change["new"].splitlines(keepends=True))
            text = text.replace(change["old"] + "\n", new)
        path.write_text(text)
    return touched


def test_there_is_a_page_for_every_seam_of_which_there_are_many() -> None:
    assert [page.stem for page in PAGES] == ["clustering", "criterion", "method", "operator"]


@pytest.mark.parametrize("pages", [PAGES, *(pytest.param([page], marks=pytest.mark.slow) for page in PAGES)])
def test_a_newcomer_is_one_file_its_registry_line_and_its_conformance_entry(pages: list[Path], tmp_path: Path) -> None:
    """All of them in one process; each alone in the run of the slow tests."""
    for name in ("src", "tests", "docs", "recipes"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    suites: dict[str, str] = {}
    for page in pages:
        touched = apply_page(page, tmp_path)
        assert list(touched.values()) == ["python", "diff", "diff"]
        new, registry, suite = touched
        assert Path(new).parent == Path(registry).parent
        assert suite.startswith("tests/")
        check = CHECK.search(page.read_text())
        assert check is not None
        file, *more = shlex.split(check["arguments"])
        suites[file] = more[-1] if more else Path(file).stem
    chosen = " or ".join(f"({words})" for words in suites.values())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *suites, "-k", chosen],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert re.search(r"\b[1-9]\d* passed", done.stdout)
