import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

WORKER = Path(__file__).with_name("search_worker.py")


@pytest.fixture(scope="session")
def worker() -> ModuleType:
    """The module search_worker.py; its attribute __file__ is the script."""
    spec = importlib.util.spec_from_file_location("search_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
