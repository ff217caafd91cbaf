"""What a run leaves in its folder: the checkpoint, and a log with a line per epoch."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from clusterprune.errors import ArgumentError, OutputError, TrainingError
from clusterprune.files.writing import replace_file
from clusterprune.train import checkpoint
from clusterprune.train.config import TrainConfig
from clusterprune.train.state import TrainState

LOG_NAME = "log.jsonl"
# What a run may be resumed with another value of: none of these changes what is computed, but for its rounding.
_FREE_FIELDS = frozenset({"capture", "checkpoint_minutes", "device", "memory_limit_gib"})


def check_folder(out: str | Path | None, resume: bool) -> Path | None:
    """Return `out` as a path, having checked that no checkpoint there would be lost.

    Raises
    ------
    ArgumentError
        `resume` without a folder.
    OutputError
        `out` is no folder, or holds a checkpoint and `resume` is False.
    """
    if out is None:
        if resume:
            raise ArgumentError("resume=True needs out, the folder that holds the checkpoint")
        return None
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"out={str(out)!r} is a file, not a folder; pass another")
    if not resume and (folder / checkpoint.FILE_NAME).exists():
        raise OutputError(
            f"out={str(out)!r} already holds a training checkpoint; pass resume=True to continue it, or another folder"
        )
    return folder


class Recorder:
    """Keeps the last good state of a run, on disk when there is a folder.

    Parameters
    ----------
    folder
        None writes nothing.
    config, data
        What training was asked to do, as JSON values.
    environment
        What it runs on, as JSON values.
    writes
        Whether this process writes to the folder. The others only read from it.
    """

    def __init__(
        self,
        folder: Path | None,
        config: Mapping[str, Any],
        data: Mapping[str, Any],
        environment: Mapping[str, Any],
        *,
        writes: bool = True,
    ) -> None:
        self.folder = folder
        self._writes = writes and folder is not None
        self.config = dict(config)
        self.data = dict(data)
        self.environment = dict(environment)
        self._good: dict[str, Tensor] = {}
        self._saved_at = 0.0
        self._epoch = 0

    @property
    def path(self) -> Path | None:
        """The checkpoint."""
        return None if self.folder is None else self.folder / checkpoint.FILE_NAME

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.path is not None and self.path.exists()

    def age(self) -> float:
        """Return the seconds since the state was last saved."""
        return time.monotonic() - self._saved_at

    def start(self, state: TrainState) -> None:
        """Make the folder, save the state before the first step, and begin an empty log.

        It shows at once whether the folder can be written, and a run killed in its first epoch
        resumes from the same weights.

        Raises
        ------
        OutputError
            The folder cannot be written.
        """
        try:
            if self._writes and self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
            self._save(state)
            self._rewrite_log(state)
        except OSError as error:
            raise OutputError(
                f"{self.folder} cannot be written ({_reason(error)}); free some space or pass another folder as out"
            ) from error

    def save(self, state: TrainState) -> None:
        """Save the state; after the last step of an epoch, also add its line to the log.

        Raises
        ------
        TrainingError
            The folder cannot be written any more. The checkpoint before stays.
        """
        try:
            self._save(state)
            if state.step == 0:
                self._append_log(state.history[-1])
        except OSError as error:
            raise TrainingError(
                f"training stopped in epoch {state.epoch + (state.step > 0)}: {self.folder} cannot "
                f"be written ({_reason(error)}); {self.last_good()}; free some space and resume"
            ) from error

    def resume(self, state: TrainState) -> list[str]:
        """Set `state` to the checkpoint's, and drop what the log says of later epochs.

        Returns
        -------
        list
            Sentences that tell the user what happened.

        Raises
        ------
        ArgumentError
            The run was asked to do something else, or the model is another one.
        WeightsError
            The checkpoint is damaged.
        OutputError
            The log cannot be written.
        """
        path = self.path
        if path is None:
            raise ArgumentError("resume=True needs out, the folder that holds the checkpoint")
        tensors, header = checkpoint.read(path)
        self._check_same(header)
        state.restore(tensors)
        state.epoch, state.step = header.epoch, header.step
        state.history, state.tally = list(header.history), header.tally
        self._keep(state, tensors)
        try:
            self._rewrite_log(state)
        except OSError as error:
            raise OutputError(
                f"{path.with_name(LOG_NAME)} cannot be written ({_reason(error)}); free some space"
            ) from error
        notes = [f"resumed from {path}: {state.epoch} epochs and {state.step} steps are done"]
        changed = [
            f"{name} was {header.environment.get(name)} and is {value}"
            for name, value in self.environment.items()
            if header.environment.get(name, value) != value
        ]
        if changed:
            notes.append(
                "the run began on another setup, so that its result is the same only up to "
                f"rounding: {', '.join(changed)}"
            )
        return notes

    def rewind(self, state: TrainState) -> None:
        """Put the model and the optimizer back to the last good state."""
        state.restore(self._good)

    def last_good(self) -> str:
        """Say where the last good state is."""
        if self.path is None:
            return "no checkpoint was kept, since out is None"
        return f"the last good checkpoint is {self.path}, {self._epoch} epochs done"

    def _keep(self, state: TrainState, tensors: dict[str, Tensor]) -> None:
        self._good = tensors
        self._saved_at = time.monotonic()
        self._epoch = state.epoch

    def _save(self, state: TrainState) -> None:
        tensors = state.tensors()
        if self._writes and self.path is not None:
            header = checkpoint.Header(
                epoch=state.epoch,
                step=state.step,
                history=state.history,
                tally=state.tally,
                config=self.config,
                data=self.data,
                environment=self.environment,
            )
            checkpoint.write(self.path, tensors, header)
        self._keep(state, tensors)

    def _check_same(self, header: checkpoint.Header) -> None:
        asked = {**self.config, **self.data}
        # What an older checkpoint does not mention was not a choice yet.
        before = {**TrainConfig().model_dump(mode="json"), "hook": None, **header.config, **header.data}
        differences = [
            f"{name}={asked.get(name)!r} (the checkpoint has {before.get(name)!r})"
            for name in sorted((asked.keys() | before.keys()) - _FREE_FIELDS)
            if asked.get(name) != before.get(name)
        ]
        if differences:
            raise ArgumentError(
                f"resume=True with other arguments than {self.path} was made with: "
                f"{', '.join(differences)}; pass the same, or another folder as out"
            )

    def _append_log(self, record: dict[str, Any]) -> None:
        if self._writes and self.folder is not None:
            with (self.folder / LOG_NAME).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def _rewrite_log(self, state: TrainState) -> None:
        # The checkpoint carries the whole history, so the log is made from it: a line that was
        # lost or cut short by a kill comes back, and lines of epochs to be repeated go.
        if self._writes and self.folder is not None:
            lines = "".join(json.dumps(record) + "\n" for record in state.history)
            replace_file(self.folder / LOG_NAME, lines.encode())


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
