"""What must hold for one wild network, and what came of it: cut, nothing to cut, refused by name, or a failure.

A refusal with one of the library's own errors is no failure, but it is counted with its reason. A number that differs
and an exception of anybody else are failures.
"""

import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import leaves, make_twins, oracle, random_plan
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from wild_networks import SIZES, WildNetwork, WildRecipe, shrink

import clusterprune as cp
from clusterprune.errors import ClusterpruneError, UntrainableWarning
from clusterprune.surgery.cutting import cutter
from clusterprune.surgery.history import stages
from clusterprune.surgery.masking import compact_state, masked_state

TOLERANCE = 1e-9
"""Largest difference within a slice, relative to the largest number in it: float64 through norms and exponentials."""

TRAINING_TOLERANCE = 1e-6
"""Statistics over three images amplify rounding."""


class LawError(AssertionError):
    """A cut network is not what the masked one is, or the original is not what it was."""


class BadRecipe(Exception):  # noqa: N818 (no fault of the library)
    """The network itself does not run: a fault of the generator."""


@dataclass
class Result:
    """What came of one network.

    `outcome` is "cut", "uncut" (no group may be cut), "refused" (an error of the library's own in trace or apply),
    "wrong" or "crash". `notes` say what else was seen on the way.
    """

    recipe: WildRecipe
    outcome: str = "cut"
    detail: str = ""
    notes: list[str] = field(default_factory=list)
    frozen: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"

    def network(self, weights: int | None = None) -> WildNetwork:
        """Build the network anew."""
        return WildNetwork(self.recipe, weights).to(self.device).eval()

    def inputs(self, batch: int, size: tuple[int, ...] | None = None, seed: int = 0) -> dict[str, Tensor]:
        """Return random inputs."""
        made = WildNetwork.inputs(self.recipe, batch, size, seed)
        return {name: tensor.to(self.device) for name, tensor in made.items()}

    @property
    def failed(self) -> bool:
        """Tell whether this is a wrong answer or a foreign exception."""
        return self.outcome in ("wrong", "crash")

    @property
    def kind(self) -> str:
        """Outcome and detail without names and numbers, to count by."""
        return f"{self.outcome}: {general(self.detail)}" if self.detail else self.outcome


def general(text: str) -> str:
    """Return a message without what differs from one network to another."""
    text = re.sub(r"\b[\w.]*\d[\w.]*\b|'[^']*'|\[[^]]*\]", "…", text.splitlines()[0] if text else "")
    return re.sub(r"(…[\s,]*)+", "… ", text)[:110].strip()


def check(recipe: WildRecipe, device: str = "cpu") -> Result:
    """Check every law for one recipe and say what came of it; never raises for a fault of the library."""
    result = Result(recipe, device=device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UntrainableWarning)  # what it says of training is checked
            _check(recipe, result)
    except LawError as error:
        result.outcome, result.detail = "wrong", str(error)
    except BadRecipe:
        raise
    except _Refused as error:
        result.outcome, result.detail = "refused", f"{type(error.__cause__).__name__}: {error.__cause__}"
    except Exception as error:
        result.outcome, result.detail = "crash", f"{type(error).__name__}: {error}"
    return result


class _Refused(Exception):  # noqa: N818 (what a step answered, not an error of this file)
    """One of the library's own errors, where one is an answer."""


def _or_refused(step: Callable[[], Any]) -> Any:
    try:
        return step()
    except ClusterpruneError as error:
        raise _Refused from error


def minimal(result: Result, tries: int = 60) -> WildRecipe:
    """Return a simpler recipe that fails in the same way."""
    kind = result.outcome, general(result.detail)[:25]

    def fails(recipe: WildRecipe) -> bool:
        try:
            again = check(recipe)
        except BadRecipe:
            return False
        return (again.outcome, general(again.detail)[:25]) == kind

    return shrink(result.recipe, fails, tries)


def _check(recipe: WildRecipe, result: Result) -> None:
    model = result.network()
    inputs = result.inputs(3)
    try:
        with torch.no_grad():
            whole = result.network()(**inputs)
        if recipe.warm:  # as models are that have been used before
            model(**result.inputs(2))
    except Exception as error:
        raise BadRecipe(f"{recipe!r}: {error}") from error
    before = snapshot(model)
    example = result.inputs(1 + (recipe.seed % 5 == 0))
    graph = _or_refused(lambda: cp.trace(model, dict(example) if recipe.keywords else _positional(example)))
    _same_model(model, before, "trace")
    result.frozen = {group.name: group.frozen for group in graph.groups if group.frozen is not None}
    if not graph.prunable:
        result.outcome = "uncut"
        return
    plan = random_plan(graph, recipe.seed, offset=recipe.seed % 2 == 0, every_group=recipe.seed % 3 != 0)
    small = _or_refused(lambda: cp.apply(model, plan, graph=graph))
    _same_model(model, before, "apply")
    result.notes.append("rewired" if isinstance(small, fx.GraphModule) else "class kept")

    with torch.no_grad():
        masked = _load(result.network(), masked_state(graph, plan))
        _same_outputs(small, masked, example, "evaluation at the traced batch")
        if type(small(**example)) is not type(whole):
            raise LawError(f"returns {type(small(**example)).__name__}, the original {type(whole).__name__}")
        _same_or_refused(small, masked, inputs, result, "batch")
        size = SIZES[recipe.dims]
        other = result.inputs(2, tuple(size + 4 * (d == 0) for d in range(recipe.dims)), seed=5)
        _same_or_refused(small, masked, other, result, "size")
        if "class kept" in result.notes or recipe.seed // 8 % 3 == 0:  # a rewired one is traced again by each load
            _check_saving(result, small, example)
    _check_opened(result, graph, plan, small)
    if recipe.seed // 4 % 2:  # which costs a second cut
        _check_twins(result, graph, example)


def _positional(inputs: Mapping[str, Tensor]) -> Any:
    names = ("x", "image", "other", "vector")
    if list(inputs) == list(names[: len(inputs)]):
        return tuple(inputs.values())
    return dict(inputs)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return everything that a module holds, plain attributes included."""
    kept: dict[str, Any] = {"state": {k: v.detach().clone() for k, v in model.state_dict().items()}}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                kept[f"{path}/{name}"] = (value, value.clone() if isinstance(value, Tensor) else None)
                if isinstance(value, (dict, list)):  # hooks, for one
                    inside = value.items() if isinstance(value, dict) else enumerate(value)
                    kept[f"{path}/{name}/inside"] = [(key, _identity(part)) for key, part in inside]
        kept[f"{path}/ids"] = [id(value) for table in (module._parameters, module._buffers) for value in table.values()]
        kept[f"{path}/hidden"] = {k: v.detach().clone() for k, v in module._buffers.items() if v is not None}
    return kept


def _identity(value: Any) -> Any:
    """Return what is the same as long as a value is: plain data by value, everything else by identity."""
    if isinstance(value, (list, tuple)):
        return [_identity(part) for part in value]
    return value if isinstance(value, (str, int, float, type(None))) else id(value)


def _same_model(model: nn.Module, before: dict[str, Any], by: str) -> None:
    """Law 1."""
    after = snapshot(model)
    if after.keys() != before.keys():
        raise LawError(f"{by} left or took attributes: {sorted(after.keys() ^ before.keys())[:3]}")
    for key, value in before.items():
        now = after[key]
        if key == "state" or key.endswith("/hidden"):
            same = value.keys() == now.keys() and all(torch.equal(value[k], now[k]) for k in value)
        elif isinstance(value, tuple):
            same = value[0] is now[0] or type(value[0]) is type(now[0])
            if isinstance(value[0], Tensor):
                same = type(now[0]) is type(value[0]) and now[0].shape == value[1].shape
                same = same and torch.equal(now[0].detach(), value[1].detach())
            elif same and isinstance(value[0], (int, float, str, bool, torch.Size, tuple, type(None))):
                same = value[0] == now[0]
        else:
            same = value == now
        if not same:
            raise LawError(f"{by} changed the model's {key}")
    if stages(model):
        raise LawError(f"{by} noted a history on the model")


def _load(network: nn.Module, state: Mapping[str, Tensor], *, add: bool = True) -> nn.Module:
    """Write tensors into a network in place, each to its path; what it lacks is a bias to be added, or left out.

    A network that was rebuilt from its graph lacks the layers that its graph never runs.
    """
    own = {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }
    with torch.no_grad():
        for path, tensor in state.items():
            if path in own:
                if own[path].shape != tensor.shape:
                    raise LawError(f"{path} has shape {tuple(own[path].shape)}, not {tuple(tensor.shape)}")
                own[path].copy_(tensor)
            elif add:
                owner, _, name = path.rpartition(".")
                network.get_submodule(owner).register_parameter(name, nn.Parameter(tensor.clone()))
    return network


def worst(actual: Any, expected: Any) -> float:
    """Return the largest difference over all slices of all outputs, each relative to the largest number in it."""
    first, second = (torch.utils._pytree.tree_flatten(output) for output in (actual, expected))
    if len(first[0]) != len(second[0]):
        return math.inf
    return max((_worst_leaf(a, b) for a, b in zip(first[0], second[0], strict=True)), default=0.0)


def _worst_leaf(a: Any, b: Any) -> float:
    if not isinstance(b, Tensor) or not isinstance(a, Tensor):
        return 0.0 if type(a) is type(b) and a == b else math.inf
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if not b.is_floating_point() or not b.numel():
        return 0.0 if torch.equal(a, b) else math.inf
    finite = b.isfinite()
    if not torch.equal(finite, a.isfinite()) or not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return math.inf
    a, b = a.detach().where(finite, 0), b.detach().where(finite, 0)
    gap, size = (a - b).abs(), b.abs()
    floor = 1e-6 * float(size.max()) + 1e-12  # below it a slice is noise beside the others
    found = 0.0
    for dim in {1, b.ndim - 1} & set(range(b.ndim)):
        others = [d for d in range(b.ndim) if d != dim]
        scale = size.amax(others) if others else size
        found = max(found, float(((gap.amax(others) if others else gap) / scale.clamp(min=floor)).max()))
    return found


def _same_outputs(small: nn.Module, masked: nn.Module, inputs: Mapping[str, Tensor], when: str) -> None:
    error = worst(small(**inputs), masked(**inputs))
    if not error < TOLERANCE:
        raise LawError(f"{when}: relative error {error:.1e}")


def _same_or_refused(
    small: nn.Module, masked: nn.Module, inputs: Mapping[str, Tensor], result: Result, what: str
) -> None:
    """At another batch or image size: the same as the masked original where that runs, or an error that says "size"."""
    try:
        expected = masked(**inputs)
    except Exception:
        result.notes.append(f"{what}: the original does not take it")
        return
    try:
        actual = small(**inputs)
    except ClusterpruneError:
        result.notes.append(f"{what}: refused by name")
        return
    except Exception as error:
        if "size" not in str(error).lower():
            raise
        result.notes.append(f"{what}: an error that says so")
        return
    error = worst(actual, expected)
    if not error < TOLERANCE:
        raise LawError(f"evaluation at another {what}: relative error {error:.1e}")
    result.notes.append(f"{what}: the same")


def _check_saving(result: Result, small: nn.Module, example: Mapping[str, Tensor]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cp.save(small, Path(folder) / "small")
        expected = small(**example)
        again = cp.load(Path(folder) / "small", lambda: WildNetwork(result.recipe)).to(result.device)
    error = worst(again(**example), expected)
    if not error < TOLERANCE:
        raise LawError(f"after save and load: relative error {error:.1e}")


def _with_model(graph: cp.ChannelGraph, model: nn.Module) -> cp.ChannelGraph:
    """Return the graph of another model of the same recipe."""
    other = replace(graph, model=model)
    if "batch_size" in vars(graph):  # found by an export that need not be repeated
        vars(other)["batch_size"] = graph.batch_size
    return other


def _check_opened(result: Result, graph: cp.ChannelGraph, plan: cp.Plan, small: nn.Module) -> None:
    """Law 2 with every parameter drawn anew (branches that were closed are open), in evaluation and in training."""
    opened = result.network(weights=result.recipe.seed + 1)
    anew = _with_model(graph, opened)
    masked = _load(result.network(), masked_state(anew, plan))
    _load(small, compact_state(anew, plan), add=False)
    with torch.no_grad():
        one = result.inputs(1 + (result.recipe.seed % 5 == 0), seed=9)
        _same_outputs(small.eval(), masked, one, "evaluation with opened branches")
    three = result.inputs(3, seed=9)
    try:
        with calm():
            expected = masked.train()(**three)
        gradients = _backward(masked, expected)
    except Exception:
        result.notes.append("training: the original does not take it")
        return
    try:
        with calm():
            actual = small.train()(**three)
    except Exception as error:
        if not isinstance(error, ClusterpruneError) and "size" not in str(error).lower():
            raise
        result.notes.append("training: refused by name")
        return
    error = worst(actual, expected)
    if not error < TRAINING_TOLERANCE:
        raise LawError(f"training: relative error {error:.1e}")
    ours = dict(small.named_buffers())
    away = cutter(graph, plan)
    for path, buffer in masked.named_buffers():
        if path in ours and (error := _worst_leaf(ours[path], away(path, buffer))) > TRAINING_TOLERANCE:
            raise LawError(f"training: the buffer {path} differs by {error:.1e}")
    found = _backward(small, actual)
    if found is False and gradients is True:
        raise LawError("training: no gradients, or gradients that are not finite")
    result.notes.append("training: the same")


def _backward(network: nn.Module, outputs: Any) -> bool | None:
    """Tell whether gradients arrive and are finite, or None where no output has any."""
    tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    parts = [t.where(t.isfinite(), 0).square().mean() for t in tensors if t.requires_grad]
    if not parts:
        return None
    torch.stack(parts).sum().backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return bool(gradients) and all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def _check_twins(result: Result, graph: cp.ChannelGraph, inputs: Mapping[str, Tensor]) -> None:
    """Law 3, for one group that only stored weights read."""
    rng = np.random.default_rng(result.recipe.seed)
    groups = [g for g in graph.prunable if g.consumers and all(use.mixable for use in g.consumers)]
    if not groups:
        return
    group = groups[rng.integers(len(groups))]
    twinned = result.network()
    anew = _with_model(graph, twinned)
    with torch.no_grad():
        twins = make_twins(anew, group, rng)
        kept = np.setdiff1d(np.arange(group.width), list(twins))
        indicator = torch.zeros(group.width, len(kept), dtype=torch.float64)
        indicator[kept, np.arange(len(kept))] = 1
        for copied, original in twins.items():
            indicator[copied, kept.tolist().index(original)] = 1
        merge = cp.Merge(group.name, kept, {use.path: indicator for use in group.consumers})
        try:
            small = cp.apply(twinned, cp.Plan.of(anew, (merge,)), graph=anew)
        except ClusterpruneError:
            result.notes.append("identical channels: refused by name")
            return
        actual = small(**inputs)
        error = worst(actual, twinned(**inputs))
        if not error < TOLERANCE:
            # The code may treat equal filters differently (one half scaled): then the plan's meaning is the truth.
            meant = oracle(anew, cp.Plan.of(anew, (merge,)), tuple(inputs.values()))
            error = worst(leaves(actual), [leaf for leaf in meant if isinstance(leaf, Tensor)])
            result.notes.append("identical channels: told apart by the code")
        if not error < TOLERANCE:
            raise LawError(f"a merge of identical channels of {group.name}: relative error {error:.1e}")


class _Calm(TorchFunctionMode):
    """Dropout hands its input on."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if "dropout" in getattr(func, "__name__", "") else func(*args, **(kwargs or {}))


@contextmanager
def calm() -> Iterator[None]:
    """Take the chance out of a forward: no dropout, and the same random numbers."""
    torch.manual_seed(0)
    with _Calm():
        yield
