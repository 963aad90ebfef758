"""KEY=VALUE overrides of params.yaml: keys dotted, values JSON or YAML."""

import json
from typing import Any

import yaml

from mmnet.runtime.errors import ConfigError


def overrides_between(base: Any, changed: Any, prefix: str = "") -> list[str]:
    """Return the KEY=VALUE overrides that turn `base` into `changed`.

    Numbers and nulls inside what Snakemake's --config changed arrive as text; they are read again.
    """
    if isinstance(base, dict) and isinstance(changed, dict):
        return [
            override
            for key, value in changed.items()
            for override in overrides_between(base.get(key), value, f"{prefix}.{key}".lstrip("."))
        ]
    return [] if base == changed else [f"{prefix}={json.dumps(_reread(changed))}"]


def _reread(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _reread(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_reread(item) for item in value]
    if isinstance(value, str):
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError:
            return value
        return read if isinstance(read, bool | int | float) or value == "null" else value
    return value


def apply_override(values: Any, override: str) -> None:
    key, equals, text = override.partition("=")
    override = " ".join(override.split())
    *parents, last = key.split(".")
    if not (equals and last and all(parents)):
        raise ConfigError(f"--set {override}: write KEY=VALUE, such as profile=paper.")
    for parent in parents:
        values = values.setdefault(parent, {}) if isinstance(values, dict) else None
    if not isinstance(values, dict):
        raise ConfigError(f"--set {override}: {'.'.join(parents) or 'the file'} holds no keys.")
    values[last] = _override_value(override, text)


def _override_value(override: str, text: str) -> Any:
    try:
        # `overrides_between` writes JSON, and YAML would take JSON's 1e-05 for text.
        return json.loads(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: not YAML: {' '.join(str(error).split())}") from None
