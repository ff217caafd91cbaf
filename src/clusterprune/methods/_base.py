"""What a method is: a frozen dataclass of settings with one way to run them.

``method.run(network, task, work) -> Outcome``. All that others need to know of a method, its class says: its name, how
it was published, what a short trial shortens, how long it trains in a comparison. Its fields are its options, its
settings in recipes, and its rows in the docs.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from clusterprune.arguments import check_instance, check_seed, shown
from clusterprune.errors import ArgumentError
from clusterprune.files.locking import alone
from clusterprune.files.writing import run_folder
from clusterprune.graph.arguments import check_model
from clusterprune.graph.images import silent
from clusterprune.methods._settings import read_settings
from clusterprune.methods._work import Network, Outcome, Work, untold, unwatched
from clusterprune.methods.foresight import Foresight
from clusterprune.plan import digest_of
from clusterprune.tasks import Task
from clusterprune.train import TrainConfig
from clusterprune.train.processes import Processes, join

FINE_TUNING = TrainConfig(epochs=10, lr=0.01, schedule="cosine", weight_decay=5e-4, batch_size=128)
"""Of methods that need no training where they are given one, and of every contender of a comparison."""


@dataclass(frozen=True)
class Method:
    """A way to make a network smaller: settings, and :meth:`compress`, which a method of one's own defines.

    What the class says of itself, beside its fields:

    - `name`, by which it is asked for; the class's own in small letters, unless another is given.
    - `training`: how it was published to train; None for one that needs no training.
    - `presets`: by name, settings that are given together. One that has "published" competes under it or "ours".
    - `renamed`: settings that there were, and what to give in their place.
    - `parts`: by field, the kinds of object that it may be, by name.
    - `readers`: by field, what makes its value from a plain one where its type does not say.
    - `in_epochs`, `in_images`: fields that count epochs or images, which a short trial makes smaller.
    - `chooses`: whether it compares networks on held-out images.
    - `approximates`: whether it can cut norms over the channels.
    """

    name: ClassVar[str] = ""
    training: ClassVar[TrainConfig | None] = None
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    renamed: ClassVar[Mapping[str, str]] = {}
    parts: ClassVar[Mapping[str, Mapping[str, type[Any]]]] = {}
    readers: ClassVar[Mapping[str, Callable[[Any], Any]]] = {}
    in_epochs: ClassVar[tuple[str, ...]] = ()
    in_images: ClassVar[tuple[str, ...]] = ()
    chooses: ClassVar[bool] = False
    approximates: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        """Give a method that has no name its class's."""
        if not cls.name:
            cls.name = cls.__name__.lower()

    @property
    def looks(self) -> bool:
        """Whether a cut looks at images before any training: those of :attr:`Work.images`."""
        return False

    @property
    def joined_at(self) -> tuple[str | None, str] | None:
        """Storage and name of the search that :meth:`join` takes part in; None where there is none."""
        return None

    def join(self, *given: Any, **more: Any) -> Any:
        """Take part in the search that a run of these settings has begun, from another process.

        Parameters
        ----------
        given
            Network, task and work, as of :meth:`run`.
        more
            `start`, what the search starts from (:func:`clusterprune.search.study_header`), where None looks for it
            anew; and `progress`, called with every structure that was evaluated here, as in
            :func:`clusterprune.search.work`.

        Returns
        -------
        The result of the search, when it is over.

        Raises
        ------
        ArgumentError
            If there is no such search.
        """
        del given, more
        raise ArgumentError(f"method={self.name!r} has no search to join")

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """Make it from plain values; see :func:`clusterprune.methods._settings.read_settings`."""
        return read_settings(cls, given)

    @classmethod
    def preset(cls, preset: str, **changes: Any) -> Self:
        """Return the settings of a preset, with what is given besides: `CP.preset("published", goal=0.5)`."""
        return cls.read({"preset": preset, **changes})

    @classmethod
    def training_with(cls, **changes: Any) -> TrainConfig | None:
        """Return the training that belongs to the method: as published, and of those that need none, `FINE_TUNING`.

        Parameters
        ----------
        **changes
            Fields of :class:`clusterprune.train.TrainConfig` to have otherwise. None leaves a field as it is. A method
            that needs no training has none unless `epochs` is among them.

        Raises
        ------
        ArgumentError
            If a field does not accept its value, or there is something to change about a training that does not take
            place.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        if cls.training is None and "epochs" not in changes:
            for name, value in changes.items():
                raise ArgumentError(
                    f"{name}={value!r} is of a training, but method={cls.name!r} does not train by itself; give epochs "
                    "too"
                )
            return None
        return (cls.training or FINE_TUNING).changed(**changes)

    @classmethod
    def within(cls, epochs: int) -> dict[str, Any]:
        """Return settings, as plain values, by which it trains for so many epochs in all; of a comparison."""
        del epochs
        return {}

    def last_epochs(self, epochs: int) -> int:
        """Return how many of so many epochs in all are those of :attr:`Work.training`."""
        return epochs

    def looking_at(self, images: int) -> Self:
        """Return the same method, looking at no more images than there are."""
        return replace(self, **{name: min(images, getattr(self, name)) for name in self.in_images})

    def check(self, *, approximate: bool = False, training: TrainConfig | None, validation: bool = True) -> None:
        """Check what can be checked before any work.

        Parameters
        ----------
        approximate
            Whether norms over the channels are to be cut.
        training, validation
            What there is.

        Raises
        ------
        ArgumentError
            If they do not go with the method.
        """
        if approximate and not self.approximates:
            raise ArgumentError(
                f"approximate is not for method={self.name!r}, which cuts convolutions that a batch norm follows; "
                "leave it out"
            )
        if training is None and self.training is not None:
            raise ArgumentError(f"method={self.name!r} trains, but training=None; give a TrainConfig")
        if self.chooses and not validation:
            raise ArgumentError(
                f"validation: method={self.name!r} compares structures on held-out images; hold some out of the "
                "training set"
            )

    def foresee(self, network: Network, work: Work, memory_limit: float | None = None) -> Foresight | None:
        """Check what can be checked of a network before any work, and say what is expected, where that is known.

        Parameters
        ----------
        memory_limit
            GiB that a cut may take.

        Raises
        ------
        BudgetError
            If a target, or the limit, cannot be met.
        """
        del network, work, memory_limit
        return None

    def asked(self, network: Network, task: Task | None, work: Work) -> dict[str, Any]:
        """Return what a run is asked for, as JSON has it: what it may be resumed with."""
        free = {"device", "checkpoint_minutes", "memory_limit_gib", "seed"}
        return {
            "method": self.name,
            "settings": repr(self),
            "training": None if work.training is None else work.training.model_dump(mode="json", exclude=free),
            "seed": work.seed,
            "task": None if task is None else repr(task),
            "statistics": None if task is None else [list(task.mean), list(task.std)],
            "weights": digest_of(network.model),
        }

    def run(self, network: Network, task: Task | None, work: Work | None = None) -> Outcome:
        """Make a network smaller. What is finished in the run's folder is not done again.

        Under ``accelerate launch`` every process calls this alike, with the same network, and all return alike.

        Parameters
        ----------
        network
            Never changed.
        task
            None where nothing is trained, and no images are looked at but those of `work`.
        work
            Where and how. None keeps nothing, trains as published, and has seed 0.

        Raises
        ------
        ArgumentError
            If an argument does not fit, or is not that of the run being resumed, or that of the main process.
        BudgetError
            If a target cannot be reached.
        TrainingError, OutputError, ModelError
            As :func:`clusterprune.train.fit`.
        """
        work = Work(training=self.training) if work is None else work
        check_instance("network", network, Network, "write Network(model, example)")
        check_instance("work", work, Work, "write Work(folder)")
        check_model(network.model)
        check_seed(work.seed)
        self.check(approximate=network.approximate, training=work.training)
        if task is not None:
            if not hasattr(task, "observe"):
                raise ArgumentError(
                    f"task must be a task, but got task={shown(task)}; write Classification(train, validation, "
                    "mean=mean, std=std), of clusterprune.tasks"
                )
            self.check(training=work.training, validation=task.validation is not None)
        training = work.training
        if training is not None:
            check_instance("training", training, TrainConfig, "write TrainConfig(epochs=10)")
            training = training.changed(seed=work.seed)
        processes, _ = join(training or TrainConfig(device=network.example.device.type))
        with processes.held(_kept(work.folder)) as folder:
            work = replace(work, folder=Path(folder), training=training)
            if not processes.is_main:
                work = replace(work, report=silent, watch=unwatched, tell=untold)
            asked = self.asked(network, task, work)
            _check_weights(processes, asked["weights"])
            work.begin(asked)
            return self.compress(network, task, work)  # type: ignore[arg-type]

    def compress(self, network: Network, task: Task, work: Work) -> Outcome:
        """Make the network smaller; what a method is. Called by :meth:`run`, which has checked what it is given.

        Several processes are all here, and `work` sees to what one of them does for all. A method that decides or
        writes besides, does so within `clusterprune.train.here().once(…)`.

        Parameters
        ----------
        work
            Its folder exists, and its training has the run's seed.
        """
        raise NotImplementedError


@contextmanager
def _kept(folder: str | Path | None) -> Generator[Path, None, None]:
    """Yield a run's folder, or a temporary one, that is this run's alone until the block ends."""
    with alone(folder), run_folder(folder) as made:
        yield made


def _check_weights(processes: Processes, digest: str) -> None:
    """Refuse to work on another network than the main process's.

    Raises
    ------
    ArgumentError
        If it is another.
    """
    if processes.once(lambda: digest) != digest:
        raise ArgumentError(
            f"network.model has other weights in process {processes.rank} than in the main one; load the same in each"
        )
