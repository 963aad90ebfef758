"""Read params.yaml and check all of it, before any work."""

import hashlib
from pathlib import Path
from typing import Any

import yaml

from mmnet.config.messages import did_you_mean, validate
from mmnet.config.overrides import apply_override
from mmnet.config.schema import Params, TrainConfig
from mmnet.runtime.errors import ConfigError
from mmnet.runtime.files import atomic_write


def load_params(path: Path, overrides: list[str] | None = None) -> Params:
    """Read and check params.yaml; `overrides` are KEY=VALUE, keys dotted, values YAML."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found. Run from the repository's root.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    for override in overrides or []:
        apply_override(values, override)
    return check_params(values)


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


class UniqueKeys(yaml.SafeLoader):
    """YAML's loader takes the last of two equal keys; this one refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice; drop one", node.start_mark
                )
        return super().construct_mapping(node, deep)


def check_params(values: Any) -> Params:
    """Check the whole of params.yaml, every experiment of the active profile included."""
    params: Params = validate(Params, values, "")
    if params.profile not in params.profiles:
        raise ConfigError(
            f"params.yaml: profile: profiles has no {params.profile!r}."
            + did_you_mean(params.profile, params.profiles)
        )
    if len(set(params.seeds)) != len(params.seeds):
        raise ConfigError(f"params.yaml: seeds: {params.seeds} names a seed twice. Drop one.")
    for name, profile in params.profiles.items():
        lacking = {*profile.datasets, "train2014"} - {*profile.archives}
        if lacking:
            raise ConfigError(
                f"params.yaml: profiles.{name}.archives lacks {', '.join(sorted(lacking))}. Add it."
            )
        unknown = {*(profile.pretrain.captions if profile.pretrain else [])} - {*profile.datasets}
        if unknown:
            raise ConfigError(
                f"params.yaml: profiles.{name}.pretrain.captions names {', '.join(unknown)}, which "
                f"profiles.{name}.datasets lacks. Known: {', '.join(profile.datasets)}."
            )
        for tower, values in profile.towers.items():
            trained = {**profile.train.model_dump(), **values.train}
            validate(TrainConfig, trained, f"profiles.{name}.towers.{tower}.train")
            if values.pretrained == "openai" and tower not in profile.weights:
                raise ConfigError(
                    f"params.yaml: profiles.{name}.weights lacks {tower}, whose `pretrained` is "
                    "openai. Add where its file lies."
                )
        captioned = [t for t, tower in profile.towers.items() if tower.pretrained == "captions"]
        if captioned and profile.pretrain is None:
            raise ConfigError(
                f"params.yaml: profiles.{name}.pretrain is null, but towers {captioned} are to be "
                "pre-trained on captions. Give its values, or another `pretrained`."
            )
    for experiment in params.experiments:
        params.resolve(experiment, params.seeds[0])
    return params
