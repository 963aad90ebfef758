"""KEY=VALUE overrides of params.yaml: keys dotted, values JSON or YAML."""

import json
from typing import Any

import yaml

from mmnet.config.messages import schema_at
from mmnet.config.schema import Params
from mmnet.runtime.errors import ConfigError


def overrides_between(base: Any, changed: Any, path: tuple[str, ...] = ()) -> list[str]:
    """Return the KEY=VALUE overrides that turn `base` into `changed`.

    Snakemake's --config passes all values inside lists and mappings as text. The schema says which
    are meant as text; the others are read as YAML.
    """
    if isinstance(base, dict) and isinstance(changed, dict):
        return [
            override
            for key, value in changed.items()
            for override in overrides_between(base.get(key), value, (*path, key))
        ]
    if base == changed:
        return []
    value = json.dumps(_read_again(changed, path), default=str)  # YAML reads dates too
    return [f"{'.'.join(path)}={value}"]


def _read_again(value: Any, path: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _read_again(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_read_again(item, (*path, "0")) for item in value]
    if not isinstance(value, str):
        return value
    types = {option.get("type") for option in schema_at(Params, path)}
    if "string" in types and not (value == "null" and "null" in types):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def with_override(values: Any, override: str) -> Any:
    """Return a copy of the values with one KEY=VALUE applied.

    Raises:
        ConfigError: it is malformed, or its key is inside something that is no mapping.
    """
    key, equals, text = override.partition("=")
    shown = " ".join(override.split())
    keys = key.split(".")
    if not (equals and all(keys)):
        raise ConfigError(f"--set {shown}: write KEY=VALUE, such as profile=paper.")
    try:
        # `overrides_between` writes JSON, and YAML would take JSON's 1e-05 for text.
        value = json.loads(text)
    except ValueError:
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"--set {shown}: not YAML: {reason}") from None
    return _replaced(values, keys, value, shown)


def _replaced(values: Any, keys: list[str], value: Any, shown: str, parent: str = "") -> Any:
    # Copied, not changed in place: YAML's aliases are one object in several places.
    if not isinstance(values, dict):
        raise ConfigError(f"--set {shown}: {parent or 'the file'} is not a mapping of keys.")
    key, *rest = keys
    if rest:
        parent = f"{parent}.{key}".lstrip(".")
        value = _replaced(values.get(key, {}), rest, value, shown, parent)
    return {**values, key: value}
