from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clusterprune import tasks, train

WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture(scope="session")
def worker(script: Callable[[Path], ModuleType]) -> ModuleType:
    """The module worker.py; its attribute __file__ is the script."""
    return script(WORKER)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums over several threads may round differently from run to run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fit(worker: ModuleType) -> Callable[..., train.TrainResult]:
    """`train.fit` with the worker's model, data and config where none are given."""

    def call(model: nn.Module | None = None, **given: Any) -> train.TrainResult:
        # `momentum` is also an argument of fit: buffers by name.
        settings = [key for key in given if key in train.TrainConfig.model_fields and not isinstance(given[key], dict)]
        changes = {key: given.pop(key) for key in settings}
        config = given.pop("config", train.TrainConfig(**{**worker.CONFIG.model_dump(), **changes}))
        usual = {
            "train": worker.images(),
            "validation": worker.images(50, seed=1),
            "mean": worker.MEAN,
            "std": worker.STD,
        }
        task = tasks.Classification(**{name: given.pop(name, value) for name, value in usual.items()})
        return train.fit(worker.network() if model is None else model, task, config, **given)

    return call


@pytest.fixture(scope="session")
def finished(worker: ModuleType) -> dict[str, Tensor]:
    """The weights at the end of the worker's run when nothing stops it."""
    torch.set_num_threads(1)
    model = worker.network()
    train.fit(model, worker.task(), worker.CONFIG)
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def same() -> Callable[[nn.Module | dict[str, Tensor], nn.Module | dict[str, Tensor]], bool]:
    """Whether two models have bit-equal states."""

    def check(left: nn.Module | dict[str, Tensor], right: nn.Module | dict[str, Tensor]) -> bool:
        a, b = (m.state_dict() if isinstance(m, nn.Module) else m for m in (left, right))
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    return check
