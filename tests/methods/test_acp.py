"""ACP on handwritten digits: clustered widths, the search around them, and training from random weights."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples import first
from small_networks import Grouped, Plain, ready
from torch import nn

import clusterprune as cp
from clusterprune import data, evaluate, train
from clusterprune.budget.allocation import CostModel
from clusterprune.data import Split
from clusterprune.errors import ArgumentError, ModelError
from clusterprune.methods import ClusterCut, Keep, Network, OneShotCut, Outcome, Work
from clusterprune.methods import acp_search as module
from clusterprune.methods.acp import ACP, retrain_epochs
from clusterprune.methods.acp_search import Found, StructureFitness, find, widths_of
from clusterprune.methods.acp_structures import WidthPlanner, from_random, macs_of
from clusterprune.methods.layers import inner_groups
from clusterprune.models import ResNet
from clusterprune.models.reinitialise import reinitialise_
from clusterprune.search import work
from clusterprune.tasks import Classification
from clusterprune.train import TrainConfig

MEAN, STD = (0.3,), (0.4,)
FAST = TrainConfig(
    epochs=1, batch_size=64, lr=0.05, schedule="constant", augment="none", precision="float32", device="cpu"
)
QUICK = {"samples": 32, "min_samples": 2, "particles": 2, "cycles": 1, "fitness": "merge"}


class Small(ResNet):
    """A residual network of three blocks that reads grey images."""

    def __init__(self) -> None:
        super().__init__(1)
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)


def plan_for_widths(
    graph: cp.ChannelGraph, widths: dict[str, int], images: torch.Tensor | None = None, *, merge: str
) -> cp.Plan:
    return WidthPlanner(graph, images, merge=merge)(widths)


@pytest.fixture(scope="module")
def digits() -> tuple[Split, Split]:
    """256 images to train on, and 64 held out."""
    return data.holdout(data.sample(data.load("digits", image_size=8).train, 320, 0), 0.2)


@pytest.fixture(scope="module")
def graph(digits: tuple[Split, Split]) -> cp.ChannelGraph:
    """A trained network, traced."""
    torch.manual_seed(0)
    model = Small()
    config = FAST.model_copy(update={"epochs": 6, "schedule": "cosine"})
    train.fit(model, Classification(digits[0], mean=MEAN, std=STD), config)
    return cp.trace(model.eval(), torch.zeros(1, 1, 8, 8))


@pytest.fixture
def images(digits: tuple[Split, Split]) -> torch.Tensor:
    return data.normalize(digits[0].images(), MEAN, STD)


def settings(**given: Any) -> ACP:
    """Return small settings for a budget of 0.7, where no ε is given."""
    return ACP.read({**QUICK, **({} if "eps" in given else {"keep_macs": 0.7}), **given})


def fitness_of(graph: cp.ChannelGraph, digits: tuple[Split, Split], config: ACP, **more: Any) -> StructureFitness:
    return StructureFitness(graph, Classification(*digits, mean=MEAN, std=STD), config, **{"training": FAST, **more})


def run(graph: cp.ChannelGraph, digits: tuple[Split, Split], config: ACP | None = None, **given: Any) -> Found:
    fitness = fitness_of(graph, digits, config or settings(), progress=given.get("progress"))
    return find(fitness, **given)


def correct(model: nn.Module, split: Split) -> float:
    return evaluate.accuracy(model, split, mean=MEAN, std=STD, topk=(1,)).top1


def test_the_search_starts_from_clusters_and_noise(graph: cp.ChannelGraph, images: torch.Tensor) -> None:
    inner = graph.only(inner_groups(graph))
    widths = widths_of(inner, images[:64], ClusterCut(eps=0.2, min_samples=2), Keep())
    from sklearn.cluster import DBSCAN

    model, maps = graph.model, {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: maps.update({name: out}))
        for name in widths
    ]
    with torch.no_grad():
        model(images[:64])
    for hook in hooks:
        hook.remove()
    assert list(widths) == ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"]
    for name, width in widths.items():
        points = maps[name].double().mean(0).flatten(1).numpy()
        labels = DBSCAN(eps=0.2, min_samples=2, metric="cosine").fit(points).labels_
        assert width == len(set(labels) - {-1}) + int((labels == -1).sum())
    assert sum(widths.values()) < 16 + 32 + 64


def test_epsilon_is_solved_for_a_target(graph: cp.ChannelGraph, images: torch.Tensor) -> None:
    inner = graph.only(inner_groups(graph))
    widths = widths_of(inner, images[:64], ClusterCut(min_samples=2), Keep(0.5))
    assert 0.4 < macs_of(inner, widths) / macs_of(inner, {}) <= 0.5


@pytest.mark.parametrize("merge", ["drop", "least_squares", "refit"])
def test_a_plan_has_the_widths_it_was_asked_for(graph: cp.ChannelGraph, images: torch.Tensor, merge: str) -> None:
    widths = {"layer1.0.conv1": 5, "layer3.0.conv1": 33}
    plan = plan_for_widths(graph, widths, images, merge=merge)
    small = cp.apply(graph.model, plan, graph=graph)
    assert plan.widths == widths
    assert evaluate.macs(small, graph.example) == macs_of(graph, widths)
    assert small.get_submodule("layer3.0.conv1").out_channels == 33


def test_dropping_keeps_the_largest_filters(graph: cp.ChannelGraph) -> None:
    weight = graph.model.get_submodule("layer2.0.conv1").weight.detach()
    plan = plan_for_widths(graph, {"layer2.0.conv1": 7}, merge="drop")
    largest = np.argsort(-weight.abs().flatten(1).sum(1).numpy())[:7]
    assert plan.merges[0].kept.tolist() == sorted(largest.tolist())


def test_merging_beats_dropping_at_the_same_widths(
    graph: cp.ChannelGraph, images: torch.Tensor, digits: tuple[Split, Split]
) -> None:
    widths = {name: graph.by_name[name].width // 3 for name in inner_groups(graph)}
    right = {
        merge: correct(cp.apply(graph.model, plan_for_widths(graph, widths, images, merge=merge)), digits[0])
        for merge in ("drop", "least_squares", "refit")
    }
    assert right["drop"] < right["least_squares"] <= right["refit"] + 1


def test_widths_of_grouped_convolutions_are_multiples() -> None:
    _, graph, images = ready(Grouped())
    planner = WidthPlanner(graph, images)
    name = next(group.name for group in graph.prunable if group.n_blocks == 3)
    assert len(planner({name: 6}).by_group[name].kept) == 6
    with pytest.raises(ArgumentError, match="give a multiple of 3 up to 12"):
        planner({name: 7})


@pytest.mark.parametrize(("usual", "merge"), [("drop", "refit"), ("refit", "least_squares"), ("least_squares", "drop")])
def test_one_planner_hands_over_in_any_way(usual: str, merge: str) -> None:
    """The same plan as of a planner made for that way, whatever the images were looked at for before."""
    _, graph, images = ready(Plain())
    widths = {group.name: group.width // 2 for group in graph.prunable}
    planner = WidthPlanner(graph, images, merge=usual)
    planner(widths)
    assert planner(widths, merge=merge) == plan_for_widths(graph, widths, images, merge=merge)


@pytest.mark.parametrize(
    ("widths", "message"),
    [({"nowhere": 3}, "names 'nowhere'"), ({"0.0": 0}, r"widths\['0.0'\]=0"), ({"0.0": 13}, "up to 12")],
)
def test_impossible_widths_are_refused(widths: dict, message: str) -> None:
    _, graph, _ = ready(Plain())
    with pytest.raises(ArgumentError, match=message):
        plan_for_widths(graph, widths, merge="drop")
    with pytest.raises(ArgumentError, match="images=None"):
        WidthPlanner(graph, merge="refit")
    with pytest.raises(ArgumentError, match="images=None"):
        WidthPlanner(graph, merge="drop")({}, merge="refit")


def test_a_search_without_training(graph: cp.ChannelGraph, digits: tuple[Split, Split], tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in graph.model.state_dict().items()}
    told: list[str] = []
    result = run(
        graph,
        digits,
        settings(particles=3),
        storage=tmp_path / "run" / "search.db",
        progress=lambda phase, *_: told.append(phase),
    )
    phases = [phase for phase, _ in itertools.groupby(told)]
    assert (phases[0], phases[-1], len(phases)) == ("mean feature maps", "structures", 5)
    whole = macs_of(graph, {})
    assert len(result.history) == 6
    for evaluation in result.history:
        assert macs_of(graph, evaluation.widths) <= 0.7 * whole * (1 + 1e-9)
    fitness = fitness_of(graph, digits, settings(particles=3))
    assert result.value == fitness(result.best)
    assert result.value == max(fitness(result.start), *(e.values[0] for e in result.history))
    assert {m.group: len(m.kept) for m in result.plan.merges} == {
        name: width for name, width in result.best.items() if width < graph.by_name[name].width
    }
    planned = cp.apply(graph.model, plan_for_widths(graph, result.best, merge="drop"), graph=graph)
    assert evaluate.macs(planned, graph.example) <= 0.7 * whole * (1 + 1e-9)
    assert all(torch.equal(value, before[name]) for name, value in graph.model.state_dict().items())
    result.plan.save(tmp_path / "plan")
    assert cp.Plan.load(tmp_path / "plan").notes["widths"] == result.best


@pytest.mark.parametrize(
    ("given", "merge"), [({}, "least_squares"), ({"eps": 0.2, "fitness": "train"}, "drop")], ids=["target", "eps"]
)
def test_without_cycles_the_clustered_widths_are_taken_and_nothing_is_looked_at(
    graph: cp.ChannelGraph, images: torch.Tensor, digits: tuple[Split, Split], given: dict, merge: str,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    config = settings(merging=merge, cycles=0, **given)
    for name in ("search", "fit"):
        monkeypatch.setattr(module, name, None)
    monkeypatch.setattr(evaluate, "metrics", None)
    result = run(graph, digits, config, storage=tmp_path / "search.db")
    inner = graph.only(inner_groups(graph))
    sample = data.normalize(data.sample(digits[0], 32, 0).load()[0], MEAN, STD)
    assert result.start == result.best == widths_of(inner, sample, config.cut, Keep(config.keep_macs))
    assert result.plan.widths == {n: w for n, w in result.best.items() if w < graph.by_name[n].width}
    assert (result.value, result.history, result.storage, list(tmp_path.iterdir())) == (None, (), "", [])
    assert repr(result).startswith("<Found without a search: ")


def test_a_search_around_the_widths_of_one_shot(graph: cp.ChannelGraph, digits: tuple[Split, Split]) -> None:
    config = ACP(keep_macs=0.7, cut=OneShotCut(), samples=32, fitness="merge")
    fitness = fitness_of(graph, digits, config)
    assert fitness.start.keys() == {group.name for group in graph.prunable}
    assert 0.65 * macs_of(graph, {}) < macs_of(graph, fitness.start) <= fitness.limit
    with pytest.raises(ArgumentError, match="give at least one of keep_macs"):
        ACP(cut=OneShotCut())


def test_a_fitness_without_training_is_measured_in_the_precision_of_training(
    graph: cp.ChannelGraph, digits: tuple[Split, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, seen = evaluate.metrics, []

    def metrics(*given: Any, dtype: torch.dtype, **options: Any) -> Any:
        seen.append(dtype)
        return genuine(*given, dtype=dtype, **options)

    monkeypatch.setattr(evaluate, "metrics", metrics)
    for precision, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        training = TrainConfig(**{**FAST.model_dump(), "precision": precision})
        fitness = fitness_of(graph, digits, settings(), training=training)
        small = cp.apply(graph.model, fitness.plan(fitness.start), graph=graph)
        expected = genuine(small, Classification(*digits, mean=MEAN, std=STD), digits[1], dtype=dtype)
        assert fitness(fitness.start) == expected.deciding
        assert seen.pop() == dtype
    half = TrainConfig(**{**FAST.model_dump(), "precision": "float16"})
    with pytest.raises(ArgumentError, match="precision='float16' needs a CUDA device"):
        fitness_of(graph, digits, settings(), training=half)
    fitness_of(graph, digits, settings(fitness="train"), training=half)  # it trains on CUDA


def test_a_search_goes_on_and_is_repeatable(
    graph: cp.ChannelGraph, digits: tuple[Split, Split], tmp_path: Path
) -> None:
    def stop(phase: str, done: int, _total: int) -> None:
        if phase == "structures" and done == 2:
            raise KeyboardInterrupt

    whole = run(graph, digits)
    with pytest.raises(KeyboardInterrupt):
        run(graph, digits, storage=tmp_path / "search.db", progress=stop)
    resumed = run(graph, digits, storage=tmp_path / "search.db")
    assert [(e.widths, e.values) for e in resumed.history] == [(e.widths, e.values) for e in whole.history]
    fitness = fitness_of(graph, digits, settings())
    joined = work(resumed.storage, resumed.study, fitness, repair=fitness.repair)
    assert joined.history == resumed.history


def test_the_published_fitness_trains_every_structure(graph: cp.ChannelGraph, digits: tuple[Split, Split]) -> None:
    result = run(graph, digits, settings(fitness="train"))
    evaluated = [e for e in result.history if e.duplicate_of is None]
    assert evaluated
    fitness = evaluated[0]
    plan = plan_for_widths(graph, fitness.widths, merge="drop")
    small = from_random(graph, plan)
    trained = train.fit(small, Classification(*digits, mean=MEAN, std=STD), FAST)
    assert trained.history[-1]["validation_accuracy"] == fitness.values[0]


def test_candidates_may_inherit(graph: cp.ChannelGraph, digits: tuple[Split, Split]) -> None:
    values = {}
    for inherits in (True, False):
        fitness = fitness_of(graph, digits, settings(fitness="train", candidates_inherit=inherits))
        plan = fitness.plan(fitness.start)
        small = cp.apply(graph.model, plan, graph=graph) if inherits else from_random(graph, plan)
        values[inherits] = fitness(fitness.start)
        trained = train.fit(small, Classification(*digits, mean=MEAN, std=STD), FAST)
        assert values[inherits] == trained.history[-1]["validation_accuracy"]
    assert values[True] > values[False]


def test_equal_multiply_adds_by_hand() -> None:
    """ACP on VGG-16: 51.48 % of 160 epochs' multiply-adds saved make 160 / 0.4852 = 330 epochs."""
    assert retrain_epochs(160, 314.59, 314.59 * (1 - 0.5148)) == 330
    assert retrain_epochs(160, 100, 100) == 160
    with pytest.raises(ArgumentError, match="no more than before_macs"):
        retrain_epochs(160, 100, 120)


@pytest.mark.parametrize("inherit", first(1, [True, False]))
def test_the_last_training(graph: cp.ChannelGraph, digits: tuple[Split, Split], inherit: bool, tmp_path: Path) -> None:
    training = FAST.model_copy(update={"epochs": 2})
    config = settings(cycles=0, retraining_inherits=inherit)
    network, task = Network(graph.model, graph.args[0]), Classification(*digits, mean=MEAN, std=STD)
    made: Outcome = config.run(network, task, Work(tmp_path, training))
    share = evaluate.macs(made.model, network.example) / evaluate.macs(graph.model, network.example)
    assert made.record["epochs"] == round(2 / share) > 2
    assert correct(made.model, digits[1]) == made.record["accuracy"]
    assert not made.model.training
    # It begins where it is said to.
    begun = cp.apply(graph.model, made.plan, graph=graph) if inherit else from_random(graph, made.plan)
    longer = training.model_copy(update={"epochs": made.record["epochs"]})
    assert train.fit(begun, task, longer).validation == made.record["accuracy"]


def test_the_published_swarm() -> None:
    config = ACP(keep_macs=0.5)
    assert (config.particles, config.cycles, config.velocity_max, config.sampler) == (6, 5, 2, "swarm")
    assert (config.merging, config.fitness, config.candidates_inherit) == ("drop", "train", False)


def test_random_weights_are_new_and_repeatable(graph: cp.ChannelGraph) -> None:
    plan = plan_for_widths(graph, {"layer1.0.conv1": 5}, merge="drop")
    kept = cp.apply(graph.model, plan, graph=graph)
    a, b, c = (from_random(graph, plan, seed=seed) for seed in (1, 1, 2))
    made = from_random(graph, plan, factory=Small, seed=1)
    name = "layer1.0.conv1.weight"
    assert a.state_dict()[name].shape == made.state_dict()[name].shape == (5, 16, 3, 3)
    assert torch.equal(a.state_dict()[name], b.state_dict()[name])
    for other in (c, kept, made):
        assert not torch.equal(a.state_dict()[name], other.state_dict()[name])
    assert torch.equal(a.state_dict()["bn1.running_mean"], torch.zeros(16))
    torch.manual_seed(1)
    assert torch.equal(made.state_dict()["linear.weight"], Small().state_dict()["linear.weight"])


def test_a_layer_that_cannot_begin_anew_is_named() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(3))

    with pytest.raises(ModelError, match="1 has parameters but no reset_parameters"):
        reinitialise_(nn.Sequential(nn.Linear(3, 3), Scale()), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either eps or keep_macs"),
        ({"cut": ClusterCut(eps=0.1), "keep_macs": 0.5}, "either eps or keep_macs"),
        ({"keep_macs": 1.5}, "keep_macs"),
        ({"keep_macs": 0.5, "fitness": "luck"}, "fitness must be one of train, merge"),
        ({"keep_macs": 0.5, "merging": "add"}, "merging must be"),
        ({"keep_macs": 0.5, "sampler": "nsga2"}, "sampler must be one of swarm"),
        ({"keep_macs": 0.5, "cycles": -1}, "cycles must be a whole number of at least 0"),
        ({"keep_macs": 0.5, "particles": 0}, "particles must be a whole number of at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ACP(**options)


def test_data_that_do_not_fit_are_refused(graph: cp.ChannelGraph, digits: tuple[Split, Split]) -> None:
    with pytest.raises(ArgumentError, match="samples=9999"):
        run(graph, digits, settings(samples=9999))
    with pytest.raises(ArgumentError, match="validation has no labels; classification needs a class for every image"):
        run(graph, (digits[0], Split.from_tensors(digits[1].images())))


def test_the_bound_on_a_structure(graph: cp.ChannelGraph, digits: tuple[Split, Split]) -> None:
    """None as published; the multiply-adds of C' where more channels are never worse."""
    free, bound = (
        fitness_of(graph, digits, ACP.read({"eps": 0.1, "samples": 64, "fitness": fitness}))
        for fitness in ("train", "merge")
    )
    assert free.limit == math.inf
    assert bound.limit == CostModel(bound.graph).total(
        "macs", np.array([bound.start.get(g.name, g.width) for g in bound.graph.groups], dtype=float)
    )
    whole = {name: bound.graph.by_name[name].width for name in bound.start}
    assert free.repair(whole) == whole
    repaired = bound.repair(whole)
    assert 0.97 * bound.limit < macs_of(bound.graph, repaired) <= bound.limit
    narrow = {name: max(1, width // 4) for name, width in bound.start.items()}
    assert 0.97 * bound.limit < macs_of(bound.graph, bound.repair(narrow)) <= bound.limit
    shares = [repaired[name] / width for name, width in whole.items()]
    assert max(shares) - min(shares) <= 1 / 16
    assert bound.repair(bound.start) == bound.start
