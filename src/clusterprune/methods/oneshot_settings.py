"""The settings of the one-shot compressor."""

from dataclasses import dataclass, field

from clusterprune.arguments import renamed
from clusterprune.errors import ArgumentError
from clusterprune.merge.bn_images import FromNorms
from clusterprune.merge.measured import Effort
from clusterprune.merge.refit import Refit


@renamed(price="sensitivity", streams="residual_streams")
@dataclass(frozen=True)
class OneShot:
    """Settings of the one-shot compressor; the defaults are what the ablations favour.

    Attributes
    ----------
    output_aware
        Weight each layer's outputs by their Fisher information when channels are ordered.
    sensitivity
        "fisher": an order of removal costs what it costs the network's loss. "error": its own squared error.
        "uniform": every group keeps the same fraction.
    temperature
        Softens the predictions whose Fisher information is taken. At 1 a few images that the network is unsure
        of decide everything; 2 listens to more of them, and orders and prices with less noise.
    residual_streams
        Also cut groups that several layers make together (residual streams).
    refit
        How kernels are solved anew, or None to leave it at mixing matrices.
    whole_kernel_limit
        Layers with more unknowns per output than this are ordered by channel moments, not kernel moments.
    damping
        Ridge of the elimination, relative to the mean power of the inputs.
    moment_rows
        Rows from which each layer's second moments are estimated.
    macs_to_spend
        Work allowed for measuring, in multiply-adds; large networks are measured on fewer images.
    from_norms
        How images are made where none are given, or None to take noise.
    compare
        Whether the plan by price is compared with others, down to the same share of every group, on images that it
        was not fitted on.
    """

    output_aware: bool = True
    sensitivity: str = "fisher"
    temperature: float = 2.0
    residual_streams: bool = True
    refit: Refit | None = field(default_factory=Refit)
    whole_kernel_limit: int = 1200
    damping: float = 1e-3
    moment_rows: int = 32768
    macs_to_spend: float = 1.2e12
    from_norms: FromNorms | None = field(default_factory=FromNorms)
    compare: bool = True

    @property
    def effort(self) -> Effort:
        """How closely layers are looked at."""
        return Effort(
            self.output_aware, self.temperature, self.whole_kernel_limit, self.moment_rows, self.macs_to_spend
        )

    def __post_init__(self) -> None:
        """Check the sensitivity and the temperature."""
        if self.sensitivity not in ("fisher", "error", "uniform"):
            raise ArgumentError(
                f"sensitivity must be 'fisher', 'error' or 'uniform', but got sensitivity={self.sensitivity!r}"
            )
        if not self.temperature > 0:
            raise ArgumentError(f"temperature must be positive, but got temperature={self.temperature!r}")
