"""Every registered method on one small real task: it meets the budget, repeats itself, and goes on after a kill."""

import ast
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_task import FAST, make_task
from safetensors.torch import load_file
from torch import nn

import clusterprune
from clusterprune import criteria, evaluate
from clusterprune.errors import ArgumentError, OutputError
from clusterprune.methods import METHODS, CutOnce, Network, Outcome, Work, find, once
from clusterprune.methods._settings import descriptions, settings_of
from clusterprune.plan import Plan
from clusterprune.tasks import Task
from clusterprune.train import Progress, TrainConfig

KEEP = 0.7
SHORT: dict[str, dict[str, Any]] = {
    **{name: {"images": 64} for name in METHODS},
    "icp": {"steps": 2, "epochs_between": 1, "samples": 64, "min_samples": 2, "alpha": 0.0, "beta": 0.0},
    "acp": {"fitness": "merge", "samples": 64, "min_samples": 2, "particles": 2, "cycles": 1, "equal_macs": False},
    "cp": {},
    "sfp": {},
    "slimming": {"sparse_epochs": 1},
    "abcpruner": {"fitness": "merge", "samples": 64, "foods": 2, "cycles": 1},
}
"""By method, what makes it quick; a method that is not here runs as it is."""
ONE = FAST.model_copy(update={"epochs": 1})


class StoppedError(Exception):
    """Stands for a kill: nothing of ours catches it."""


@pytest.fixture(scope="module")
def task() -> tuple[Network, Task]:
    torch.set_num_threads(1)
    return make_task()


def run(
    task: tuple[Network, Task], method: str, folder: Path | None = None, *, stop_at: int = 0,
    training: TrainConfig | None = ONE, **settings: Any,
) -> Outcome:  # fmt: skip
    """Run a method; end with an error in the step of the trainings with this number, counted from 1."""
    left = stop_at

    def watch(phase: str, event: Progress) -> None:
        nonlocal left
        left -= event.kind == "step"
        if event.kind == "step" and left == 0:
            raise StoppedError

    budget = {} if "keep_params" in settings else {"keep_macs": KEEP}
    made = find(method).read(budget | SHORT.get(method, {}) | settings)
    return made.run(*task, Work(folder, training, seed=3, resume=True, watch=watch))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one: nn.Module, other: nn.Module) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


ALIKE = set(criteria.names()) - {"l1", "taylor"}
"""Methods that differ in their scores alone, but for one that looks at weights and one that differentiates the loss."""


@pytest.mark.parametrize("method", [pytest.param(m, marks=pytest.mark.slow) if m in ALIKE else m for m in METHODS])
def test_every_method_keeps_its_promises(task: tuple[Network, Task], method: str, tmp_path: Path) -> None:
    network, _ = task
    before = weights(network.model)
    made = run(task, method, tmp_path / "whole")
    left = evaluate.macs(made.model, network.example) / evaluate.macs(network.model, network.example)
    assert KEEP - 0.12 < left <= KEEP * 1.01
    assert not made.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(network.model).items())
    if made.cut is not None:
        assert evaluate.params(made.cut) == evaluate.params(made.model)
    # A run that was killed in its last training, and goes on, is one with the same seed too.
    with pytest.raises(StoppedError):
        run(task, method, tmp_path / "stopped", stop_at=2)
    went_on = run(task, method, tmp_path / "stopped")
    assert_same(went_on.model, made.model)
    assert went_on.plan == made.plan
    assert {**went_on.record, "seconds": None, "steps": None} == {**made.record, "seconds": None, "steps": None}
    # With its folder goes what was asked for.
    with pytest.raises(ArgumentError, match="was begun with other seed"):
        find(method).read({"keep_macs": KEEP, **SHORT.get(method, {})}).run(
            *task, Work(tmp_path / "whole", ONE, seed=4, resume=True)
        )


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_is_described_and_every_claim_is_kept(method: str) -> None:
    kind = find(method)
    assert kind.name == method
    for one in (kind, *(each for kinds in kind.parts.values() for each in kinds.values())):
        told = descriptions(one)
        assert [field.name for field in settings_of(one) if not told.get(field.name)] == []
    names = {field.name for field in settings_of(kind)}
    assert names.issuperset((*kind.in_epochs, *kind.in_images))
    for preset in kind.presets:
        assert kind.preset(preset, keep_macs=0.5).keep_macs == 0.5
    if kind.training is None:
        return
    assert kind.read({"keep_macs": 0.5}).last_epochs(200) <= 200
    with pytest.raises(ArgumentError, match=f"method='{method}' trains, but training=None; give a TrainConfig"):
        kind.read({"keep_macs": 0.5}).check(training=None)


def test_no_other_place_names_a_method() -> None:
    """A name as text, or a class: only the method's own file and the registry have them, and the public names."""
    root = Path(clusterprune.__file__).parent
    homes = {Path(sys.modules[find(name).__module__].__file__ or "").name for name in METHODS}
    homes |= {"_registry.py", "criteria.py", "__init__.py"}
    classes = {find(name).__name__ for name in METHODS}
    named = []
    for path in sorted(root.rglob("*.py")):
        if (path.parent.name == "methods" and path.name in homes) or path.parent.name == "criteria":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            text = node.value if isinstance(node, ast.Constant) else None
            used = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
            if (text in METHODS and text not in ALSO) or used in classes:
                named.append(f"{path.relative_to(root)}:{node.lineno}: {text or used}")
    assert [place for place in named if not place.startswith(TYPES)] == []
    assert "__init__.py" in homes


ALSO = ("l1", "l2", "random", "oneshot")
"""Words of other rooms too: norms, a sampler, a kind of cut."""
TYPES = (
    "methods/icp_steps.py", "methods/acp_search.py", "methods/cp_clusters.py", "__init__.py",
    "studies/figures/training.py", "studies/figures/searches.py",
)  # fmt: skip
"""A method's own files, beside the first: those that draw a figure of its paper among them."""


def test_the_page_of_settings_is_what_the_fields_say() -> None:
    docs = Path(__file__).parents[2] / "docs"
    assert runpy.run_path(str(docs / "make_methods.py"))["page"]() == (docs / "methods.md").read_text()


def test_methods_come_without_optuna() -> None:
    code = "import sys, clusterprune.methods; assert 'optuna' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_with_and_without_training_the_plan_is_the_same(task: tuple[Network, Task], tmp_path: Path) -> None:
    trained, alone = (run(task, "oneshot", tmp_path / str(of is None), training=of) for of in (ONE, None))
    assert trained.plan == alone.plan
    assert alone.record == {"images": 64}
    assert_same(alone.model, trained.cut)  # type: ignore[arg-type]


def test_a_stop_between_cut_and_training_changes_nothing(
    task: tuple[Network, Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(task, "oneshot", tmp_path / "whole")

    def stop(*_: object, **__: object) -> None:
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr("clusterprune.train.fit", stop)
        with pytest.raises(StoppedError):
            run(task, "oneshot", tmp_path / "stopped")
    assert Plan.load(tmp_path / "stopped" / "plan") == whole.plan
    # The cut is not made again: what it would be made with may be gone.
    with monkeypatch.context() as patch:
        patch.setattr("clusterprune.methods.cuts.oneshot", stop)
        went_on = run(task, "oneshot", tmp_path / "stopped")
    assert_same(went_on.model, whole.model)
    assert went_on.record["accuracy_cut"] == whole.record["accuracy_cut"]


def test_a_run_is_not_gone_on_with_unasked(task: tuple[Network, Task], tmp_path: Path) -> None:
    method = CutOnce(KEEP, images=64)
    method.run(*task, Work(tmp_path))
    with pytest.raises(OutputError, match="already holds a run; pass resume=True"):
        method.run(*task, Work(tmp_path))


@pytest.mark.parametrize("method", ["cp", "sfp", "slimming"])
def test_from_scratch_the_weights_are_not_used(task: tuple[Network, Task], method: str) -> None:
    network, digits = task
    torch.manual_seed(9)
    assert network.factory is not None
    other = replace(network, model=network.factory().eval())
    made = [run((each, digits), method, scratch=True) for each in (network, other)]
    assert_same(made[0].model, made[1].model)


@pytest.mark.parametrize("method", ["l1", "oneshot"])
def test_inner_layers_alone_are_cut_when_asked(task: tuple[Network, Task], method: str) -> None:
    made = run(task, method, training=None, layers="inner")
    assert made.plan is not None
    assert {merge.group for merge in made.plan.merges} == {"first.0", "last.0"}


def test_images_are_drawn_from_where_the_work_says(task: tuple[Network, Task]) -> None:
    network, digits = task
    method = CutOnce(KEEP, images=64, round_to=1)
    assert digits.validation is not None
    own, others = (method.run(network, digits, Work(images=images)) for images in (None, digits.validation))
    assert own.plan != others.plan
    told: list[str] = []
    assert method.run(network, digits, Work(images=digits.validation, tell=told.append)).plan == others.plan
    few = replace(method, images=1000).run(network, digits, Work(images=digits.validation, tell=told.append))
    assert told == ["There are 64 images to look at, fewer than the 1000 asked for."]
    assert few.plan is not None
    with pytest.raises(ArgumentError, match="there are no images to learn from"):
        method.run(network, None, Work())


def test_what_is_learnt_without_labels_is_kept_and_gone_on_with(
    task: tuple[Network, Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(task, "oneshot", training=None, distil="4steps")

    def stop(*_: object, **__: object) -> None:
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(once, "distil", stop)
        with pytest.raises(StoppedError):
            run(task, "oneshot", tmp_path, training=None, distil="4steps")
    went_on = run(task, "oneshot", tmp_path, training=None, distil="4steps")
    assert went_on.record["distil"]["steps"] == whole.record["distil"]["steps"] == 4
    assert_same(went_on.model, whole.model)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("l1", {"eps": 0.1}, "eps=0.1 is no setting of method='l1', which has cut, data_free, distil"),
        ("icp", {"steps": 0}, "steps must be a whole number of at least 1"),
        ("acp", {"particles": "many"}, "particles='many' is not accepted"),
        ("oneshot", {"distil": "soon"}, "distil takes seconds, such as 120, or steps"),
        ("oneshot", {"save_images": True}, "save_images shows the images that data_free makes"),
    ],
)
def test_bad_settings_are_named_before_any_work(method: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        find(method).read({"keep_macs": 0.5, **settings})


def test_acp_needs_images_to_choose_by(task: tuple[Network, Task]) -> None:
    network, digits = task
    with pytest.raises(ArgumentError, match="hold some out of the training set"):
        run((network, digits.on(digits.train)), "acp")


def test_acp_without_cycles_goes_on_to_the_same_network(task: tuple[Network, Task], tmp_path: Path) -> None:
    made = run(task, "acp", tmp_path, cycles=0, fitness="train")
    assert (made.record["fitness"], made.record["evaluations"]) == (None, 0)
    assert made.record["best"] == made.record["start"]
    assert_same(run(task, "acp", tmp_path, cycles=0, fitness="train").model, made.model)


def test_cp_as_published_trains_from_random_weights_without_batch_norms(task: tuple[Network, Task]) -> None:
    made = run(task, "cp", preset="published")
    assert_same(made.model, run(task, "cp", batch_norm="removed", scratch=True).model)
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) for model in (made.model, task[0].model)]
    assert norms[0] < norms[1]


def test_a_folder_that_cannot_be_made_is_named(task: tuple[Network, Task], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the folder"):
        run(task, "l1", tmp_path / "file" / "run")


MINE = """
from dataclasses import dataclass
from typing import ClassVar

import clusterprune as cp
from clusterprune.methods import Keep


@dataclass(frozen=True)
class Mine(cp.Method):
    \"\"\"Cut to a share of the MACs.

    Attributes
    ----------
    keep_macs
        The share.
    cut
        What the cut goes by.
    \"\"\"

    parts: ClassVar = {"cut": {"mine": cp.CriterionCut}}

    keep_macs: float = 0.5
    cut: cp.CriterionCut = cp.CriterionCut("l2")

    def compress(self, network, task, work):
        graph = network.graph()
        plan = work.plan(lambda: self.cut.plan(graph, None, Keep(self.keep_macs), seed=work.seed))
        small = cp.apply(network.model, plan, graph=graph).eval()
        return cp.Outcome(small, small, plan, {})
"""


def test_a_method_of_ones_own_is_found_in_a_file(task: tuple[Network, Task], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    kind = find(f"{tmp_path / 'mine.py'}:Mine")
    assert kind.name == "mine"
    network, digits = task
    made = kind.read({"keep_macs": KEEP, "scope": "global"}).run(network, digits, Work(tmp_path / "run"))
    assert evaluate.macs(made.model, network.example) <= KEEP * evaluate.macs(network.model, network.example)
    with pytest.raises(ArgumentError, match=r"names no subclass of clusterprune.Method in mine\.py"):
        find(f"{tmp_path / 'mine.py'}:Theirs")


def test_type_checkers_see_the_public_names_that_there_are() -> None:
    stub = ast.parse(Path(clusterprune.__file__ or "").with_suffix(".pyi").read_text())
    names = next(node.value for node in stub.body if isinstance(node, ast.Assign))
    assert sorted(ast.literal_eval(names)) == sorted(clusterprune.__all__)
    for name in clusterprune.__all__:
        assert getattr(clusterprune, name).__module__.startswith("clusterprune.")


def test_slimming_pushes_scales_to_zero_before_it_cuts(task: tuple[Network, Task], tmp_path: Path) -> None:
    network, digits = task
    found: dict[float, float] = {}
    for strength in (1e-6, 0.3):
        folder = tmp_path / str(strength)
        run((network, digits), "slimming", folder, strength=strength, sparse_epochs=3)
        weights = load_file(folder / "sparse" / "checkpoint.safetensors")
        scales = [value.abs().sum() for name, value in weights.items() if name == "model.first.1.weight"]
        found[strength] = float(sum(scales))
    assert found[0.3] < 0.8 * found[1e-6]
