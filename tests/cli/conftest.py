"""A tiny model in a user's own file, its weights, and a folder of images."""

from pathlib import Path

import pytest
import torch
from command_line import MODEL_FILE, Cli
from PIL import Image

from clusterprune import data


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(tmp_path)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def tiny(shared: Path) -> str:
    """Return the --model of a network in a user's own file."""
    (shared / "tiny.py").write_text(MODEL_FILE)
    return f"{shared / 'tiny.py'}:build"


@pytest.fixture(scope="session")
def trust(tiny: str) -> tuple[str, str]:
    """Return the option that names the file of that network, for commands that read its name from somewhere."""
    return "--trust", tiny.rpartition(":")[0]


@pytest.fixture(scope="session")
def trained(shared: Path, tiny: str) -> Path:
    """Return the run folder of a short training on the digits."""
    out = shared / "trained"
    settings = ("--epochs", 6, "--batch-size", 64, "--augment", "none")
    result = Cli(shared)("train", "--model", tiny, "--data", "digits", "--out", out, *settings)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder of digits as files: train/CLASS/*.png and test/CLASS/*.png."""
    digits = data.load("digits")
    for name, split, count in (("train", digits.train, 12), ("test", digits.test, 4)):
        for label in range(10):
            folder = tmp_path / "images" / name / str(label)
            folder.mkdir(parents=True)
            for index in (split.labels == label).nonzero().flatten()[:count].tolist():
                Image.fromarray(split[index][0][0].numpy()).save(folder / f"{index}.png")
    return tmp_path / "images"
