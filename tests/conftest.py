"""What tests of several folders use."""

import importlib.util
import os
import pwd
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType

import pytest
import torch
from examples import MANY
from postgres import Server, server
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from clusterprune.merge.bn_images import FromNorms

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A job in the background of a script ignores Ctrl-C, and so would every process that the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Let a run of the slow tests draw all examples, and images be made of norms in an eighth of the usual steps.

    ``-m "slow or hypothesis"`` has the laws among the slow. Fewer steps where a test states none make images that can
    be worked with; they are set before any test file is read, for some make settings there and compare them later.
    """
    if config.option.markexpr.startswith("slow"):
        os.environ[MANY] = "1"
    make = FromNorms.__init__
    usual = zip(fields(FromNorms), make.__defaults__ or (), strict=True)
    make.__defaults__ = tuple(25 if field.name == "steps" else value for field, value in usual)


@dataclass(frozen=True)
class Size:
    """Parameters, and multiply-adds of the convolutions and linear layers for one image.

    The papers' counter adds four operations for each element that a batch norm writes.
    """

    params: int
    macs: int
    macs_with_batch_norm: int


@pytest.fixture(scope="session")
def script() -> Callable[[Path], ModuleType]:
    """Return a function from a script, which tests start as a process of its own, to the module that it is."""

    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def plain_folder(tmp_path: Path) -> Iterator[Path]:
    """Return a folder of a user to whom closed folders are closed: root is somebody else while the test runs."""
    if os.name != "posix" or os.geteuid() != 0:
        yield tmp_path
        return
    nobody = pwd.getpwnam("nobody")
    # Those that pytest makes are root's own, on the way there too.
    folder = Path(tempfile.mkdtemp(prefix="plain"))
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    group, groups = os.getegid(), os.getgroups()
    os.setgroups([])
    os.setegid(nobody.pw_gid)
    # The real user too, which os.access asks for; the saved one is still root, to come back.
    os.setresuid(nobody.pw_uid, nobody.pw_uid, 0)
    try:
        yield folder
    finally:
        os.setresuid(0, 0, 0)
        os.setegid(group)
        os.setgroups(groups)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """Return a PostgreSQL server of our own; tests that use it are skipped where there is none."""
    with server() as running:
        yield running


@pytest.fixture
def measure() -> Callable[..., Size]:
    """Return a function that counts without storage: the network is made on the meta device."""

    def count(factory: Callable[[], nn.Module], side: int = 32) -> Size:
        with torch.device("meta"):
            model = factory().eval()
            example = torch.empty(1, 3, side, side)
        written = []
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda _m, _i, output: written.append(output.numel()))
        with FlopCounterMode(display=False) as counter:
            model(example)
        macs = counter.get_total_flops() // 2
        params = sum(parameter.numel() for parameter in model.parameters())
        return Size(params, macs, macs + 4 * sum(written))

    return count
