"""What the wilder test networks are built from: sites, a registry of blocks, and chains of blocks nested at will.

The blocks of :mod:`network_blocks` know square images alone. Those here work on sequences, images and volumes, may
read a second input of the network, may borrow modules that other blocks use too, and may hold chains that hold chains.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import network_moves  # noqa: F401  (registers its blocks)
import torch
from network_blocks import BLOCKS, CHAIN
from torch import Tensor, nn
from torch.nn import functional

ChainRecipe = tuple[tuple[str, dict[str, Any]], ...]
Side = Mapping[str, Tensor]
"""Further inputs of the network by name, as far as it has any."""

WIDEST = 32
"""More channels than this are brought down by a convolution, so that a long chain stays small."""

BANK_WIDTH = 6
"""Width of the modules that several blocks share."""

WILD: dict[str, tuple[type["WildBlock"], tuple[int, ...], dict[str, Any]]] = {}


def wild(*dims: int, **choices: Any) -> Any:
    """Register a block with the numbers of spatial dimensions it works for and the values of each of its options."""

    def enter(cls: type["WildBlock"]) -> type["WildBlock"]:
        WILD[cls.__name__] = (cls, dims, choices)
        return cls

    return enter


@dataclass(frozen=True)
class Site:
    """Where a block stands: what it reads, and the modules that it may share with other blocks."""

    channels: int
    size: int
    dims: int
    bank: dict[str, nn.Module] = field(default_factory=dict)

    def but(self, channels: int | None = None, size: int | None = None) -> "Site":
        """Return the same site with other channels or another size."""
        return replace(self, channels=channels or self.channels, size=size or self.size)

    def conv(self, out: int, kernel: int = 3, channels: int | None = None, **options: Any) -> nn.Module:
        """Return a convolution that keeps the size (unless its options say otherwise)."""
        made: type[nn.Module] = getattr(nn, f"Conv{self.dims}d")
        return made(channels or self.channels, out, kernel, **{"padding": kernel // 2, **options})

    def batch_norm(self, channels: int | None = None) -> nn.Module:
        """Return a batch norm."""
        made: type[nn.Module] = getattr(nn, f"BatchNorm{self.dims}d")
        return made(channels or self.channels)

    def shared(self, key: str) -> nn.Module:
        """Return the one module of a kind that all blocks share, of `BANK_WIDTH` channels in and out."""
        if key not in self.bank:
            made = {
                "conv": lambda: self.conv(BANK_WIDTH, channels=BANK_WIDTH),
                "norm": lambda: self.batch_norm(BANK_WIDTH),
                "linear": lambda: nn.Linear(BANK_WIDTH, BANK_WIDTH),
                "pair": lambda: nn.Sequential(
                    self.conv(10, channels=BANK_WIDTH), nn.ReLU(), self.conv(BANK_WIDTH, channels=10)
                ),
            }
            self.bank[key] = made[key]()
        return self.bank[key]


class WildBlock(nn.Module):
    """Base of all wild blocks: by default a block keeps channels and size."""

    as_built: frozenset[str] = frozenset()
    """Own parameters that keep the value the block gave them, instead of a random one (closed branches)."""

    def __init__(self, site: Site, channels: int | None = None, size: int | None = None):
        super().__init__()
        self.site_channels, self.dims = site.channels, site.dims
        self.out = site.but(channels, size)


class WildChain(WildBlock):
    """Blocks one after the other."""

    def __init__(self, site: Site, recipe: ChainRecipe):
        super().__init__(site)
        self.blocks = nn.ModuleList()
        for name, options in recipe:
            self._enter(WILD[name][0](self.out, **options) if name in WILD else Tame(self.out, name, options))
            if self.out.channels > WIDEST:
                self._enter(Narrow(self.out))

    def _enter(self, made: WildBlock) -> None:
        self.blocks.append(made)
        self.out = made.out

    def forward(self, x: Tensor, side: Side) -> Tensor:
        for part in self.blocks:
            x = part(x, side)
        return x


class Narrow(WildBlock):
    """Few channels again."""

    def __init__(self, site: Site):
        super().__init__(site, 12)
        self.conv = site.conv(12, 1)

    def forward(self, x: Tensor, side: Side) -> Tensor:
        return functional.relu(self.conv(x))


class Tame(WildBlock):
    """A block of the tame generator, which knows images and one input alone."""

    def __init__(self, site: Site, name: str, options: dict[str, Any]):
        made = BLOCKS[name][0](site.channels, site.size, **options)
        super().__init__(site, made.out_channels, made.out_size)
        self.tame = made

    def forward(self, x: Tensor, side: Side) -> Tensor:
        return self.tame(x)


class Projected(WildBlock):
    """A chain whose result is brought to a number of channels and to the size of its input."""

    def __init__(self, site: Site, recipe: ChainRecipe, channels: int | None = None):
        super().__init__(site, channels)
        self.chain = WildChain(site, recipe)
        self.last = self.chain.out.conv(self.out.channels, 1)

    def forward(self, x: Tensor, side: Side) -> Tensor:
        return fit(self.last(self.chain(x, side)), x)


def names_for(dims: int) -> tuple[list[str], list[str]]:
    """Return the wild blocks and the tame ones that work for a number of spatial dimensions."""
    return [name for name, (_, known, _) in WILD.items() if dims in known], list(BLOCKS) if dims == 2 else []


def options_of(name: str) -> dict[str, Any]:
    """Return the options of a block with their choices, simplest first."""
    return WILD[name][2] if name in WILD else BLOCKS[name][1]


def simplest(name: str, **given: Any) -> tuple[str, dict[str, Any]]:
    """Return a block with the first value of every option that is not given."""
    return name, {key: () if v == CHAIN else v[0] for key, v in options_of(name).items()} | given


def fit(x: Tensor, like: Tensor) -> Tensor:
    """Bring a map to the size of another, if it has a different one."""
    return x if x.shape[2:] == like.shape[2:] else functional.interpolate(x, size=like.shape[2:], mode="nearest")


def spatial(x: Tensor) -> tuple[int, ...]:
    """Return the numbers of the spatial dimensions."""
    return tuple(range(2, x.ndim))


def stretch(vector: Tensor, like: Tensor) -> Tensor:
    """View (N, C) or (C) as something that multiplies a map."""
    return vector.view(*(vector.shape if vector.ndim == 2 else (1, -1)), *[1] * (like.ndim - 2))


def tokens(x: Tensor) -> Tensor:
    """Return a map as a sequence (N, pixels, C)."""
    return x.flatten(2).transpose(1, 2)


def untokens(t: Tensor, like: Tensor) -> Tensor:
    """Return a sequence as a map of the size of another."""
    return t.transpose(1, 2).reshape(t.shape[0], -1, *like.shape[2:])


def pooled(x: Tensor) -> Tensor:
    """Return the mean over all pixels, (N, C)."""
    return x.mean(spatial(x))


def activate(kind: str, x: Tensor) -> Tensor:
    """Apply an activation by name."""
    kinds = {"relu": functional.relu, "silu": functional.silu, "gelu": functional.gelu, "tanh": torch.tanh}
    return kinds[kind](x) if kind in kinds else x
