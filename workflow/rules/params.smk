# Before Snakemake reads params.yaml: our reader names the line of a mistake, Snakemake's does not.
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, workflow.basedir)

# Snakemake may be installed alone, for conda to make the jobs' environment.
try:
    from mmnet.config.load import read_values
    from mmnet.runtime.errors import MMNetError
    from mmnet.runtime.system import use_own_settings
except ModuleNotFoundError as error:
    raise WorkflowError(
        f"{sys.executable} lacks {error.name}, which these rules import. Use `make`, which installs "
        f"all packages into .venv, or install {error.name} beside Snakemake."
    ) from None


def checked(function, *arguments):
    """Call a function of the package, its errors in one line."""
    try:
        return function(*arguments)
    except MMNetError as error:
        raise WorkflowError(str(error)) from None


checked(use_own_settings)  # for Snakemake's solver and all jobs
PARAMS_FILE = Path("params.yaml")
VALUES = checked(read_values, PARAMS_FILE)
