# Before Snakemake reads params.yaml: our reader names the line of a mistake, Snakemake's does not.
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, workflow.basedir)

from mmnet.config.load import read_values
from mmnet.runtime.errors import MMNetError


def checked(function, *arguments):
    """Call a function of the package, its errors in one line."""
    try:
        return function(*arguments)
    except MMNetError as error:
        raise WorkflowError(str(error)) from None


PARAMS_FILE = Path("params.yaml")
VALUES = checked(read_values, PARAMS_FILE)
