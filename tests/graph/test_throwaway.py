"""Whatever a forward does to its module, the user's model is after every call what it was before."""

import random
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from examples import first
from torch import Tensor, nn

import clusterprune as cp
from clusterprune import data
from clusterprune.clustering import Agglomerative
from clusterprune.errors import TraceError
from clusterprune.evaluate import latency, macs
from clusterprune.tasks import Classification
from clusterprune.train import TrainConfig

SEEN: list[Tensor] = []
COUNT = 0


class Base(nn.Module):
    """A few layers; what a forward does besides is up to its subclasses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 4, 1)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)).relu()
        return self.b(self.meddle(x)).mean((2, 3))

    def meddle(self, x: Tensor) -> Tensor:
        return x


class CachedGrid(Base):
    """Remembers a grid and the shape that it is for, in class attributes that instances hide, as YOLOv8 heads do."""

    grid, shape = torch.empty(0), None

    def meddle(self, x: Tensor) -> Tensor:
        if self.shape != x.shape:
            self.grid, self.shape = torch.arange(float(x.shape[3])).expand(x.shape[2:]), x.shape
        return x + self.grid


class Containers(Base):
    """Fills lists, dictionaries, sets and queues, also those inside others and those on other modules."""

    def __init__(self) -> None:
        super().__init__()
        self.list, self.dict, self.set, self.queue = [], {"x": [1, {"y": None}]}, {1}, deque([1], maxlen=3)
        self.ordered = OrderedDict(a=1)
        self.b.seen = []

    def meddle(self, x: Tensor) -> Tensor:
        self.list.append(x)
        self.dict["x"][1]["y"] = x
        self.dict["new"] = x
        self.set.add(len(self.list) + 1)
        self.queue.append(x)
        self.ordered.move_to_end("a")
        self.ordered["b"] = x
        self.b.seen.append(x)
        self.b.last, self.a.stride_seen = x, x.stride()
        return x


class Buffers(Base):
    """Counts and averages in buffers, in place and by new ones, in evaluation too; and in a tensor that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(12))
        self.register_buffer("unsaved", torch.ones(3), persistent=False)
        self.plain, self.nested = torch.zeros(3), [torch.zeros(2)]

    def meddle(self, x: Tensor) -> Tensor:
        self.count += 1
        self.average.mul_(0.9).add_(x.mean((0, 2, 3)), alpha=0.1)
        self.unsaved = self.unsaved * 2
        self.plain.add_(1)
        self.nested[0].sub_(1)
        return x * (1 + 0 * self.count) + 0 * self.plain.sum()


class Statistics(Base):
    """Has a batch norm that standardises over the batch in evaluation, and so moves its averages."""

    def meddle(self, x: Tensor) -> Tensor:
        norm = self.norm
        return nn.functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True)


class Recorder:
    """Remembers what it is shown."""

    def __init__(self) -> None:
        self.shown: Any = None

    def __call__(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.shown = output


class Hooked(Base):
    """Has hooks: a closure over a list, one over the model itself, an object, a bound method, a global list."""

    def __init__(self) -> None:
        super().__init__()
        maps: list[Tensor] = []
        self.maps, self.recorder = maps, Recorder()
        self.a.register_forward_hook(lambda _m, _i, output: maps.append(output))
        self.a.register_forward_hook(self.recorder)
        self.norm.register_forward_pre_hook(lambda _m, inputs: self.notice(inputs[0]))
        self.b.register_forward_hook(lambda _m, _i, output: SEEN.append(output))
        self.b.register_forward_pre_hook(self.look, with_kwargs=True)

    def notice(self, x: Tensor) -> None:
        self.noticed = x

    def look(self, _module: nn.Module, args: Any, kwargs: Any) -> None:
        self.looked = (args, kwargs)


class Replaced(Base):
    """Has a forward of its own on the instance, that has closed over the model."""

    def __init__(self) -> None:
        super().__init__()

        def forward(x: Tensor) -> Tensor:
            self.last = self.a(x)
            return self.b(self.norm(self.last).relu()).mean((2, 3))

        self.forward = forward


class Surroundings(Base):
    """Changes its class, and global variables."""

    calls: ClassVar[list[int]] = []
    latest = None

    def meddle(self, x: Tensor) -> Tensor:
        global COUNT  # noqa: PLW0603
        COUNT += 1
        SEEN.append(x)
        self.calls.append(1)
        type(self).latest = x
        type(self).added = x
        return x


class Dice(Base):
    """Throws dice: torch's, Python's, NumPy's, and its own."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.numbers = random.Random(0), np.random.default_rng(0)
        self.generator = torch.Generator().manual_seed(0)

    def meddle(self, x: Tensor) -> Tensor:
        torch.manual_seed(3)
        random.random()
        self.own.random()
        self.numbers.random()
        np.random.rand()
        return x + 0 * torch.rand(1)


class Modes(Base):
    """Changes its weights when its mode changes, as some adapters do, and counts the changes."""

    changes = 0

    def train(self, mode: bool = True) -> "Modes":
        super().train(mode)
        self.changes += 1
        with torch.no_grad():
            self.b.weight.data += 1 if mode else -1
        self.b.weight.requires_grad_(mode)
        return self

    def meddle(self, x: Tensor) -> Tensor:
        return x


class Uncopyable(Base):
    """Holds what cannot be copied, an activation with its history, and a weak reference to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.stream, self.me = threading.Lock(), (i for i in range(3)), weakref.ref(self)
        self.history = self.b.weight * 2

    def meddle(self, x: Tensor) -> Tensor:
        with self.lock:
            module = self.me()
            assert module is not None
            module.history = x
        return x


NASTY: list[Callable[[], Base]] = [
    CachedGrid, Containers, Buffers, Statistics, Hooked, Replaced, Surroundings, Dice, Modes, Uncopyable,
]  # fmt: skip


def state_of(value: Any, seen: dict[int, Any] | None = None) -> Any:
    """Describe all that can be reached from a value, down to the bytes of tensors and the identity of objects."""
    seen = {} if seen is None else seen
    if isinstance(value, (type(None), bool, int, float, str, bytes, type)):
        return value
    if id(value) in seen:
        return ("seen", id(value))
    seen[id(value)] = value
    if isinstance(value, Tensor):
        assert type(value) in (Tensor, nn.Parameter), f"a {type(value).__name__} was left behind"
        data = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return (id(value), type(value), value.shape, value.dtype, value.requires_grad, data)
    if isinstance(value, dict):
        return (id(value), [(key, state_of(part, seen)) for key, part in value.items()])
    if isinstance(value, (list, tuple, deque)):
        return (None if isinstance(value, tuple) else id(value), [state_of(part, seen) for part in value])
    if isinstance(value, (set, frozenset)):
        return (id(value), sorted(map(repr, value)))
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if callable(value) and not isinstance(value, (nn.Module, Recorder)):
        cells = tuple(cell.cell_contents for cell in getattr(value, "__closure__", None) or ())
        return (id(value) if not hasattr(value, "__self__") else None, state_of(cells, seen))
    return (id(value), type(value).__qualname__, state_of(vars(value), seen) if hasattr(value, "__dict__") else None)


def everything(model: nn.Module) -> Any:
    kind = tuple((name, value) for name, value in vars(type(model)).items() if not name.startswith("__"))
    dice = str((torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()))
    return state_of((model, kind, SEEN, COUNT, dice))


IMAGES = torch.randn(24, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def calls(model: nn.Module) -> list[tuple[str, Callable[[], Any]]]:
    """List every public call that looks at a model, each after those that it needs."""
    graph = cp.trace(model, IMAGES[:1])
    plan = cp.oneshot(graph, IMAGES, keep_macs=0.6)
    clusters = Agglomerative(n_clusters=8)
    return [
        ("oneshot", lambda: cp.oneshot(graph, IMAGES, keep_macs=0.6)),
        ("without data", lambda: cp.oneshot(graph, keep_macs=0.6)),
        ("plan", lambda: cp.cluster(graph, IMAGES, clustering=clusters, merging="refit")),
        ("taylor", lambda: cp.prune_by(graph, "taylor", keep_macs=0.6, images=IMAGES, labels=torch.zeros(24).long())),
        ("hrank", lambda: cp.prune_by(graph, "hrank", keep_macs=0.6, images=IMAGES)),
        ("apply", lambda: cp.apply(model, plan, graph=graph)),
        ("macs", lambda: macs(model, IMAGES[:1])),
        ("latency", lambda: latency(model, IMAGES[:1], runs=1, warmup=0)),
    ]


@pytest.mark.parametrize("kind", NASTY)
@pytest.mark.parametrize("training", [False, True])
def test_a_trace_changes_nothing_whatever_a_forward_does(kind: Callable[[], Base], training: bool) -> None:
    torch.manual_seed(0)
    model = kind()
    model.training = training
    model.b.train(not training)
    model.norm.weight.requires_grad_(False)
    before = everything(model)
    graph = cp.trace(model, IMAGES[:1])
    assert graph.by_name["a"].frozen is None
    assert everything(model) == before
    assert graph.batch_size.traced == 1
    assert everything(model) == before, "the second export left something behind"


@pytest.mark.parametrize("kind", first(2, [Buffers, Uncopyable, CachedGrid, Containers, Statistics]))
def test_no_call_changes_anything_in_a_model(kind: Callable[[], Base]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    before, images = everything(model), IMAGES.clone()
    for name, call in calls(model):
        if (name, kind) in {("apply", Uncopyable), ("macs", Containers), ("latency", Containers)}:
            continue  # the first cannot be; the others run the model itself, which appends to its own lists
        call()
        assert everything(model) == before, f"{name} left something behind"
    assert torch.equal(IMAGES, images)


def test_measuring_throws_the_same_dice_every_time_and_not_the_users() -> None:
    class Noisy(Base):
        def meddle(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.3, training=True) + torch.rand(1)

    model = Noisy().eval()
    graph = cp.trace(model, IMAGES[:1])
    before = everything(model)
    first = cp.oneshot(graph, IMAGES, keep_macs=0.6)
    assert everything(model) == before
    torch.manual_seed(7)
    assert cp.oneshot(graph, IMAGES, keep_macs=0.6) == first


@pytest.mark.parametrize("kind", [Containers, Buffers])
def test_icp_leaves_the_model_alone(kind: type[Base]) -> None:
    class Grey(kind):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(1, 12, 3)
            self.b.weight, self.b.bias = nn.Parameter(torch.randn(10, 12, 1, 1)), nn.Parameter(torch.zeros(10))

    images, held_out = data.holdout(data.sample(data.load("digits", image_size=8).train, 80, 0), 0.2)
    model = Grey().eval()
    before = everything(model)
    config = cp.ICP(keep_macs=0.6, cut=cp.ClusterCut(min_samples=2, layers="all"), steps=1, samples=16)
    training = TrainConfig(epochs=1, batch_size=32, augment="none", precision="float32", device="cpu")
    task = Classification(images, held_out, mean=(0.3,), std=(0.4,))
    config.run(cp.Network(model, torch.zeros(1, 1, 8, 8)), task, cp.Work(training=training))
    after = everything(model)
    assert after[1][:4] == before[1][:4], "all but the dice"


def test_images_that_a_forward_writes_into_stay_as_they_are() -> None:
    class InPlace(Base):
        def forward(self, x: Tensor) -> Tensor:
            x.view(len(x), -1).sub_(1)
            return super().forward(x)

    images = IMAGES.clone()
    model = InPlace().eval()
    for name, call in calls(model):
        call()
        assert torch.equal(IMAGES, images), name


def test_a_failed_trace_leaves_nothing_behind_either() -> None:
    class Fails(Buffers):
        def meddle(self, x: Tensor) -> Tensor:
            x = super().meddle(x)
            self.last = x
            return x if x.sum() > 0 else -x

    model = Fails()
    before = everything(model)
    with pytest.raises(TraceError, match="cannot export Fails"):
        cp.trace(model, IMAGES[:1])
    with pytest.raises(TraceError, match="does not run on an example"):
        cp.trace(model, IMAGES[:1, :2])
    assert everything(model) == before


def test_a_traced_constant_is_what_it_was_before_the_trace() -> None:
    class Counts(Base):
        def __init__(self) -> None:
            super().__init__()
            self.steps = torch.zeros(())

        def meddle(self, x: Tensor) -> Tensor:
            self.steps.add_(1)
            return x + self.steps

    model = Counts()
    (constant,) = cp.trace(model, IMAGES[:1]).constants.values()
    assert torch.equal(constant, torch.zeros(()))
    assert constant is not model.steps
