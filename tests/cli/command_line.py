"""The command line, called as a user calls it."""

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner, Result

from clusterprune.cli import app

MODEL_FILE = """
from torch import nn

INPUT_SHAPE = (1, 8, 8)
MEAN = (0.3,)
STD = (0.37,)


def build(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )
"""


class Cli:
    """The command line, called in this process or in one of its own, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: object) -> Result:
        return CliRunner(env={"COLUMNS": "100"}).invoke(app, [str(a) for a in arguments], catch_exceptions=False)

    def fails(self, *arguments: object) -> str:
        """Call what must fail, and return its message on one line."""
        result = self(*arguments)
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output
        assert result.stdout == ""
        return " ".join(result.stderr.split())

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start a process, with one thread as the tests have."""
        return subprocess.Popen(
            [sys.executable, "-m", "clusterprune.cli", *(str(a) for a in arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
        )
