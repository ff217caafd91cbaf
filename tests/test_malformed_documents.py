"""plan.json and structure.json that make no sense: refused by name, whether or not their digests are right."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import clusterprune as cp
from clusterprune.errors import PlanError, WeightsError
from clusterprune.files.reading import seal, sha256_of
from clusterprune.plan import rebuild_example

Change = Callable[[dict[str, Any]], Any]
EXAMPLE = torch.zeros(1, 3, 8, 8)


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, bias=False, dtype=dtype), nn.BatchNorm2d(8, dtype=dtype)
        self.deep = nn.Conv2d(8, 8, 3, groups=8, dtype=dtype)
        self.head = nn.Conv2d(8, 4, 1, bias=False, dtype=dtype)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.deep(torch.relu(self.norm(self.stem(x))))))


class Halves(nn.Module):
    """Sizes written into its code: a cut of it is a graph module."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.left, self.right = nn.Conv2d(3, 7, 3), nn.Conv2d(3, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).split([3, 4], 1)
        return self.left(left) + self.right(right)


class Finite(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.zeros(2))


def a_plan() -> tuple[cp.ChannelGraph, cp.Plan]:
    graph = cp.trace(Finite().eval(), EXAMPLE)
    mixing, offset = {"head.weight": torch.eye(8)[:, [0, 2, 5]]}, {"head.weight": torch.ones(8)}
    return graph, cp.Plan.of(graph, (cp.Merge("stem", [0, 2, 5], mixing, offset),))


@pytest.fixture(scope="module")
def traced() -> tuple[cp.ChannelGraph, cp.Plan]:
    return a_plan()


def change_file(path: Path, change: Change, *, sealed: bool) -> None:
    """Change a document, with a digest that is right again, or as one of version 1."""
    document = json.loads(path.read_text())
    del document["sha256"]
    change(document)
    if sealed:
        document = seal(document)
    else:
        document["version"] = 1
        if "stages" in document:
            document.pop("tensors_sha256", None)
    path.write_text(json.dumps(document))


def kept(value: Any) -> Change:
    return lambda d: d["merges"][0].update(kept=value)


def shape(value: Any) -> Change:
    return lambda d: d["model"].update({"stem.weight": value})


def example(**fields: Any) -> Change:
    return lambda d: d["example"].__setitem__(0, {"keyword": None} | fields)


PLANS: list[Change] = [
    *map(
        kept, (1e30, [1e30], [0.0, 2.0, 5.0], ["0", "2", "5"], [0, 2, 2], [5, 2, 0], [-1, 2], [2**31], [10**30], [True])
    ),
    *map(kept, (None, {}, [[0, 2, 5]], [None], [float("nan")], "025", [0, 2, 5, 10**18])),
    *map(shape, (None, 3, [None], [-1], [1.5], ["8"], [8, [3]], [10**30], {"0": 8}, [1] * 1000)),
    example(shape=[1, 3, 8, 8]),
    example(shape=None, dtype="float32"),
    example(shape=[1, 3, 8, 8], dtype="float"),
    example(shape=[1, 3, 8, 8], dtype="save"),
    example(shape=[1, 3, 8, 8], dtype=32),
    example(shape=[1, 3, 8, 8], dtype="float32", value=3),
    example(shape=[1, 3, -8, 8], dtype="float32"),
    example(shape=[1, 3, 8, 10**12], dtype="float32"),
    example(shape=[10**12], dtype="float32"),
    example(shape=[10**30], dtype="float32"),
    example(shape="1388", dtype="float32"),
    lambda d: d.update(example={}),
    lambda d: d.update(example=[None]),
    lambda d: d.update(merges={}),
    lambda d: d.update(merges=[None]),
    lambda d: d.update(merges=d["merges"] * 2),
    lambda d: d["merges"][0].update(group=3),
    lambda d: d["merges"][0].update(group="nowhere"),
    lambda d: d["merges"][0].update(mixing={"head.weight": 1}),
    lambda d: d["merges"][0].update(mixing=["head.weight", "head.weight"]),
    lambda d: d["merges"][0].update(mixing=[]),
    lambda d: d["merges"][0].update(offset=[3]),
    lambda d: d.update(replaced=["nowhere"]),
    lambda d: d.update(replaced="head.weight"),
    lambda d: d.update(model=[]),
    lambda d: d["model"].pop("stem.weight"),
    lambda d: d.update(weights=3),
    lambda d: d.update(weights="0" * 64),
    lambda d: d.update(tensors_sha256=None),
    lambda d: d.update(tensors_sha256="0" * 64),
    lambda d: d.update(notes=None),
    lambda d: d.update(format=1),
]


@pytest.mark.parametrize("sealed", [True, False])
def test_plans_that_make_no_sense(sealed: bool, traced: tuple[cp.ChannelGraph, cp.Plan], tmp_path: Path) -> None:
    graph, plan = traced
    plan.save(tmp_path / "plan")
    path = tmp_path / "plan" / "plan.json"
    sound = path.read_text()
    accepted, lengths = [], []
    for number, change in enumerate(PLANS):
        path.write_text(sound)
        change_file(path, change, sealed=sealed)
        try:
            found = cp.Plan.load(tmp_path / "plan")
            rebuild_example(found.example)
            cp.apply(graph.model, found, graph=graph)
        except PlanError as error:
            lengths = sorted([*lengths, len(str(error))])
        else:
            accepted.append(number)
    assert accepted == []
    assert lengths[-1] < 1000


@pytest.mark.parametrize("version", ["2", 2.0, 10**30, 0, -1, None, True])
def test_versions_that_are_none(version: Any, traced: tuple[cp.ChannelGraph, cp.Plan], tmp_path: Path) -> None:
    traced[1].save(tmp_path / "plan")
    change_file(tmp_path / "plan" / "plan.json", lambda d: d.update(version=version), sealed=True)
    with pytest.raises(PlanError, match="version"):
        cp.Plan.load(tmp_path / "plan")


def test_an_altered_plan_is_noticed(traced: tuple[cp.ChannelGraph, cp.Plan], tmp_path: Path) -> None:
    """Other channels would be a plan too, but not the one whose matrices lie beside it."""
    traced[1].save(tmp_path / "plan")
    path = tmp_path / "plan" / "plan.json"
    document = json.loads(path.read_text())
    document["merges"][0]["kept"] = [0, 2, 6]
    path.write_text(json.dumps(document))
    with pytest.raises(PlanError, match="altered"):
        cp.Plan.load(tmp_path / "plan")
    path.write_text(json.dumps(seal({k: v for k, v in document.items() if k != "sha256"}), indent=7))
    assert cp.Plan.load(tmp_path / "plan").merges[0].kept.tolist() == [0, 2, 6]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.full((8, 3), torch.nan), "NaN or infinity"),
        (torch.full((8, 3), -torch.inf), "NaN or infinity"),
        (torch.ones(8, 3, dtype=torch.int32), "floating-point"),
        (torch.ones(8, 3, dtype=torch.bool), "floating-point"),
        (torch.ones(8, 3, dtype=torch.complex64), "floating-point"),
        (torch.ones(3, 8), "shape"),
    ],
)
def test_matrices_of_another_kind(value: Tensor, message: str, traced: Any, tmp_path: Path) -> None:
    graph, plan = traced
    plan.save(tmp_path / "plan")
    path = tmp_path / "plan" / "plan.safetensors"
    save_file(load_file(path) | {"merges.0.mixing.head.weight": value}, path)
    change_file(path.with_name("plan.json"), lambda d: d.update(tensors_sha256=sha256_of(path)), sealed=True)
    with pytest.raises(PlanError, match=message):
        cp.apply(graph.model, cp.Plan.load(tmp_path / "plan"), graph=graph)


@pytest.fixture
def compact(traced: tuple[cp.ChannelGraph, cp.Plan], tmp_path: Path) -> Path:
    graph, plan = traced
    cp.save(cp.apply(graph.model, plan, graph=graph), tmp_path / "small")
    return tmp_path / "small"


def attribute(layer: str, **values: Any) -> Change:
    return lambda d: d["stages"][0]["attributes"].setdefault(layer, {}).update(values)


def stage(**fields: Any) -> Change:
    return lambda d: d["stages"][0].update(fields)


STRUCTURES: list[Change] = [
    *(attribute("deep", groups=n) for n in (0, -1, 2, 7, 1e30, 10**30, None, "3", True, [3], 3.0, 2**31)),
    *(attribute("stem", out_channels=n) for n in (0, -3, 4, None, [3], [[3]], {}, "3", 1e9, 10**20)),
    attribute("stem", in_channels=0),
    attribute("stem", groups=3),
    attribute("norm", num_features=[3]),
    attribute("norm", normalized_shape=[3]),
    attribute("stem", kernel_size=[9, 9]),
    attribute("", before=1),
    attribute("stem.weight", out_channels=3),
    attribute("nowhere", out_channels=3),
    stage(attributes=None),
    stage(attributes=[]),
    stage(kept=None),
    stage(kept={"stem": [1e30]}),
    stage(kept={"stem": [2, 0]}),
    stage(kept={"stem": []}),
    stage(rewired=None),
    stage(rewired=1),
    stage(rewired="false"),
    stage(rewired=True, kept={"stem": [0, 99]}),
    stage(rewired=True, kept={"nowhere": [0]}),
    stage(rewired=True, example=[]),
    stage(rewired=True, example=[{"keyword": None, "shape": [10**12], "dtype": "float32"}]),
    stage(rewired=True, example=[{"keyword": None, "shape": [1, 3, 8, 8], "dtype": "int64"}]),
    stage(rewired=True, example=[{"keyword": "y", "shape": [1, 3, 8, 8], "dtype": "float32"}]),
    stage(rewired=True, example=[{"keyword": None, "value": 3}]),
    stage(example=[{"keyword": None, "shape": None, "dtype": None}]),
    stage(example=[{"keyword": None, "shape": [1], "dtype": "float"}]),
    stage(added=["head.bias", "head.bias"]),
    stage(added=["nowhere.bias"]),
    stage(added=[""]),
    stage(added=None),
    stage(added=[]),
    stage(folded=["norm"]),
    stage(folded=["stem"]),
    stage(folded=["nowhere"]),
    stage(folded=[""]),
    stage(extra=1),
    lambda d: d.update(stages=[]),
    lambda d: d.update(stages={}),
    lambda d: d.update(stages=[None]),
    lambda d: d.update(shared=None),
    lambda d: d.update(shared={"a": "nowhere"}),
    lambda d: d.update(shared={"stem.weight": "head.weight"}),
    lambda d: d.update(shared={"a": "b", "b": "a"}),
    lambda d: d.update(shared={"a": 3}),
    lambda d: d.update(model=3),
    lambda d: d.pop("format"),
]


@pytest.mark.parametrize("sealed", [True, False])
def test_structures_that_make_no_sense(sealed: bool, compact: Path) -> None:
    path = compact / "structure.json"
    sound = path.read_text()
    accepted, lengths = [], []
    for number, change in enumerate(STRUCTURES):
        path.write_text(sound)
        change_file(path, change, sealed=sealed)
        try:
            cp.load(compact, Finite)
        except WeightsError as error:
            lengths = sorted([*lengths, len(str(error))])
        else:
            accepted.append(number)
    assert accepted == []
    assert lengths[-1] < 2000
    path.write_text(sound)
    assert cp.load(compact, Finite).head.bias is not None


def test_a_graph_module_that_claims_to_keep_its_class(tmp_path: Path) -> None:
    model = Halves().eval()
    graph = cp.trace(model, EXAMPLE)
    merges = tuple(cp.Merge(g.name, range(g.width - 1)) for g in graph.prunable)
    cp.save(cp.apply(model, cp.Plan.of(graph, merges), graph=graph), tmp_path / "small")
    path = tmp_path / "small" / "structure.json"
    document = json.loads(path.read_text())
    assert document["stages"][0]["rewired"]
    document["stages"][0]["rewired"] = False
    path.write_text(json.dumps(document))
    with pytest.raises(WeightsError, match="altered"):
        cp.load(tmp_path / "small", Halves)


class TestWeights:
    @staticmethod
    def put(folder: Path, name: str, value: Tensor, *, old: bool) -> None:
        """Change one tensor, with a digest that is right again, or as a folder that has none."""
        path = folder / "model.safetensors"
        save_file(load_file(path) | {name: value}, path)
        digest = sha256_of(path)
        change_file(folder / "structure.json", lambda d: d.update(tensors_sha256=digest), sealed=not old)

    @pytest.mark.parametrize("old", [False, True])
    @pytest.mark.parametrize("name", ["stem.weight", "norm.running_var", "head.bias"])
    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_values_that_are_not_finite(self, value: float, name: str, old: bool, compact: Path) -> None:
        tensor = load_file(compact / "model.safetensors")[name]
        tensor.view(-1)[1] = value
        self.put(compact, name, tensor, old=old)
        with pytest.raises(WeightsError, match=rf"NaN or infinite in the model's type: {name}"):
            cp.load(compact, Finite)

    @pytest.mark.parametrize("old", [False, True])
    @pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.uint8, torch.complex64])
    @pytest.mark.parametrize("name", ["stem.weight", "head.bias"])
    def test_numbers_of_another_kind(self, name: str, dtype: torch.dtype, old: bool, compact: Path) -> None:
        tensor = load_file(compact / "model.safetensors")[name]
        self.put(compact, name, tensor.to(dtype), old=old)
        with pytest.raises(WeightsError, match=rf"types that the factory's model cannot take: {name}"):
            cp.load(compact, Finite)

    def test_floating_point_where_the_model_counts(self, compact: Path) -> None:
        self.put(compact, "norm.num_batches_tracked", torch.tensor(1.5), old=False)
        with pytest.raises(WeightsError, match=r"cannot take: norm\.num_batches_tracked"):
            cp.load(compact, Finite)

    def test_values_too_large_for_the_model(self, compact: Path) -> None:
        tensor = load_file(compact / "model.safetensors")["stem.weight"].double() * 1e50
        self.put(compact, "stem.weight", tensor, old=False)
        with pytest.raises(WeightsError, match="too narrow"):
            cp.load(compact, Finite)

    @pytest.mark.parametrize("place", [0, 8, 9, 200, -1, -2, -100])
    def test_a_flipped_bit(self, place: int, compact: Path) -> None:
        path = compact / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(bytes(content))
        with pytest.raises(WeightsError, match=r"model\.safetensors"):
            cp.load(compact, Finite)

    def test_a_digest_that_is_left_out(self, compact: Path) -> None:
        change_file(compact / "structure.json", lambda d: d.pop("tensors_sha256"), sealed=True)
        with pytest.raises(WeightsError, match="lacks the digest"):
            cp.load(compact, Finite)

    def test_folders_of_version_1_still_load(self, compact: Path) -> None:
        before = cp.load(compact, Finite)
        change_file(compact / "structure.json", lambda d: None, sealed=False)
        assert "sha256" not in (compact / "structure.json").read_text()
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(cp.load(compact, Finite)(x), before(x))

    def test_infinity_in_a_buffer_of_the_model_is_no_fault(self, tmp_path: Path) -> None:
        cp.save(Net(), tmp_path / "net")
        assert cp.load(tmp_path / "net", Net).mask.tolist() == [0.0, -np.inf]
        with pytest.raises(WeightsError, match=r"NaN or infinite.*mask"):
            cp.load(tmp_path / "net", Finite)

    def test_what_was_added_has_the_type_of_the_model(self, compact: Path) -> None:
        small = cp.load(compact, Finite).half()
        cp.save(small, compact.with_name("half"))
        loaded = cp.load(compact.with_name("half"), Finite)
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}
        loaded(torch.zeros(1, 3, 8, 8))


def test_an_example_too_large_to_be_one() -> None:
    with pytest.raises(PlanError, match="too large"):
        rebuild_example(({"keyword": None, "shape": [10**6, 10**6], "dtype": "float32"},))
