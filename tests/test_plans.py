"""Plan files: what is written comes back, and what was damaged, altered or disguised is refused by name."""

import copy
import json
import pickle
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import clusterprune as cp
from clusterprune.errors import OutputError, PlanError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


@pytest.fixture
def graph() -> cp.ChannelGraph:
    return cp.trace(network(), torch.zeros(1, 3, 8, 8))


@pytest.fixture
def folder(tmp_path: Path, graph: cp.ChannelGraph) -> Path:
    cp.oneshot(graph, torch.randn(32, 3, 8, 8), keep_macs=0.6).save(tmp_path / "plan")
    return tmp_path / "plan"


def test_a_plan_is_replayed_exactly(folder: Path, graph: cp.ChannelGraph) -> None:
    plan = cp.Plan.load(folder)
    again = cp.Plan.load(folder)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(cp.apply(graph.model, plan)(x), cp.apply(network(), again)(x))
    assert plan.notes["method"] == "oneshot"
    assert plan.notes["keep_macs"] == 0.6


def tamper(folder: Path, change) -> None:
    """Change a description as somebody who writes one of version 1, whose JSON has no digest."""
    document = json.loads((folder / "plan.json").read_text())
    document["version"] = 1
    del document["sha256"]
    change(document)
    (folder / "plan.json").write_text(json.dumps(document))


@pytest.mark.parametrize("name", ["plan.json", "plan.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_files_are_named(folder: Path, name: str, share: float) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(PlanError, match=name):
        cp.Plan.load(folder)


@pytest.mark.parametrize("name", ["plan.json", "plan.safetensors"])
def test_missing_files_are_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(PlanError, match=name):
        cp.Plan.load(folder)


@pytest.mark.parametrize("place", [0.2, 0.6, 0.95])
def test_a_single_altered_byte_is_noticed(folder: Path, place: float) -> None:
    content = bytearray((folder / "plan.safetensors").read_bytes())
    content[int(place * len(content))] ^= 1
    (folder / "plan.safetensors").write_bytes(bytes(content))
    with pytest.raises(PlanError, match="truncated or altered"):
        cp.Plan.load(folder)


class Danger:
    def __reduce__(self):
        return (Path("harmed").write_text, ("",))


@pytest.mark.parametrize("name", ["plan.json", "plan.safetensors"])
def test_a_pickle_is_refused_and_never_run(
    folder: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / name).write_bytes(pickle.dumps(Danger()))
    with pytest.raises(PlanError, match=name):
        cp.Plan.load(folder)
    assert not Path("harmed").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="something"), "not a valid plan"),
        (lambda d: d.update(version=99), "not a valid plan"),
        (lambda d: d.update(extra=1), "not a valid plan"),
        (lambda d: d["merges"][0].update(kept=[]), "not a valid plan"),
        (lambda d: d["merges"][0].update(kept=["a"]), "not a valid plan"),
        (lambda d: d["merges"][0]["mixing"].append("nowhere.weight"), "lacks the tensor"),
        (lambda d: d.pop("weights"), "not a valid plan"),
    ],
)
def test_altered_descriptions_are_refused(folder: Path, change, message: str) -> None:
    tamper(folder, change)
    with pytest.raises(PlanError, match=message):
        cp.Plan.load(folder)


@pytest.mark.parametrize("kept", [[0, 99], [-1, 2], [2, 1], [1, 1]])
def test_channels_that_do_not_exist_are_refused_when_applied(folder: Path, kept: list[int]) -> None:
    tamper(folder, lambda d: d["merges"][0].update(kept=kept))
    with pytest.raises(PlanError):
        cp.apply(network(), cp.Plan.load(folder))


def test_an_existing_folder_is_left_alone(folder: Path) -> None:
    plan = cp.Plan.load(folder)
    before = (folder / "plan.json").read_text()
    with pytest.raises(OutputError, match="plan"):
        plan.save(folder)
    assert (folder / "plan.json").read_text() == before


def test_a_plan_for_another_model_names_what_differs(folder: Path) -> None:
    with pytest.raises(PlanError, match=r"another model.*0\.weight"):
        cp.apply(
            nn.Sequential(nn.Conv2d(3, 9, 3), nn.BatchNorm2d(9), nn.ReLU(), nn.Conv2d(9, 4, 3)), cp.Plan.load(folder)
        )


def test_plans_compose(graph: cp.ChannelGraph) -> None:
    """What was cut can be traced and cut again."""
    first = cp.Merge("0", np.arange(6), {"3.weight": torch.eye(8)[:, :6]})
    small = cp.apply(graph.model, cp.Plan.of(graph, (first,)), graph=graph)
    graph2 = cp.trace(small, torch.zeros(1, 3, 8, 8))
    second = cp.Merge("0", np.arange(3), {"3.weight": torch.eye(6)[:, :3]})
    smaller = cp.apply(small, cp.Plan.of(graph2, (second,)), graph=graph2)
    direct = cp.Merge("0", np.arange(3), {"3.weight": torch.eye(8)[:, :3]})
    once = cp.apply(graph.model, cp.Plan.of(graph, (direct,)), graph=graph)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), once(x))


def test_views_of_one_memory_are_saved_as_what_they_show(graph: cp.ChannelGraph, tmp_path: Path) -> None:
    base = torch.arange(64.0).view(8, 8)
    merge = cp.Merge("0", [0, 1, 2, 3], {"3.weight": base.T[:, ::2]}, {"3.weight": base[3]})
    cp.Plan.of(graph, (merge,)).save(tmp_path / "plan")
    found = cp.Plan.load(tmp_path / "plan").merges[0]
    assert torch.equal(found.mixing["3.weight"], base.T[:, ::2])
    assert torch.equal(found.offset["3.weight"], base[3])


def tensors(*shape: int) -> st.SearchStrategy[dict[str, Tensor]]:
    """Draw tables of few tensors out of few, so that equal ones are drawn again and again."""
    drawn = st.builds(torch.full, st.just(shape), st.sampled_from([0.0, 1.0]), dtype=st.sampled_from(FLOATS))
    return st.dictionaries(st.sampled_from(["a.weight", "b.weight"]), drawn, max_size=1)


FLOATS = [torch.float32, torch.float64]
MERGES = st.builds(cp.Merge, st.sampled_from(["a", "b"]), st.sampled_from([[0, 1], [0, 2]]), tensors(3, 2), tensors(3))
EXAMPLES = [
    {"keyword": None, "shape": [1, 3, 8, 8], "dtype": "float32"},
    {"keyword": "scale", "value": 2},
    {"keyword": "scale", "value": None},
]
PLANS = st.builds(
    cp.Plan,
    st.lists(MERGES, max_size=2, unique_by=lambda merge: merge.group).map(tuple),
    tensors(2),
    st.dictionaries(st.sampled_from(["a.weight", "b.weight"]), st.sampled_from([(3, 3), (3,)]), max_size=1),
    st.sampled_from(["", "a" * 64]),
    st.lists(st.sampled_from(EXAMPLES), max_size=2).map(tuple),
    st.dictionaries(st.sampled_from(["method", "seconds"]), st.integers(0, 1)),
    st.booleans(),
)


def written(plan: cp.Plan) -> tuple[Any, list[Any]]:
    """Return all that a saved plan says but its notes."""
    with tempfile.TemporaryDirectory() as place:
        plan.save(Path(place) / "plan")
        assert cp.Plan.load(Path(place) / "plan") == plan
        document = json.loads((Path(place) / "plan" / "plan.json").read_text())
    del document["notes"], document["sha256"]
    tables = [plan.replaced, *(table for merge in plan.merges for table in (merge.mixing, merge.offset))]
    values = [{path: (str(t.dtype), t.tolist()) for path, t in table.items()} for table in tables]
    return document, values


@settings(max_examples=examples(100), deadline=None, derandomize=True)
@given(PLANS, PLANS, st.sampled_from([field.name for field in fields(cp.Plan)]))
def test_plans_are_equal_if_what_they_write_is_but_for_notes(plan: cp.Plan, other: cp.Plan, field: str) -> None:
    assert copy.deepcopy(plan) == plan
    near = replace(plan, **{field: getattr(other, field)})
    assert (near == plan) == (written(near) == written(plan))
    assert (near != plan) == (not near == plan)  # noqa: SIM201 (both are asked)
    assert (other.merges == plan.merges) == (
        [written(other)[1][1:]] == [written(plan)[1][1:]] and kept(other) == kept(plan)
    )


def kept(plan: cp.Plan) -> list[tuple[str, list[int]]]:
    return [(merge.group, merge.kept.tolist()) for merge in plan.merges]


def test_a_plan_is_no_key_and_equals_nothing_else(graph: cp.ChannelGraph) -> None:
    merge = cp.Merge("0", [0, 2])
    plan = cp.Plan.of(graph, (merge,))
    assert plan != merge
    assert merge != "0"
    assert plan.widths == {"0": 2}
    for thing in (plan, merge):
        with pytest.raises(TypeError, match="unhashable"):
            hash(thing)
