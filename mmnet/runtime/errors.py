"""Mistakes a user can mend: one line each, saying what, where and how."""


class MMNetError(Exception):
    """Base of all errors the command line shows without a traceback."""

    exit_code = 1


class ConfigError(MMNetError):
    """A value in params.yaml, or a name asked for that params.yaml does not have."""


class DataError(MMNetError):
    """An archive, annotation, image or table that is not what it should be."""


class CheckpointError(MMNetError):
    """Weights that are damaged, or belong to something else."""


class TrackingError(MMNetError):
    """MLflow's store, or a run's record of its own, that cannot be read or written."""


class TrainingError(MMNetError):
    """A run that cannot go on, such as one whose loss is not finite."""


class UnheardError(MMNetError):
    """Another process of a run ended while this one waited for it: the cause is that one's."""


class LedgerError(MMNetError):
    """Files that are not those of dvc.lock, or that cannot be recorded."""


class Stopped(MMNetError):
    """A run that a signal asked to stop, and that is saved."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal
