"""Read params.yaml and check all of it, before any work."""

import hashlib
import re
import unicodedata
from pathlib import Path
from typing import Any

import yaml

from mmnet.config.messages import did_you_mean, validate
from mmnet.config.overrides import with_override
from mmnet.config.run import TrainConfig
from mmnet.config.schema import Params, ProfileConfig
from mmnet.runtime.errors import ConfigError
from mmnet.runtime.files import atomic_write


class UniqueKeys(yaml.SafeLoader):
    """Refuse duplicate keys, of which YAML's own loader takes the last.

    A key beside a merge (`<<: *other`) is no duplicate of the merged one: it overrides it.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen:
                message = f"duplicate key {key.value!r}; remove one"
                raise yaml.composer.ComposerError(None, None, message, key.start_mark)
            seen.add(name)
        return node


def load_params(path: Path, overrides: list[str] | None = None) -> Params:
    """Read and check params.yaml; `overrides` are KEY=VALUE, keys dotted, values YAML.

    Raises:
        ConfigError: it cannot be read, or a value does not fit the schema or the other values.
    """
    values = own = read_values(path)
    for override in overrides or []:
        values = with_override(values, override)
    try:
        return check_params(values)
    except ConfigError as error:
        hint = _odd_character(path.read_text(encoding="utf-8"))
        if overrides and _is_right(own):
            shown = ", ".join(overrides)[:200]
            hint = f" {path} itself is right: the command line or --configfile sets {shown}."
        raise ConfigError(f"{error}{hint}") from None


def _is_right(values: Any) -> bool:
    try:
        check_params(values)
    except ConfigError:
        return False
    return True


def read_values(path: Path) -> Any:
    """Read params.yaml, whose values are not checked yet; both Snakemake and `mmnet` start here.

    Raises:
        ConfigError: it cannot be read, or is no mapping; the message names the line.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: not found. Run from the repository's root, or name it with --params."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}. It must be a YAML file."
        ) from None
    try:
        text = content.decode("utf-8")
        values = yaml.load(text, UniqueKeys)
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise ConfigError(
            f"{path}: not YAML: line {line} has the byte {byte:#04x}, which is not UTF-8. Save the "
            "file as UTF-8."
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{path}: not YAML: line {line} has the control character {error.character:#04x}. "
            "Remove it."
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path}: not YAML: {' '.join(str(error).split())}{_odd_character(text)}"
        ) from None
    if not isinstance(values, dict):
        check_params(values)
    return values


_ODD = re.compile(
    r"^(?P<marker><{7}|={7}|>{7})(?= |$)|[^\S\n\r\t ]|(?<!\A)[\u200b-\u200f\u2060\ufeff]"
    r"|[\u2018\u2019\u201c\u201d\uff0c\uff1a]",
    re.MULTILINE,
)
"""What looks right in an editor and is not: marks of a merge, no-break spaces, typeset quotes."""


def _odd_character(text: str) -> str:
    """Return a sentence on the first odd character of a file that was refused, if it has one."""
    found = _ODD.search(text)
    if found is None:
        return ""
    line = text.count("\n", 0, found.start()) + 1
    if found["marker"]:
        return f" Line {line} is a mark of a merge: resolve the conflict."
    name = unicodedata.name(found[0], "control character").lower()
    return f" Line {line} has U+{ord(found[0]):04X} ({name}): replace it."


def write_resolved(params: Params, folder: Path) -> Path:
    """Write the parameters, overrides included, to a file named after its content; return it.

    Another call with other overrides writes another file: running jobs keep theirs.
    """
    text = yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    path = folder / f"params-{hashlib.sha256(text.encode()).hexdigest()[:16]}.yaml"
    if not path.exists():
        with atomic_write(path) as file:
            file.write(text)
    return path


def check_params(values: Any) -> Params:
    """Check the whole of params.yaml, every experiment of the active profile included.

    Raises:
        ConfigError: a value does not fit the schema or the other values.
    """
    params: Params = validate(Params, values, "")
    if params.profile not in params.profiles:
        raise ConfigError(
            f"params.yaml: profile: profiles has no {params.profile!r}."
            + did_you_mean(params.profile, params.profiles)
        )
    if len(set(params.seeds)) != len(params.seeds):
        raise ConfigError(f"params.yaml: seeds: {params.seeds} has duplicate seeds; remove one.")
    for name, profile in params.profiles.items():
        _check_profile(f"profiles.{name}", profile)
    for experiment in params.experiments:
        params.resolve(experiment, params.seeds[0])
    return params


def _check_profile(where: str, profile: ProfileConfig) -> None:
    if lacking := {*profile.datasets, "train2014"} - {*profile.archives}:
        raise ConfigError(
            f"params.yaml: {where}.archives lacks {', '.join(sorted(lacking))}. Add it."
        )
    captions = profile.pretrain.captions if profile.pretrain else []
    if unknown := {*captions} - {*profile.datasets}:
        raise ConfigError(
            f"params.yaml: {where}.pretrain.captions names {', '.join(unknown)}, which "
            f"{where}.datasets lacks. Known: {', '.join(profile.datasets)}."
        )
    for name, tower in profile.towers.items():
        trained = {**profile.train.model_dump(), **tower.train}
        validate(TrainConfig, trained, f"{where}.towers.{name}.train")
        if tower.pretrained == "openai" and name not in profile.weights:
            raise ConfigError(
                f"params.yaml: {where}.weights lacks {name}, whose `pretrained` is openai. Add "
                "its source."
            )
    captioned = [name for name, tower in profile.towers.items() if tower.pretrained == "captions"]
    if captioned and profile.pretrain is None:
        raise ConfigError(
            f"params.yaml: {where}.pretrain is null, but towers {captioned} are pre-trained on "
            "captions. Set it, or another `pretrained` for them."
        )
