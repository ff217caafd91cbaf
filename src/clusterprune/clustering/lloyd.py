"""Lloyd's iterations where the points are, for k-means that starts from known centroids on an accelerator.

CP clusters every layer after every epoch, and an epoch on a card takes less than scikit-learn does for the layers of a
VGG-16. All sums are products with a matrix of memberships: additions one by one would be in another order every time.
"""

import torch
from torch import Tensor

BETWEEN_LOOKS = 4
"""Iterations between looks at whether anything still changes, each of which waits for the device."""


@torch.no_grad()
def lloyd(points: Tensor, centroids: Tensor, max_iter: int) -> Tensor:
    """Assign points to their nearest centroid and move the centroids to their means, until nothing changes.

    A cluster that nobody is nearest to gets the point that is farthest from its own centroid, the second the next, as
    in scikit-learn; none where every point is a centroid.

    Parameters
    ----------
    points
        (c, d) float64.
    centroids
        (k, d) float64 on the same device, the start.
    max_iter
        Iterations at most.

    Returns
    -------
    Tensor
        (c,) int64 on the device: the cluster of each point, of which some may have no member.
    """
    count, clusters = len(points), len(centroids)
    numbers = torch.arange(clusters, device=points.device)
    labels = torch.full((count,), -1, device=points.device)
    for turn in range(1, max_iter + 1):
        before = labels
        nearest, labels = torch.cdist(points, centroids).min(dim=1)
        empty = ~(labels[:, None] == numbers).any(0)
        # Of the points from the farthest on, the first empty cluster takes the first. What nobody takes lands behind.
        order = nearest.argsort(descending=True, stable=True)
        taken = order[(empty.cumsum(0) - 1).clamp(0, count - 1)]
        taken = torch.where(empty & (nearest[taken] > 0), taken, count)
        labels = torch.cat([labels, labels[:1]]).scatter(0, taken, numbers)[:count]
        members = (labels[:, None] == numbers).to(points.dtype)
        sizes = members.sum(0)[:, None]
        centroids = torch.where(sizes > 0, members.T @ points / sizes.clamp(min=1), centroids)
        if turn % BETWEEN_LOOKS == 0 and torch.equal(labels, before):
            break
    return labels
