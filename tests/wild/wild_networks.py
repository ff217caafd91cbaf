"""Wild random networks: how they are written down, built, drawn from a seed, and made smaller after a failure."""

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import wild_branches  # noqa: F401  (it registers its blocks, as the next four do)
import wild_idioms  # noqa: F401
import wild_layers  # noqa: F401
import wild_mixing  # noqa: F401
import wild_moves  # noqa: F401
from network_blocks import CHAIN
from networks import initialize
from torch import Tensor, nn
from torch.nn import functional
from wild_base import ChainRecipe, Side, Site, WildChain, fit, names_for, options_of, pooled, stretch

SIZES = {1: 16, 2: 8, 3: 4}
DEEPEST = 3
"""How many chains may hold one another."""

STEMS = ("conv", "raw", "image", "small_image", "vector", "both", "siamese")
HEADS = ("linear", "map", "scales", "detector", "tuple", "named", "integers", "auxiliary", "training_extra", "flatten",
         "masked", "pyramid", "hidden")  # fmt: skip
WIDTHS = (8, 6, 5, 12)


@dataclass(frozen=True)
class WildRecipe:
    """All there is to know about a wild network; its `repr` can be pasted."""

    chain: ChainRecipe = ()
    dims: int = 2
    stem: str = "conv"
    head: str = "linear"
    width: int = 8
    keywords: bool = False
    warm: bool = False
    seed: int = 0

    def blocks(self) -> list[str]:
        """Return the names of all blocks, nested ones too, each with its form."""
        return [
            f"{name}:{options['form']}" if "form" in options else name for name, options in _flat(self.chain)
        ]  # fmt: skip


class Scored(NamedTuple):
    """An output with names."""

    scores: Tensor
    features: Tensor
    level: int


class WildNetwork(nn.Module):
    """Stem, chain and head of a wild recipe, in float64."""

    def __init__(self, recipe: WildRecipe, weights: int | None = None):
        super().__init__()
        self.recipe = recipe
        site = Site(3 if recipe.stem == "raw" else recipe.width, SIZES[recipe.dims], recipe.dims)
        self.stem = site.conv(site.channels, channels=3) if recipe.stem != "raw" else nn.Identity()
        self.image = site.conv(site.channels, channels=2) if recipe.stem in ("image", "both", "small_image") else None
        self.vector = nn.Linear(5, site.channels) if recipe.stem in ("vector", "both") else None
        if recipe.stem == "siamese":
            site = site.but(2 * site.channels)
        self.chain = WildChain(site, recipe.chain)
        end = self.chain.out
        c = end.channels
        self.head = nn.Linear(c * end.size**end.dims if recipe.head == "flatten" else c, 4)
        self.map, self.boxes = end.conv(3, 1), end.conv(4, 1)
        self.aux = nn.Sequential(end.conv(5, channels=site.channels), nn.ReLU(), end.conv(2, 1, channels=5))
        self.hidden = nn.Sequential(nn.Linear(c, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 4))
        self.double()
        self._draw(recipe.seed if weights is None else weights, opened=weights is not None)

    def _draw(self, seed: int, *, opened: bool) -> None:
        """Draw all parameters; closed branches stay closed unless the network is to be opened."""
        built = {
            f"{path}.{name}": self.get_parameter(f"{path}.{name}").detach().clone()
            for path, module in self.named_modules()
            for name in getattr(module, "as_built", ())
            if dict(module.named_parameters()).get(name) is not None
        }
        masks = {path: buffer.clone() for path, buffer in self.named_buffers() if path.endswith("mask")}
        initialize(self, seed)
        with torch.no_grad():
            for path, value in masks.items():
                self.get_buffer(path).copy_(value)
            for path, value in ({} if opened else built).items():
                self.get_parameter(path).copy_(value)

    @staticmethod
    def inputs(recipe: WildRecipe, batch: int, size: tuple[int, ...] | None = None, seed: int = 0) -> dict[str, Tensor]:
        """Return random inputs by name."""
        generator = torch.Generator().manual_seed(seed + 100 * batch)
        stem, dims = recipe.stem, recipe.dims
        size = size or (SIZES[dims],) * dims
        shapes: dict[str, tuple[int, ...]] = {"x": (batch, 3, *size)}
        if stem in ("image", "both"):
            shapes["image"] = (batch, 2, *size)
        elif stem == "small_image":
            shapes["image"] = (batch, 2, *(s // 2 for s in size))
        elif stem == "siamese":
            shapes["other"] = (batch, 3, *size)
        if stem in ("vector", "both"):
            shapes["vector"] = (batch, 5)
        return {k: torch.randn(s, generator=generator, dtype=torch.float64) for k, s in shapes.items()}

    def forward(
        self, x: Tensor, image: Tensor | None = None, other: Tensor | None = None, vector: Tensor | None = None
    ) -> Any:
        side: Side = {k: v for k, v in (("image", image), ("vector", vector)) if v is not None}
        x = self.stem(x)
        if other is not None:
            x = torch.cat([x, self.stem(other)], 1)
        if self.image is not None and image is not None:
            x = functional.relu(x) + fit(self.image(image), x)
        if self.vector is not None and vector is not None:
            x = x * stretch(torch.sigmoid(self.vector(vector)), x)
        if "image" in side:
            side = {**side, "image": fit(side["image"], x)}
        return self._head(self.chain(x, side), x)

    def _head(self, x: Tensor, early: Tensor) -> Any:
        kind = self.recipe.head
        if kind == "map":
            return self.map(x)
        if kind == "flatten":
            return self.head(x.flatten(1))
        if kind == "hidden":
            return self.hidden(pooled(x))
        if kind == "training_extra":
            return (self.head(pooled(x)), self.aux(early)) if self.training else self.head(pooled(x))
        scores = self.head(pooled(x))
        if kind == "scales":
            probability = self.map(x).softmax(1)
            return {"pixels": self.boxes(x) * 640, "probability": probability, "scores": scores, "none": None}
        if kind == "detector":  # boxes in pixels and probabilities in one tensor
            return torch.cat([self.boxes(x).exp() * 64, self.map(x).sigmoid()], 1)
        if kind == "tuple":
            return scores, [self.map(x), early, None], {"features": x}
        if kind == "named":
            return Scored(scores, x.flatten(2), 3)
        if kind == "integers":
            return scores.argmax(1)
        if kind == "auxiliary":
            extra = {"auxiliary": self.aux(early)} if self.training else {}
            return {"out": scores, **extra}
        if kind == "masked":
            allowed = torch.tensor([True, False, True, True], device=x.device)
            return scores.masked_fill(~allowed, -torch.inf), scores.sigmoid()
        if kind == "pyramid":
            return [self.map(x), self.map(functional.relu(x)), self.boxes(x.flip(-1))]
        return scores


def draw(seed: int, *, dims: int | None = None) -> WildRecipe:
    """Draw a wild network; the same one for the same seed."""
    rng = random.Random(zlib.crc32(f"wild {seed}".encode()))
    dims = dims or rng.choice((2, 2, 2, 1, 3))
    return WildRecipe(
        chain=_draw_chain(rng, dims, 2, 4, 0),
        dims=dims,
        stem=rng.choice(("conv", "conv", *STEMS)),
        head=rng.choice(HEADS),
        width=rng.choice(WIDTHS),
        keywords=rng.random() < 0.3,
        warm=rng.random() < 0.3,
        seed=rng.randrange(2**16),
    )


def _draw_chain(rng: random.Random, dims: int, least: int, most: int, depth: int) -> ChainRecipe:
    wild, tame = names_for(dims)
    if depth >= DEEPEST:
        wild = [name for name in wild if CHAIN not in options_of(name).values()]
    tame = [name for name in tame if CHAIN not in options_of(name).values()]
    drawn = []
    for _ in range(rng.randint(least, most)):
        name = rng.choice(tame if tame and rng.random() < 0.2 else wild)
        options = {
            key: _draw_chain(rng, dims, 0, 2 - (depth > 0), depth + 1) if choices == CHAIN else rng.choice(choices)
            for key, choices in options_of(name).items()
        }
        drawn.append((name, options))
    return tuple(drawn)


def _flat(chain: ChainRecipe) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, options in chain:
        yield name, options
        for value in options.values():
            if isinstance(value, tuple) and value and isinstance(value[0], tuple):
                yield from _flat(value)


def smaller(recipe: WildRecipe) -> Iterator[WildRecipe]:
    """Yield recipes that are a little simpler, the boldest first."""
    for chain in _smaller_chains(recipe.chain):
        yield replace(recipe, chain=chain)
    for name, value in (("stem", "conv"), ("head", "linear"), ("keywords", False), ("warm", False), ("width", 8)):
        if getattr(recipe, name) != value:
            yield replace(recipe, **{name: value})


def _smaller_chains(chain: ChainRecipe) -> Iterator[ChainRecipe]:
    for i in range(len(chain)):
        yield chain[:i] + chain[i + 1 :]
    for i, (name, options) in enumerate(chain):
        for key, choices in options_of(name).items():
            if choices == CHAIN:
                if options[key]:
                    yield chain[:i] + options[key] + chain[i + 1 :]
                for inner in _smaller_chains(options[key]):
                    yield (*chain[:i], (name, {**options, key: inner}), *chain[i + 1 :])
    for i, (name, options) in enumerate(chain):
        for key, choices in options_of(name).items():
            if choices != CHAIN and options[key] != choices[0]:
                yield (*chain[:i], (name, {**options, key: choices[0]}), *chain[i + 1 :])


def shrink(recipe: WildRecipe, fails: Callable[[WildRecipe], bool], tries: int = 80) -> WildRecipe:
    """Return a recipe as simple as a number of tries finds that still fails."""
    found = True
    while found and tries > 0:
        found = False
        for candidate in smaller(recipe):
            tries -= 1
            if tries < 0:
                break
            if fails(candidate):
                recipe, found = candidate, True
                break
    return recipe
