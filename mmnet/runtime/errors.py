"""Errors that a user can fix: one line each, saying what is wrong, where, and how to fix it."""


class MMNetError(Exception):
    """Base of all errors that the command line shows without a traceback."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ConfigError(MMNetError):
    """A wrong value in params.yaml, or a name that params.yaml does not define."""


class DataError(MMNetError):
    """An archive, annotation, image or table that is missing or invalid."""


class CheckpointError(MMNetError):
    """Weights that are missing, damaged, or of another model or run."""


class TrackingError(MMNetError):
    """MLflow's store, or the record of a run, cannot be read or written."""


class TrainingError(MMNetError):
    """A run that cannot continue, for example because its loss is not finite."""


class LostPeersError(MMNetError):
    """Another process of the run ended, which is the cause; this one only noticed."""


class LedgerError(MMNetError):
    """Files that differ from dvc.lock, or that cannot be recorded there."""


class Stopped(MMNetError):
    """A run that was stopped by a signal. Shells report 128 + the signal's number."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message, 128 + signal)
