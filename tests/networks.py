"""Random small convolutional networks, random plans for them, and an oracle that needs no surgery.

A network is drawn as a :class:`Recipe`, plain data whose `repr` rebuilds it, so that every counterexample that
hypothesis prints can be pasted into a test.
"""

import copy
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import network_moves  # noqa: F401  (registers its blocks)
import numpy as np
import torch
from examples import examples
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from network_blocks import BLOCKS, CHAIN, WIDTHS, Block, build_chain
from torch import Tensor, nn
from torch.nn import functional

import clusterprune as cp
from clusterprune.graph import Group
from clusterprune.graph.program import Program, Ref, named_tensors
from clusterprune.surgery.bias_homes import bias_home
from clusterprune.surgery.masking import masked_state

torch.set_num_threads(1)

PROFILE = settings(
    max_examples=examples(300),
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
"""How the random networks are drawn: enough of them, and the same in every run, so that a failure can be repeated."""

SIZE = 8
CHANNELS = 3
STEMS = ("conv", "add", "cat", "film", "raw")
HEADS = ("linear", "flatten", "hard_view", "hidden", "dense", "dictionary", "nested", "channels_last", "matmul",
         "max", "hard_mean", "raw")  # fmt: skip
ChainRecipe = tuple[tuple[str, dict[str, Any]], ...]


@dataclass(frozen=True)
class Recipe:
    """All there is to know about a random network."""

    chain: ChainRecipe
    stem: str = "conv"
    head: str = "linear"
    width: int = 8
    seed: int = 0


@st.composite
def chains(draw: st.DrawFn, least: int, most: int, depth: int = 0) -> ChainRecipe:
    """Draw blocks and the options of each; blocks that hold chains hold no further ones."""
    allowed = [name for name, (_, options) in BLOCKS.items() if depth == 0 or CHAIN not in options.values()]
    drawn = []
    for name in draw(st.lists(st.sampled_from(allowed), min_size=least, max_size=most)):
        options = {
            key: draw(chains(0, 2, depth + 1)) if choices == CHAIN else draw(st.sampled_from(choices))
            for key, choices in BLOCKS[name][1].items()
        }
        drawn.append((name, options))
    return tuple(drawn)


def recipes(least: int = 3, most: int = 7) -> st.SearchStrategy[Recipe]:
    """Draw networks of a number of blocks between a stem and a head."""
    return st.builds(
        Recipe,
        chain=chains(least, most),
        stem=st.sampled_from(STEMS),
        head=st.sampled_from(HEADS),
        width=st.sampled_from(WIDTHS),
        seed=st.integers(0, 2**16),
    )


class Network(nn.Module):
    """Stem, chain and head of a recipe."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.recipe = recipe
        self.stem_kind, self.head_kind, width = recipe.stem, recipe.head, recipe.width
        if recipe.stem == "raw":
            width = CHANNELS
        else:
            self.stem = nn.Conv2d(CHANNELS, width, 3, padding=1, bias=recipe.stem == "conv")
        if recipe.stem in ("add", "cat"):
            self.other_stem = nn.Conv2d(2, width, 1)
        if recipe.stem == "film":
            self.film = nn.Linear(5, 2 * width)
        self.chain: Block = build_chain(recipe.chain, 2 * width if recipe.stem == "cat" else width, SIZE)
        self.channels, self.size = c, s = self.chain.out_channels, self.chain.out_size
        if recipe.head in ("flatten", "hard_view"):
            self.head = nn.Linear(c * s * s, 4)
        elif recipe.head == "hidden":
            self.head = nn.Sequential(
                nn.Flatten(),
                nn.Linear(c * s * s, 6),
                nn.BatchNorm1d(6),
                nn.ReLU(inplace=True),
                nn.Dropout(),
                nn.Linear(6, 4),
            )
        elif recipe.head == "dense":
            self.head = nn.Conv2d(c, 3, 1)
        elif recipe.head in ("dictionary", "nested"):
            self.head, self.map = nn.Linear(c, 4), nn.Conv2d(c, 2, 3, padding=1)
        elif recipe.head == "matmul":
            self.w, self.b = nn.Parameter(torch.empty(c, 4)), nn.Parameter(torch.empty(4))
        elif recipe.head != "raw":
            self.head = nn.Linear(c, 4)
        self.double()
        initialize(self, recipe.seed)

    def inputs(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Return random inputs."""
        generator = torch.Generator().manual_seed(seed + 100 * batch)
        shapes = [(batch, CHANNELS, SIZE, SIZE)]
        if self.stem_kind in ("add", "cat"):
            shapes.append((batch, 2, SIZE, SIZE))
        if self.stem_kind == "film":
            shapes.append((batch, 5))
        return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        if self.stem_kind != "raw":
            x = self.stem(x)
        if self.stem_kind == "add":
            x = functional.relu(x) + self.other_stem(y)
        elif self.stem_kind == "cat":
            x = torch.cat([self.other_stem(y), x], dim=1)
        elif self.stem_kind == "film":
            scale, shift = self.film(y).chunk(2, dim=1)
            x = x * scale[:, :, None, None] + shift[:, :, None, None]
        return self._head(self.chain(x))

    def _head(self, x: Tensor) -> Any:
        kind = self.head_kind
        if kind in ("hidden", "dense"):
            return self.head(x)
        if kind == "flatten":
            return self.head(torch.flatten(x, 1))
        if kind == "hard_view":
            return self.head(x.reshape(-1, self.channels * self.size * self.size))
        if kind == "hard_mean":
            return self.head(x.reshape(x.shape[0], self.channels, self.size**2).mean(-1))
        if kind == "dictionary":
            return {"score": self.head(x.mean((2, 3))), "map": self.map(x)}
        if kind == "nested":
            return self.head(functional.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)), [
                self.map(x),
                self.map(functional.relu(x)),
            ]
        if kind == "channels_last":
            return self.head(x.permute(0, 2, 3, 1)).mean((1, 2))
        if kind == "matmul":
            return x.mean((2, 3)) @ self.w + self.b
        if kind == "max":
            return self.head(x.flatten(2).max(-1)[0])
        return x if kind == "raw" else self.head(x.mean((2, 3)))


def initialize(model: nn.Module, seed: int) -> None:
    """Draw every parameter and statistic at random, so that no default value (0 or 1) can hide an error.

    The generator is seeded by the tensor's name: tensors that are tied are drawn once, under their first name.
    """
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
            leaf = name.rpartition(".")[2]
            if leaf == "running_var" or (tensor.ndim == 1 and leaf == "weight"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.ndim <= 1:
                tensor.uniform_(-0.6, 0.6, generator=generator)
            else:
                fan_in = max(1, math.prod(tensor.shape[1:]))
                tensor.normal_(generator=generator).mul_(1.4 / math.sqrt(fan_in))


def random_plan(
    graph: cp.ChannelGraph,
    seed: int,
    *,
    mixing: bool = True,
    offset: bool = False,
    every_group: bool = True,
    only: str | None = None,
    harmless_offsets: bool = False,
) -> cp.Plan:
    """Draw kept sets, mixing matrices and offsets for the groups that may be cut.

    Offsets go only where the layer can take them up; with `harmless_offsets` only where a constant input adds
    the same everywhere (no zero padding), so that the oracle knows their exact effect.
    """
    rng = np.random.default_rng(seed)
    merges = []
    for group in graph.prunable:
        if (only and group.name != only) or (not every_group and rng.random() < 0.4):
            continue
        kept = random_kept(group, rng)
        matrices, offsets = {}, {}
        for use in group.consumers:
            if mixing and rng.random() < 0.8 and use.mixable:
                matrices[use.path] = random_mixing(group, kept, rng)
            if offset and bias_home(graph, use.path) and not (harmless_offsets and _pads(graph, use.path)):
                offsets[use.path] = torch.from_numpy(rng.normal(size=group.width))
        merges.append(cp.Merge(group.name, kept, matrices, offsets))
    return cp.Plan.of(graph, tuple(merges))


def random_kept(group: Group, rng: np.random.Generator) -> np.ndarray:
    """Draw which channels stay: the same number, at least one and never all, in every block."""
    members = [np.flatnonzero(group.blocks == block) for block in range(group.n_blocks)]
    count = int(rng.integers(1, max(2, len(members[0]))))
    return np.sort(np.concatenate([rng.choice(block, count, replace=False) for block in members]))


def random_mixing(group: Group, kept: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Draw a dense matrix near the selection of the kept channels, block-diagonal over the group's blocks."""
    matrix = rng.normal(size=(group.width, len(kept))) * 0.3
    matrix *= group.blocks[:, None] == group.blocks[kept][None]
    matrix[kept, np.arange(len(kept))] += 1
    return torch.from_numpy(matrix)


def _pads(graph: cp.ChannelGraph, weight: str) -> bool:
    """Tell whether a layer's kernel can reach over the border."""
    return any(c.weight == weight and c.kind in ("conv", "conv_transpose") for c in graph.calls) and any(
        length > 1 for length in named_tensors(graph)[weight].shape[2:]
    )


def oracle(graph: cp.ChannelGraph, plan: cp.Plan, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Run the original network, replacing what each consumer reads by `mixing @ F[kept] + offset`.

    This is the meaning of a plan, carried out on activations: no weight is changed and nothing is cut.
    """
    program = Program(graph)
    columns = {"conv": 1, "conv_transpose": 1, "linear": -1, "matmul": -1}
    calls = {call.node: call for call in graph.calls}
    values = program.start(named_tensors(graph), inputs)
    with torch.no_grad():
        for index, step in enumerate(program.steps):
            call = calls.get(step.name)
            source = step.args[0] if call else None
            if call and isinstance(source, Ref):
                original = values[source.name]
                x = original.movedim(columns[call.kind], -1).clone()
                for merge, group, use in _readers(graph, plan, call.weight):
                    default = torch.eye(group.width, dtype=x.dtype)[:, merge.kept]
                    mixing = merge.mixing.get(use.path, default)
                    offset = merge.offset.get(use.path, torch.zeros(group.width, dtype=x.dtype))
                    for place in use.positions.T:
                        x[..., place] = x[..., place[merge.kept]] @ mixing.T + offset
                values[source.name] = x.movedim(-1, columns[call.kind])
                program.advance(values, index, index + 1)
                if source.name in values:
                    values[source.name] = original
            else:
                program.advance(values, index, index + 1)
    return [values[leaf.name] if isinstance(leaf, Ref) else leaf for leaf in program.output]


def _readers(graph: cp.ChannelGraph, plan: cp.Plan, weight: str) -> Iterator[tuple[cp.Merge, Group, Any]]:
    for merge in plan.merges:
        group = graph.by_name[merge.group]
        for use in group.consumers:
            if use.path == weight:
                yield merge, group, use


def masked_reference(model: nn.Module, graph: cp.ChannelGraph, plan: cp.Plan) -> nn.Module:
    """Return a copy of the original at its full size, with the plan's masked tensors loaded (law 2's other side)."""
    reference = copy.deepcopy(model)
    own = {**dict(reference.named_parameters()), **dict(reference.named_buffers())}
    with torch.no_grad():
        for path, tensor in masked_state(graph, plan).items():
            if path in own:
                own[path].copy_(tensor)
            else:
                owner, _, name = path.rpartition(".")
                reference.get_submodule(owner).register_parameter(name, nn.Parameter(tensor))
    return reference


def make_twins(graph: cp.ChannelGraph, group: Group, rng: np.random.Generator) -> dict[int, int]:
    """Copy one channel of each block onto another, wherever it is made or carried."""
    tensors = {**dict(graph.model.named_parameters()), **dict(graph.model.named_buffers())}
    twins: dict[int, int] = {}
    for block in range(group.n_blocks):
        original, copied = rng.choice(np.flatnonzero(group.blocks == block), 2, replace=False).tolist()
        twins[copied] = original
        for use in (*group.producers, *group.carriers):
            tensor = tensors[use.path].movedim(use.dim, 0)
            tensor[use.positions[copied]] = tensor[use.positions[original]].clone()
    return twins


def reordered(model: nn.Module, groups: tuple[Group, ...]) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the same network with the channels of its groups in another order, and that order by name of group."""
    model = copy.deepcopy(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    orders = {}
    for group in groups:
        order = orders[group.name] = torch.randperm(group.width, generator=torch.Generator().manual_seed(1))
        for use in (*group.producers, *group.carriers, *group.consumers):
            with torch.no_grad():
                tensor = tensors[use.path].movedim(use.dim, 0)
                at = torch.from_numpy(use.positions)
                tensor[at.flatten()] = tensor[at[order].flatten()].clone()
    return model, orders


class Residual(nn.Module):
    """A plain layer, a residual stream that two layers make, and a depthwise layer on it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.inner_norm = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.outer, self.outer_norm = nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x)).relu()
        y = self.outer_norm(self.outer(self.inner_norm(self.inner(x)).relu()))
        return self.head(self.depthwise((x + y).relu()).mean((2, 3)))


def residual_network() -> nn.Module:
    """Return it with batch norms that differ by channel."""
    torch.manual_seed(0)
    model = Residual().eval()
    with torch.no_grad():
        for module in (model.stem_norm, model.inner_norm, model.outer_norm):
            for tensor in (module.weight, module.bias, module.running_mean):
                tensor.normal_()
    return model


def leaves(output: Any) -> list[Tensor]:
    """Return the tensors of an output, whatever nest they come in."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def difference(actual: Any, expected: Any) -> float:
    """Return the largest of ‖a - b‖ / ‖b‖ over the tensors of two outputs."""
    first, second = leaves(actual), leaves(expected)
    if [a.shape for a in first] != [b.shape for b in second]:
        return math.inf
    return max(
        float((a - b).detach().norm() / b.detach().norm().clamp(min=1e-9)) for a, b in zip(first, second, strict=True)
    )


def parameters(model: nn.Module) -> int:
    """Count the elements of a model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
