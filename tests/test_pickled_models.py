"""A compact model is the user's own class: PyTorch's own files of it are read where this package is not installed."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import fx

import clusterprune as cp
from clusterprune.errors import ModelError
from clusterprune.surgery import history

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.stem(x))))
"""
FIXED = """
import torch
from torch import nn


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = torch.relu(self.a(x))
        y = torch.relu(self.b(x) + nn.functional.pad(x, (0, 0, 0, 0, 4, 4)))
        return self.c(y).view(x.shape[0], 4, 8, 8)
"""
BLOCK = """
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "clusterprune":
            raise ImportError(name)


sys.meta_path.insert(0, Blocker())
import torch

small = torch.load("small.pt", weights_only=False)
small(torch.zeros(1, 3, 8, 8)).sum().backward()
torch.save(small, "again.pt")
"""
READ = f"""{BLOCK}
print(small.stem.out_channels, len(small.clusterprune_stages), any("clusterprune" in name for name in sys.modules))
"""

REFUSED = f"""{BLOCK}
try:
    small(torch.zeros(1, 3, 16, 16))
except AssertionError as error:
    print(error)
"""


def test_a_pickled_model_is_read_without_this_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_network.py").write_text(textwrap.dedent(NETWORK))
    monkeypatch.syspath_prepend(tmp_path)
    from users_network import Net  # pyright: ignore[reportMissingImports]

    model = Net().eval()
    graph = cp.trace(model, torch.zeros(1, 3, 8, 8))
    small = cp.apply(model, cp.Plan.of(graph, (cp.Merge("stem", [0, 3, 5], {}, {"head.weight": torch.ones(8)}),)))
    assert type(small) is Net
    torch.save(small, tmp_path / "small.pt")
    done = subprocess.run(
        [sys.executable, "-c", READ], capture_output=True, text=True, check=False, cwd=tmp_path, env={"PYTHONPATH": "."}
    )
    assert done.stdout.split() == ["3", "1", "False"], done.stderr
    # And back here, where its history still counts.
    again = torch.load(tmp_path / "again.pt", weights_only=False)
    assert history.describe(again) == history.describe(small)
    cp.save(again, tmp_path / "compact")
    loaded = cp.load(tmp_path / "compact", Net)
    assert torch.equal(loaded(torch.ones(1, 3, 8, 8)), small(torch.ones(1, 3, 8, 8)))


def test_a_pickled_model_that_was_rebuilt_refuses_other_sizes_without_this_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_fixed_network.py").write_text(textwrap.dedent(FIXED))
    monkeypatch.syspath_prepend(tmp_path)
    from users_fixed_network import Fixed  # pyright: ignore[reportMissingImports]

    model = Fixed().eval()
    graph = cp.trace(model, torch.zeros(1, 3, 8, 8))
    small = cp.apply(model, cp.Plan.of(graph, (cp.Merge("b", [0, 3, 5]),)), graph=graph)
    assert isinstance(small, fx.GraphModule)
    expected = small(torch.ones(1, 3, 8, 8))
    torch.save(small, tmp_path / "small.pt")
    with pytest.raises(ModelError, match=r"dimension 2 must be 8.*shape \(1, 3, 16, 16\)"):
        small(torch.zeros(1, 3, 16, 16))  # pickling it has changed nothing
    done = subprocess.run(
        [sys.executable, "-c", REFUSED], capture_output=True, text=True, check=False, cwd=tmp_path, env={}
    )
    assert "dimension 2 must be 8, as it was traced" in done.stdout, done.stderr
    again = torch.load(tmp_path / "again.pt", weights_only=False)
    assert history.describe(again) == history.describe(small)
    assert torch.equal(again(torch.ones(1, 3, 8, 8)), expected)
