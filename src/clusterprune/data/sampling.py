"""Choosing images from a split at random, class by class."""

import torch
from torch import Tensor

from clusterprune.data.split import Split
from clusterprune.errors import ArgumentError


def holdout(split: Split, fraction: float = 0.1, seed: int = 0) -> tuple[Split, Split]:
    """Split off a validation part with the same share of every class.

    Parameters
    ----------
    split
        Training images. Unlabelled ones count as one class.
    fraction
        Share of the validation part, between 0 and 1, both excluded.
    seed
        The same seed gives the same parts.

    Returns
    -------
    (train, validation)
        Disjoint, together the whole split, each in the split's order. The validation part has
        ``round(fraction * len(split))`` images, fewer only where a class would lose its last
        training image.

    Raises
    ------
    ArgumentError
        When ``fraction`` is out of range or so small or large that a part is empty.
    """
    chosen = held_out(split, fraction, seed)
    if not chosen.any() or chosen.all():
        raise ArgumentError(
            f"fraction={fraction} of {len(split)} images leaves one part empty. Use another fraction, or more images."
        )
    return split.subset(~chosen), split.subset(chosen)


def held_out(split: Split, fraction: float = 0.1, seed: int = 0) -> Tensor:
    """Return of every image whether :func:`holdout` puts it into the validation part: bool (images,)."""
    if not 0 < fraction < 1:
        raise ArgumentError(f"fraction must lie between 0 and 1, both excluded, but got fraction={fraction}.")
    generator = torch.Generator().manual_seed(seed)
    groups = _shuffled_classes(split, generator)
    counts = [int(fraction * len(group)) for group in groups]
    # Largest remainders first, ties in random order, so that no class is favoured by its number.
    ties = torch.randperm(len(groups), generator=generator).tolist()
    order = sorted(ties, key=lambda i: counts[i] - fraction * len(groups[i]))
    missing = round(fraction * len(split)) - sum(counts)
    for i in order:
        if missing > 0 and counts[i] + 1 < len(groups[i]):
            counts[i] += 1
            missing -= 1
    chosen = torch.zeros(len(split), dtype=torch.bool)
    for group, count in zip(groups, counts, strict=True):
        chosen[group[:count]] = True
    return chosen


def sample(split: Split, n: int, seed: int) -> Split:
    """Draw ``n`` different images, spread evenly over the classes.

    Class counts differ by at most one, except where a class has fewer images than its share; the
    others then make up for it. Unlabelled images are drawn uniformly. The result is in random
    order, so that any beginning of it is a sample too.

    Raises
    ------
    ArgumentError
        When ``n`` is below 1 or the split has fewer images.
    """
    if n < 1:
        raise ArgumentError(f"n must be at least 1, but got n={n}.")
    if n > len(split):
        raise ArgumentError(
            f"n={n} images were asked for, but the split has {len(split)}. Ask for at most {len(split)}."
        )
    generator = torch.Generator().manual_seed(seed)
    groups = _shuffled_classes(split, generator)
    # One image of each class per round: the k-th image of every class comes before any (k+1)-th.
    order = torch.cat(groups)
    rounds = torch.cat([torch.arange(len(group)) for group in groups])
    mixed = torch.randperm(len(order), generator=generator)
    first = mixed[rounds[mixed].argsort(stable=True)][:n]
    return split.subset(order[first[torch.randperm(n, generator=generator)]])


def _shuffled_classes(split: Split, generator: torch.Generator) -> list[Tensor]:
    """Positions of each class's images in random order; a class without images has no entry."""
    labels = split.labels
    if labels is None:
        labels = torch.zeros(len(split), dtype=torch.int64)
    groups = [(labels == c).nonzero().flatten() for c in labels.unique().tolist()]
    return [group[torch.randperm(len(group), generator=generator)] for group in groups]
