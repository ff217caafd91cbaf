"""CP: filters become identical in training."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cp_networks import X, distinct, lively, plain, points, pruned, relative_error
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_networks import Plain
from torch import Tensor, nn

import clusterprune as cp
from clusterprune import evaluate, train
from clusterprune.errors import ArgumentError, BudgetError
from clusterprune.methods import Network, Outcome, Work
from clusterprune.methods.cp import CP, for_macs
from clusterprune.methods.cp_addition import channel_addition
from clusterprune.methods.cp_clusters import ClusterPruning
from clusterprune.methods.cp_layers import without_batch_norm
from clusterprune.methods.cp_rates import Adaptive, Constant, Silhouette, pruning_rate, real_rate, replaced_count
from clusterprune.tasks import Classification

# Clustering and selection (Eqs. 3 and 4).

PAIRS = torch.tensor([[0.0, 0.0], [20.0, 0.0], [10.0, 0.0], [0.0, 2.0], [20.0, 8.0], [10.0, 1.0]])
"""Three pairs of filters, at 1, 4 and 0.5 from their centroids (0, 1), (20, 4) and (10, 0.5)."""


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (2 / 6, {2: [10.0, 0.5], 5: [10.0, 0.5]}),
        (4 / 6, {2: [10.0, 0.5], 5: [10.0, 0.5], 0: [0.0, 1.0], 3: [0.0, 1.0]}),
        (3 / 6, {2: [10.0, 0.5], 5: [10.0, 0.5], 0: [0.0, 1.0]}),
    ],
)
def test_the_closest_filters_become_their_centroids(goal: float, expected: dict[int, list[float]]) -> None:
    model, graph = pruned(
        points(PAIRS), CP(goal=goal, clusters=Constant(number=3), layers=("0",)), torch.zeros(1, 2, 4, 4)
    )
    wanted = PAIRS.clone()
    for index, value in expected.items():
        wanted[index] = torch.tensor(value)
    assert torch.equal(model[0].weight[:, :, 0, 0], wanted)
    # Six filters, of which each hit cluster keeps one (Eq. 9).
    hit = {tuple(value) for value in expected.values()}
    assert sum(len(merge.kept) for merge in channel_addition(model, graph).merges) == 6 - len(expected) + len(hit)


def test_rates_rise_with_the_epochs() -> None:
    model = points(PAIRS)
    hook = ClusterPruning(
        cp.trace(model, torch.zeros(1, 2, 4, 4)),
        CP(goal=4 / 6, schedule="linear", clusters=Constant(number=3), layers=("0",)),
    )
    widths = []
    for epoch in range(1, 5):
        hook.after_epoch(model, epoch, 4)
        widths.append(distinct(model[0]))
    # One, two, three and four filters are replaced: a centroid is alone until its pair is whole.
    assert widths == [6, 5, 5, 4]


def test_training_may_undo_a_choice() -> None:
    model = points(PAIRS)
    hook = ClusterPruning(
        cp.trace(model, torch.zeros(1, 2, 4, 4)), CP(goal=2 / 6, clusters=Constant(number=3), layers=("0",))
    )
    hook.after_epoch(model, 1, 1)
    assert torch.equal(model[0].weight[2], model[0].weight[5])
    with torch.no_grad():
        model[0].weight[2] = torch.tensor([0.0, 1.1])[:, None, None]  # training takes it to another cluster
    hook.after_epoch(model, 1, 1)
    weight = model[0].weight[:, :, 0, 0]
    assert torch.equal(weight[5], torch.tensor([10.0, 0.5]))
    assert not torch.equal(weight[2], weight[5])
    assert weight[2, 0] == 0


def test_kmeans_starts_from_the_last_centroids() -> None:
    """From between the four corners k-means stays split across; from anywhere else it finds the close pairs."""
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [3.0, 0.0], [3.0, 1.0]])
    across = torch.tensor([[1.5, 0.0], [1.5, 1.0]])
    config = CP(goal=0.99, clusters=Constant(number=2), layers=("0",))
    wide = points(torch.cat([corners, corners]))
    model = copy.deepcopy(wide)
    hook = ClusterPruning(cp.trace(model, torch.zeros(1, 2, 4, 4)), config)
    hook.restore({**hook.tensors(), "clusters.0": torch.tensor(2), "centroids.0": across})
    hook.after_epoch(model, 1, 1)
    assert (model[0].weight[:7, 0] == 1.5).all()
    assert torch.equal(hook.tensors()["centroids.0"].sort(0).values, across)
    hook = ClusterPruning(cp.trace(wide, torch.zeros(1, 2, 4, 4)), config)
    hook.after_epoch(wide, 1, 1)
    assert (wide[0].weight[:7, 1] == 0.5).all()


def test_a_silhouette_looks_again_after_every_epoch() -> None:
    """Four heaps of filters become two, and two become four: each time the number that there is."""
    heaps = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    near = torch.linspace(-0.1, 0.1, 3)[:, None, None] + torch.zeros(3, 4, 2)
    four = (heaps + near).reshape(-1, 2)
    two = (heaps[[0, 1, 0, 1]] + near * torch.tensor([1.0, 1.5, 2.0, 2.5])[:, None]).reshape(-1, 2)
    silhouette = Silhouette(shares=(2 / 12, 3 / 12, 4 / 12, 6 / 12))
    for first, then, counts in ((four, two, (4, 2)), (two, four, (2, 4))):
        model = points(first)
        config = CP(goal=0.5, clusters=silhouette, layers=("0",))
        hook = ClusterPruning(cp.trace(model, torch.zeros(1, 2, 4, 4)), config)
        for epoch, (filters, count) in enumerate(zip((first, then), counts, strict=True), 1):
            with torch.no_grad():
                model[0].weight[:, :, 0, 0] = filters
            hook.after_epoch(model, epoch, 2)
            assert int(hook.tensors()["clusters.0"]) == count


def drift(model: nn.Module, epoch: int) -> None:
    """Stand in for an epoch of training."""
    generator = torch.Generator().manual_seed(epoch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("clusters", [Adaptive(), Silhouette()], ids=lambda c: type(c).__name__)
def test_a_resumed_hook_does_the_same(clusters: object, tmp_path: object) -> None:
    config = CP(clusters=clusters)

    def epochs(model: nn.Module, hook: ClusterPruning, first: int, last: int) -> None:
        for epoch in range(first, last + 1):
            drift(model, epoch)
            hook.after_epoch(model, epoch, 5)

    model = plain(24)
    hook = ClusterPruning(cp.trace(model, X[:1]), config)
    epochs(model, hook, 1, 3)
    save_file(hook.tensors(), tmp_path / "hook.safetensors")
    again = copy.deepcopy(model)
    epochs(model, hook, 4, 5)
    resumed = ClusterPruning(cp.trace(again, X[:1]), config)
    resumed.restore(load_file(tmp_path / "hook.safetensors"))
    epochs(again, resumed, 4, 5)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    assert hook.tensors().keys() == resumed.tensors().keys()
    assert all(torch.equal(value, resumed.tensors()[key]) for key, value in hook.tensors().items())


@settings(max_examples=examples(25), deadline=None)
@given(
    width=st.integers(3, 24),
    depth=st.integers(1, 6),
    share=st.floats(0.05, 0.9),
    goal=st.floats(0.1, 0.98),
    seed=st.integers(0, 99),
)
def test_widths_keep_to_eq_9(width: int, depth: int, share: float, goal: float, seed: int) -> None:
    filters = torch.randn(width, depth, generator=torch.Generator().manual_seed(seed))
    model = points(filters)
    graph = cp.trace(model, torch.zeros(1, depth, 2, 2))
    hook = ClusterPruning(graph, CP(goal=goal, clusters=Constant(share=share), layers=("0",)))
    hook.after_epoch(model, 1, 1)
    count, replaced = int(hook.tensors()["clusters.0"]), replaced_count(width, goal)
    centroids = hook.tensors()["centroids.0"]
    after = model[0].weight.detach()[:, :, 0, 0]
    kept = distinct(model[0])
    assert len(centroids) == count
    # A cluster is hit where a filter equals its centroid; whatever is not replaced is as it was.
    hits = (after[:, None] == centroids).all(2)
    assert int(hits.any(1).sum()) == replaced or int((hits.sum(0) == 1).sum()) > 0
    assert bool((hits.any(1) | (after == filters).all(1)).all())
    assert width - replaced <= kept <= width - replaced + count
    assert kept >= len(centroids)
    assert 1 - kept / width >= real_rate([replaced / width], [count], [width]) - 1e-12
    widths = channel_addition(model, graph).widths
    assert widths.get("0", width) == kept


def test_adaptive_counts_reach_the_real_rate() -> None:
    model, graph = pruned(plain(32), CP(goal=0.75, clusters=Adaptive(real_rate=0.5)))
    hook = ClusterPruning(graph, CP())
    widths = channel_addition(model, graph).widths
    assert set(widths) == {group.name for group in hook.groups}
    assert 1 - sum(widths.values()) / (3 * 32) >= 0.5


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.2])
def test_a_target_of_macs_is_met(keep: float) -> None:
    model = plain(32)
    config = for_macs(cp.trace(model, X[:1]), keep, CP())
    model, graph = pruned(model, config)
    small = cp.apply(model, channel_addition(model, graph), graph=graph)
    share = evaluate.macs(small, X[:1]) / evaluate.macs(model, X[:1])
    # One filter of the smallest layer costs more than what may be left over.
    assert keep - 0.03 < share <= keep


@pytest.mark.parametrize(
    ("mean_of", "expected"), [("cluster", [[2, 2, 5], [3, 3, 5]]), ("replaced", [[0.5, 0.5, 5]] * 2)]
)
def test_what_is_not_replaced_draws_its_cluster_unless_told_not_to(mean_of: Any, expected: list[list[float]]) -> None:
    model = points(torch.tensor([[0.0], [1.0], [5.0], [50.0]]))
    graph = cp.trace(model, torch.zeros(1, 1, 4, 4))
    hook = ClusterPruning(graph, CP(goal=0.75, clusters=Constant(number=2), layers=("0",), mean_of=mean_of))
    for values in expected:  # 50 is replaced by itself
        hook.after_epoch(model, 1, 1)
        assert model[0].weight.detach().flatten().tolist() == [*values, 50]
    assert len(channel_addition(model, graph).merges) == 1
    with pytest.raises(ArgumentError, match="mean_of must be 'cluster' or 'replaced'"):
        CP(mean_of="some")  # type: ignore[arg-type]


@pytest.mark.parametrize(("schedule", "curvature"), [("linear", 5.0), ("fast-slow", 5.0), ("fast-slow", 20.0)])
def test_widths_are_approached_as_the_rate_is(schedule: Any, curvature: float) -> None:
    """With a steep schedule all is replaced early, and nothing is left for the last epoch."""
    filters = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    model = points(filters)
    config = CP(
        goal=0.8, clusters=Constant(number=6), widths=(10,), schedule=schedule, curvature=curvature, layers=("0",)
    )
    hook = ClusterPruning(cp.trace(model, torch.zeros(1, 4, 4, 4)), config)
    found, expected = [], []
    for epoch in range(1, 7):
        with torch.no_grad():  # what an epoch does: no two filters are the same afterwards
            model[0].weight += 1e-3 * torch.randn(model[0].weight.shape, generator=torch.Generator().manual_seed(epoch))
        hook.after_epoch(model, epoch, 6)
        found.append(distinct(model[0]))
        expected.append(24 - round(14 * pruning_rate(schedule, 1, epoch, 6, curvature)))
    assert found == expected
    assert found[-1] == 10
    assert (found[2] == 10) == (curvature == 20)


# Batch norm.


def test_tied_batch_norm_follows_its_cluster() -> None:
    before = plain()
    model, graph = pruned(before, CP(goal=0.99, clusters=Constant(number=2)))
    norm, was = model[1][1], before[1][1]
    _, cluster = torch.unique(model[1][0].weight.detach().flatten(1), dim=0, return_inverse=True)
    for index in range(int(cluster.max()) + 1):
        members = cluster == index
        if int(members.sum()) < 3:
            continue
        for name in ("weight", "bias", "running_mean", "running_var"):
            values = getattr(norm, name).detach()[members]
            assert (values == values[0]).all()
    assert not torch.equal(norm.weight, was.weight)
    assert len(channel_addition(model, graph).merges) == 3


def test_without_batch_norm_is_the_same_function() -> None:
    model = plain()
    before = copy.deepcopy(model.state_dict())
    bare = without_batch_norm(model, cp.trace(model, X[:1]))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in bare.modules())
    assert all(parameter.requires_grad for parameter in bare.parameters())
    assert relative_error(bare, model, X) < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    some = without_batch_norm(model, cp.trace(model, X[:1]), ["1.0"])
    assert [isinstance(some[i][1], nn.Identity) for i in range(3)] == [False, True, False]


# The whole of Algorithm 1.


def data(count: int = 160, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (count,), generator=generator)
    pixels = torch.randint(0, 120, (count, 3, 12, 12), generator=generator)
    pixels[torch.arange(count), :, 2 * labels + 1] += 100
    return pixels.to(torch.uint8), labels


FAST = train.TrainConfig(epochs=3, batch_size=32, lr=0.05, augment="none", device="cpu")


TASK = Classification(data(), data(40, 1), mean=(0.3,) * 3, std=(0.2,) * 3)


def run(model: nn.Module, config: CP, folder: object = None, **more: Any) -> Outcome:
    return config.run(Network(model, X[:1]), TASK, Work(folder, **{"training": FAST, **more}))


@pytest.mark.parametrize("batch_norm", ["tied", "removed"])
def test_algorithm_1(batch_norm: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, config = Plain(16), CP(batch_norm=batch_norm)
    before = copy.deepcopy(model.state_dict())
    result = run(model, config, tmp_path / "whole")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    losses = [json.loads(line)["loss"] for line in (tmp_path / "whole/training/log.jsonl").read_text().splitlines()]
    assert len(losses) == result.record["epochs"] == 3
    assert losses[-1] < losses[0]
    # The cut is lossless.
    whole, trained = config.learn(Network(model, X[:1]), TASK, Work(tmp_path / "learnt", training=FAST))
    assert trained.epochs == 3
    assert relative_error(result.model, whole.model.eval(), X) < 1e-5
    assert all(result.model.get_submodule(f"{i}.0").out_channels <= 8 for i in range(3))

    class KillError(Exception):
        pass

    def stop(_: str, progress: train.Progress) -> None:
        if progress.kind == "epoch" and progress.epoch == 2:
            raise KillError

    with pytest.raises(KillError):
        run(model, config, tmp_path / "run", watch=stop)
    resumed = run(model, config, tmp_path / "run", resume=True)
    pairs = zip(resumed.model.state_dict().values(), result.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_published_settings_are_one_call() -> None:
    config = CP.preset("published", goal=0.5)
    assert config == CP(goal=0.5, batch_norm="removed", scratch=True)
    assert (config.schedule, config.mean_of, config.clustering, config.layers) == ("fast-slow", "cluster", None, None)
    assert CP.preset("published", schedule="linear", batch_norm="tied", scratch=False) == CP(schedule="linear")


# Errors.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": 1.0}, r"goal must be .*goal=1\.0"),
        ({"goal": 0.4, "clusters": Adaptive(0.5)}, r"real_rate=0\.5 must be below goal=0\.4"),
        ({"schedule": "cubic"}, "schedule must be one of fast-slow.*'cubic'"),
        ({"curvature": 0}, "curvature must be"),
        ({"batch_norm": "kept"}, "batch_norm must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        CP(**options)


def test_networks_that_do_not_fit_are_refused() -> None:
    model = plain()
    graph = cp.trace(model, X[:1])
    with pytest.raises(ArgumentError, match=r"layers=nothing\.here cannot be pruned; name groups .* 0\.0"):
        ClusterPruning(graph, CP(layers=("nothing.here",)))
    with pytest.raises(ArgumentError, match=r"0\.0 has a batch norm; train the copy that without_batch_norm"):
        ClusterPruning(graph, CP(batch_norm="removed"))
    with pytest.raises(ArgumentError, match=r"goal=0\.8.* differs from that of the run being resumed, .*goal=0\.75"):
        ClusterPruning(graph, CP(goal=0.8)).restore(ClusterPruning(graph, CP()).tensors())
    with pytest.raises(BudgetError, match=r"keep_macs=0\.001 cannot be reached in 3 layers.*Ask for keep_macs>="):
        for_macs(graph, 0.001, CP())
    averaged = train.TrainConfig(ema_decay=0.9)
    with pytest.raises(ArgumentError, match=r"ema_decay=0\.9 does not go with CP"):
        run(model, CP(), training=averaged)


class Shared(nn.Module):
    """A convolution that is read before its batch norm too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(torch.cat([x, torch.relu(self.norm(x))], 1))


def test_a_batch_norm_that_cannot_be_folded_is_refused() -> None:
    model = lively(Shared())
    with pytest.raises(ArgumentError, match=r"the batch norm norm cannot be removed.*tied"):
        without_batch_norm(model, cp.trace(model, X[:1]), ["conv"])
    tied, graph = pruned(model, replace(CP(), layers=("conv",)))
    plan = channel_addition(tied, graph)
    assert plan.merges
    assert relative_error(cp.apply(tied, plan, graph=graph), tied, X) < 1e-5
