from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

WORKER = Path(__file__).with_name("search_worker.py")


@pytest.fixture(scope="session")
def worker(script: Callable[[Path], ModuleType]) -> ModuleType:
    """The module search_worker.py; its attribute __file__ is the script."""
    return script(WORKER)
