"""Write docs/tutorial.ipynb: the tutorial as a notebook, cell by cell; a test keeps it, and runs the page's code."""

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "tutorial.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def cells(text: str) -> list[dict[str, Any]]:
    """Return the cells of a page: what is a block of Python is code, the rest text."""
    found: list[dict[str, Any]] = []
    for number, part in enumerate(BLOCK.split(text)):
        lines = part.strip().splitlines(keepends=True)
        if number % 2:
            code = {"cell_type": "code", "execution_count": None, "outputs": []}
            found.append(code | {"id": f"cell-{number}", "metadata": {}, "source": lines})
        elif lines:
            found.append({"cell_type": "markdown", "id": f"cell-{number}", "metadata": {}, "source": lines})
    return found


def notebook() -> str:
    """Return the notebook."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    page = {"cells": cells(PAGE.read_text(encoding="utf-8")), "metadata": about, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(page, ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(), encoding="utf-8")
