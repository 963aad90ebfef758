"""hf:OWNER/NAME, a model on the Hugging Face Hub or on another that HF_ENDPOINT names.

huggingface_hub keeps its cache and reads its own variables: HF_HUB_OFFLINE, HF_ENDPOINT, HF_HOME.
"""

from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mmnet.runtime.errors import CheckpointError
from mmnet.use.folder import CONFIG, REMEDY, WEIGHTS, read_config

SCHEME = "hf:"

# No list of tools to look for is fetched, and none is reported, at a download.
constants.HF_HUB_DISABLE_TELEMETRY = True


def fetch(address: str) -> Path:
    """Return the folder in the cache with both files of hf:OWNER/NAME[@REVISION].

    Only config.json and model.safetensors are asked for, the weights once the first is good.

    Raises:
        CheckpointError: there is no such model, it is not one of ours, or it cannot be reached.
    """
    repository, _, revision = address.removeprefix(SCHEME).partition("@")
    config = _download(address, repository, CONFIG, revision or None)
    read_config(config.parent, name=address)
    # The folder is named after the commit: both files are of one.
    return _download(address, repository, WEIGHTS, config.parent.name).parent


def _download(address: str, repository: str, file: str, revision: str | None) -> Path:
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except HFValidationError:
        problem = "not an address. Write hf:OWNER/NAME or hf:OWNER/NAME@REVISION."
    except GatedRepoError:
        problem = "its owner must grant you access. Ask on its page, then log in: hf auth login."
    except RepositoryNotFoundError:
        problem = "no such model, or a private one. Check the name, or log in: hf auth login."
    except RevisionNotFoundError:
        problem = f"has no revision {revision}."
    except LocalEntryNotFoundError:
        endpoint = f"{constants.ENDPOINT} cannot be reached"
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else endpoint
        problem = (
            f"{file} is not in the cache, and {why}. Load it once with a network, or copy the "
            "folder and load that."
        )
    except EntryNotFoundError:
        problem = f"has no {file}, so it is not what `mmnet export` writes. {REMEDY}"
    except Exception as error:  # of the network: any of several libraries'
        problem = (
            f"cannot be fetched ({type(error).__name__}: {' '.join(str(error).split())[:150]})."
        )
    raise CheckpointError(f"{address}: {problem}")
