"""Arguments of the wrong kind: each has its own error, which names the argument, its value and what to write."""

import copy
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import clusterprune as cp
from clusterprune import data, evaluate
from clusterprune.clustering import KMeans
from clusterprune.errors import ArgumentError, ClusterpruneError, ModelError, PlanError
from clusterprune.models import load_weights
from clusterprune.similarity import Filters
from clusterprune.tasks import Classification
from clusterprune.train import TrainConfig, fit

IMAGES = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


@pytest.fixture(scope="module")
def graph() -> cp.ChannelGraph:
    return cp.trace(network(), IMAGES[:1])


@pytest.fixture(scope="module")
def plan(graph: cp.ChannelGraph) -> cp.Plan:
    return cp.Plan.of(graph, (cp.Merge("0", [0, 2, 3]),))


def split() -> data.Split:
    pixels = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
    return data.Split.from_tensors(pixels, torch.arange(8) % 4, classes=tuple("abcd"))


STATISTICS = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
PLANNERS: dict[str, Callable[..., Any]] = {
    "oneshot": lambda graph, images=IMAGES, **more: cp.oneshot(graph, images, **{"keep_macs": 0.5} | more),
    "plan": lambda graph, images=IMAGES, **more: cp.cluster(graph, images, **{"keep_macs": 0.5} | more),
    "prune_by": lambda graph, images=IMAGES, **more: cp.prune_by(
        graph, "l1", images=images, merging="least_squares", **{"keep_macs": 0.5} | more
    ),
}
LOADER = DataLoader(TensorDataset(IMAGES, torch.zeros(32)), batch_size=8)

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"graph": network()}, r"graph must be a traced model, but got the model itself, a Sequential; trace the model"),
    ({"graph": "resnet20"}, r"graph must be a traced model, but got graph=str"),
    ({"images": list(IMAGES.numpy())}, r"a list of ndarray; torch\.stack"),
    ({"images": IMAGES.numpy()}, r"images=ndarray; torch\.from_numpy"),
    ({"images": split()}, r"images=Split; normalize"),
    ({"images": "folder:photos"}, r"images='folder:photos'; clusterprune\.data\.load"),
    ({"images": {"x": IMAGES}}, "a mapping; give a tuple"),
    ({"images": 256}, "images=256; 256 to 1,024 normalised images"),
    ({"images": IMAGES.double()}, "do not fit the traced example"),
    ({"images": IMAGES[0]}, "do not fit the traced example"),
    ({"images": torch.tensor(1.0)}, "do not fit the traced example"),
    ({"images": IMAGES[:1]}, "too few"),
    ({"images": IMAGES / 0}, "NaN or infinity"),
    ({"images": iter([])}, "holds no batch"),
    ({"images": [["a", "b"]]}, "a batch of tensors is wanted"),
    ({"keep_macs": "half"}, r"keep_macs must be a fraction in .* got keep_macs='half'; 0\.5 or 50% keeps half"),
    ({"kep_macs": 0.5}, r"kep_macs=0\.5 is not an argument; keep_macs is"),
    ({"keep_macs": True}, "keep_macs must be a number, but got keep_macs=True"),
    ({"keep_macs": [0.5]}, "keep_macs must be a number"),
    ({"keep_macs": torch.tensor(0.5)}, "keep_macs must be a number"),
    ({"keep_macs": float("nan")}, r"fraction in \(0, 1\], but got keep_macs=nan"),
    ({"keep_macs": 50}, r"fraction in \(0, 1\], but got keep_macs=50"),
    ({"keep_macs": -0.5}, r"fraction in \(0, 1\]"),
    ({"round_to": 0}, "round_to must be a whole number"),
    ({"round_to": "8"}, "round_to must be a whole number"),
    ({"min_width": True}, "min_width must be a whole number"),
    ({"seed": "zero"}, "seed must be a whole number"),
    ({"seed": -1}, "seed must be a whole number"),
    ({"seed": 10**20}, "seed must be a whole number"),
    ({"seed": 0.5}, "seed must be a whole number"),
    ({"progress": 3}, "progress must be a function"),
    ({"ignore": [3]}, r"ignore must be a glob or a list of globs.*got ignore=\[3\]"),
    ({"ignore": None}, "ignore must be a glob"),
    ({"ignore": "body.0"}, "ignore='body.0' matches no group or layer"),
]


@pytest.mark.parametrize("name", PLANNERS)
@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=range(len(WRONG)))
def test_methods_that_plan(name: str, wrong: dict[str, Any], message: str, graph: cp.ChannelGraph) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        PLANNERS[name](**{"graph": graph} | wrong)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", PLANNERS)
def test_images_in_the_forms_that_people_have_them_in(name: str, graph: cp.ChannelGraph) -> None:
    plain = PLANNERS[name](graph, IMAGES)
    for form in (LOADER, iter(LOADER), list(IMAGES), [IMAGES[:20], IMAGES[20:]]):
        assert PLANNERS[name](graph, form) == plain


@pytest.mark.parametrize("name", PLANNERS)
def test_no_target_at_all(name: str, graph: cp.ChannelGraph) -> None:
    if name == "plan":  # the clusters decide
        assert PLANNERS[name](graph, keep_macs=None).merges is not None
        return
    with pytest.raises(ArgumentError, match="at least one of keep_macs, keep_params, keep_latency"):
        PLANNERS[name](graph, keep_macs=None)


def test_a_text_is_one_glob(graph: cp.ChannelGraph) -> None:
    for ignored in ("0", ["0"], ("0",), {"0"}):
        assert {m.group for m in cp.oneshot(graph, IMAGES, keep_macs=0.7, ignore=ignored).merges} == {"2"}
        assert [g.name for g in cp.trace(graph.model, IMAGES[:1], ignore=ignored).prunable] == ["2"]
    assert [g.name for g in graph.only("2").prunable] == ["2"]


TASK = Classification(split(), **STATISTICS)
CALLS: list[tuple[Callable[[SimpleNamespace], Any], str]] = [
    (lambda s: cp.apply(s.plan, s.model), r"apply takes the model first.*write apply\(model, plan\)"),
    (lambda s: cp.apply(s.model, s.graph), "plan must be a Plan, but got plan=ChannelGraph"),
    (lambda s: cp.apply(s.graph, s.plan), "the network is graph.model"),
    (lambda s: cp.apply(s.model, s.plan, graph=s.model), "graph must be a traced model"),
    (lambda s: cp.apply(nn.Sequential, s.plan), "but got the class Sequential; build it first"),
    (lambda s: cp.save("folder", s.model), "model must be"),
    (lambda s: cp.save(s.model, s.model), "folder must be a path"),
    (lambda s: cp.save(s.model.state_dict(), s.out), "model must be a torch.nn.Module"),
    (lambda s: cp.load(network, s.out), "folder must be a path"),
    (lambda s: cp.load(s.out, s.model), "factory must be a function that builds the original model"),
    (lambda s: cp.load(s.out, "resnet20"), "factory must be a function"),
    (lambda s: cp.load(s.small, lambda size: s.model), "factory raised TypeError .*without arguments"),
    (lambda s: cp.Plan.load(3), "folder must be the path"),
    (lambda s: load_weights("resnet20", "w.pt"), "model must be a torch.nn.Module"),
    (lambda s: cp.Merge("0", [0.5, 1]), "whole numbers"),
    (lambda s: cp.Merge("0", "012"), "whole numbers"),
    (lambda s: cp.Merge("0", None), "whole numbers"),
    (lambda s: cp.Merge("0", np.array([True, False])), "is a mask; give the indices"),
    (lambda s: cp.Merge("0", torch.ones(3, dtype=torch.bool)), "is a mask; give the indices"),
    (lambda s: cp.Merge("0", [[0, 1]]), "whole numbers"),
    (lambda s: cp.trace(nn.Conv2d, IMAGES), "torch.nn.Module"),
    (lambda s: cp.oneshot(s.graph, IMAGES, keep_macs=0.5, config="fast"), "config must be a OneShot"),
    (lambda s: cp.cluster(s.graph, IMAGES, similarity="nearness"), "similarity"),
    (lambda s: cp.cluster(s.graph, IMAGES, clustering="kmeans"), "clustering must be an object such as DBSCAN"),
    (lambda s: cp.cluster(s.graph, IMAGES, keep_macs=0.5, keep_params=0.5), r"keep_macs=0\.5, keep_params=0\.5"),
    (lambda s: cp.cluster(s.graph, IMAGES, merging="sum"), "merging must be one of"),
    (lambda s: cp.cluster(s.graph, IMAGES, merging=["add"]), "merging must be one of"),
    (lambda s: cp.prune_by(s.graph, "l3", keep_macs=0.5), "criterion must be one of"),
    (lambda s: cp.prune_by(s.graph, ["l1"], keep_macs=0.5), "criterion must be one of"),
    (lambda s: cp.prune_by(s.model, "l1", keep_macs=0.5), "trace the model first"),
    (lambda s: cp.prune_by(s.graph, "taylor", images=IMAGES, labels=[0], keep_macs=0.5), "labels must be a tensor"),
    (lambda s: cp.inner_groups(s.model), "trace the model first"),
    (lambda s: s.graph.only("nothing"), "names=nothing cannot be cut"),
    (lambda s: cp.ICP(0.5).run(s.graph, TASK), r"network must be of the type Network.*write Network\(model, example\)"),
    (lambda s: cp.ICP(0.5).run(cp.Network(s.graph, IMAGES[:1]), TASK), "the network is graph.model"),
    (lambda s: cp.ICP(0.5).run(cp.Network(s.model, IMAGES[:1]), split()), "task must be a task, but got task=Split"),
    (lambda s: cp.ICP(0.5).run(cp.Network(s.model, IMAGES[:1]), TASK, "runs"), "work must be of the type Work"),
    (lambda s: cp.ICP(0.5).run(cp.Network(s.model, IMAGES[:1]), TASK, cp.Work(training={})), "training must be of"),
    (lambda s: cp.ICP(0.5).run(cp.Network(s.model, IMAGES[:1]), TASK, cp.Work(training=None)), "trains, but training"),
    (lambda s: fit("model", Classification(split(), **STATISTICS), TrainConfig()), "model must be"),
    (lambda s: fit(s.model, Classification(split(), **STATISTICS), {"epochs": 1}), "must be of the type TrainConfig"),
    (lambda s: fit(s.model, split(), TrainConfig()), "task must be a task with images to train on"),
    (lambda s: Classification(split(), mean="imagenet", std=(1,) * 3), "mean must have one number"),
    (lambda s: evaluate.macs(s.graph, IMAGES), "the network is graph.model"),
    (lambda s: evaluate.macs(s.model, 32), "example must be a tensor"),
    (lambda s: evaluate.params(s.graph), "the network is graph.model"),
    (lambda s: evaluate.latency("model", IMAGES), "model must be"),
    (lambda s: evaluate.latency(s.model, IMAGES, runs=2.5), "runs must be a whole number"),
    (lambda s: evaluate.latency(s.model, IMAGES, runs=True), "runs must be a whole number"),
    (lambda s: evaluate.accuracy(s.model, LOADER, **STATISTICS), "split must be a Split"),
    (lambda s: evaluate.accuracy(s.graph, split(), **STATISTICS), "the network is graph.model"),
    (lambda s: evaluate.accuracy(s.model, split(), mean=(0.5,) * 3, std=float("nan")), "one positive number"),
    (lambda s: evaluate.accuracy(s.model, split(), topk=1, **STATISTICS), "topk may contain 1 and 5"),
    (lambda s: data.normalize(np.zeros((1, 3, 8, 8)), (0.5,) * 3, (0.5,) * 3), "images must be of the type Tensor"),
]  # fmt: skip


@pytest.fixture
def scene(graph: cp.ChannelGraph, plan: cp.Plan, tmp_path: Path) -> SimpleNamespace:
    cp.save(graph.model, tmp_path / "small")
    return SimpleNamespace(graph=graph, model=graph.model, plan=plan, out=tmp_path / "out", small=tmp_path / "small")


@pytest.mark.parametrize(("call", "message"), CALLS, ids=range(len(CALLS)))
def test_other_calls(call: Callable[[SimpleNamespace], Any], message: str, scene: SimpleNamespace) -> None:
    with pytest.raises(ClusterpruneError, match=message):
        call(scene)
    assert not scene.out.exists()


def test_kept_channels_may_be_any_sequence_of_whole_numbers() -> None:
    for kept in ([0, 2], (0, 2), range(0, 4, 2), np.array([0, 2], np.uint8), torch.tensor([0, 2]), np.int16([0, 2])):
        merge = cp.Merge("0", kept)
        assert merge.kept.dtype == np.int64
        assert merge.kept.tolist() == [0, 2]


def test_groups_merged_twice_are_refused(graph: cp.ChannelGraph) -> None:
    twice = cp.Plan.of(graph, (cp.Merge("0", [0, 1]), cp.Merge("0", [0, 2])))
    with pytest.raises(PlanError, match="'0' twice"):
        cp.apply(graph.model, twice, graph=graph)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model[2].bias[1] = torch.nan
    with pytest.raises(ModelError, match=r"the weight '2\.bias' holds NaN"):
        cp.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_notes_that_json_cannot_hold(graph: cp.ChannelGraph, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="notes"):
        cp.Plan.of(graph, (), loader=LOADER).save(tmp_path / "plan")
    assert not (tmp_path / "plan").exists()


@pytest.mark.parametrize("move", [lambda g: pickle.loads(pickle.dumps(g)), copy.deepcopy])
def test_a_graph_is_pickled_as_model_and_example(graph: cp.ChannelGraph, move: Callable[[Any], Any]) -> None:
    chosen = graph.only(["2"])
    again = move(chosen)
    assert again.model is not graph.model
    assert str(again) == str(chosen)
    options: dict[str, Any] = {"keep_macs": 0.8, "similarity": Filters(), "clustering": KMeans(n_clusters=2)}
    first, second = (cp.cluster(g, merging="drop", **options) for g in (chosen, again))
    assert first == second
    with torch.no_grad():
        assert torch.equal(cp.apply(again.model, first)(IMAGES), cp.apply(graph.model, first)(IMAGES))


class TestNamesOfBefore:
    def test_they_are_taken_with_a_warning(self):
        with pytest.warns(FutureWarning, match="price is called sensitivity"):
            assert cp.OneShot(price="uniform", residual_streams=False) == cp.OneShot(
                sensitivity="uniform", residual_streams=False
            )
        graph = cp.trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), torch.zeros(1, 3, 8, 8))
        with pytest.warns(FutureWarning, match="merge is called merging"):
            before = cp.prune_by(graph, "l1", keep_macs=0.6, merge="drop")
        assert before == cp.prune_by(graph, "l1", keep_macs=0.6, merging="drop")

    def test_both_names_are_one_too_many(self):
        with pytest.raises(ArgumentError, match="called merging now, and both are given"):
            cp.cluster(None, merge="drop", merging="add")
        assert replace(cp.OneShot(), sensitivity="error").sensitivity == "error"


def test_what_type_checkers_read_is_what_there_is():
    stub = (Path(cp.__file__).parent / "__init__.pyi").read_text()
    found = {name: home for home, name in re.findall(r"^from clusterprune\.([\w.]+) import \w+ as (\w+)$", stub, re.M)}
    assert found == cp._HOMES
