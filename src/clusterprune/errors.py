"""The exceptions a user can meet.

Every message names the argument, the value it had and what to do about it, so that the text alone is
enough to act on. All of them derive from :class:`ClusterpruneError`; the command line prints their text
without a traceback.
"""


class ClusterpruneError(Exception):
    """Base of every error that clusterprune raises on purpose."""


class ArgumentError(ClusterpruneError, ValueError):
    """An argument has a value outside what it accepts."""


class DataError(ClusterpruneError):
    """Images or labels cannot be read, or do not fit the model."""


class WeightsError(ClusterpruneError):
    """A weights file is unsafe, damaged, or does not fit the model."""


class ModelError(ClusterpruneError):
    """A model cannot be found, built or used."""


class UntrustedCodeError(ModelError):
    """A file of code is named by something that was read, and not by the user; or it is not the file that it was."""


class TraceError(ClusterpruneError):
    """A model cannot be exported to a graph."""


class PlanError(ClusterpruneError):
    """A plan is damaged, or belongs to another model."""


class BudgetError(ClusterpruneError):
    """A budget cannot be reached; the message states the reachable minimum."""


class BudgetWarning(UserWarning):
    """A budget was kept, but not closely; the message says what was asked for, what came out, and why."""


class TrainingError(ClusterpruneError):
    """Training cannot go on; the last good state is on disk."""


class ExportError(ClusterpruneError):
    """A model cannot be written in a format, or what was written computes something else."""


class OutputError(ClusterpruneError):
    """An output folder cannot be written."""


class UntrainableWarning(UserWarning):
    """A compact model computes what it should in evaluation mode, but not in training mode."""
