"""params.yaml: what is refused and where, overrides, and what a run's values are."""

import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import yaml
from snakemake.cli import parse_config
from snakemake.common.configfile import load_configfile
from snakemake.utils import update_config

from mmnet.config.load import check_params, load_params
from mmnet.config.overrides import overrides_between
from mmnet.config.schema import Params
from mmnet.runtime.errors import ConfigError
from support.tiny import ROOT

PARAMS = ROOT / "params.yaml"
RUN = "experiments.refcoco_vit_b"


def refusal(*overrides: str, path: Path = PARAMS) -> str:
    with pytest.raises(ConfigError) as caught:
        load_params(path, list(overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edited(folder: Path, old: str, new: str) -> Path:
    text = PARAMS.read_text()
    assert old in text
    (folder / "params.yaml").write_text(text.replace(old, new, 1))
    return folder / "params.yaml"


# Values.


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_every_experiment_resolves_in_both_profiles(profile: str) -> None:
    params = load_params(PARAMS, [f"profile={profile}"])
    for name, experiment in params.experiments.items():
        config = params.resolve(name, 3)
        assert (config.profile, config.experiment, config.seed) == (profile, name, 3)
        assert config.dataset_name == experiment.dataset
        assert config.tower == params.profiles[profile].towers[experiment.tower]
        assert config.model == params.active.model.model_copy(update=experiment.model)
        own = {**config.tower.train, **experiment.train}
        assert config.train == params.active.train.model_copy(update=own)


def test_the_ablations_are_13_runs_and_one_of_ours_on_the_papers_data_and_tower() -> None:
    params = load_params(PARAMS, ["profile=paper"])
    ablations = {"table2", "table3", "table4"}
    names = [n for n, e in params.experiments.items() if {*e.tables} & ablations]
    configs = [params.resolve(name, 0) for name in names]
    assert len({*names} - {"no_mqe_mean"}) == 13
    assert {config.dataset_name for config in configs} == {"refcoco+"}
    assert {config.tower.architecture for config in configs} == {"RN50-quickgelu"}
    assert {config.train.epochs for config in configs} == {50}
    switches = [(c.model.num_queries, c.model.mmp, c.model.mqe, c.model.f_vg) for c in configs]
    on = True
    assert switches == [
        *((count, on, on, on) for count in (32, 24, 16, 8, 4, 2, 1)),
        *((count, False, on, on) for count in (24, 16, 8)),
        *((24, on, False, on), (24, on, False, on), (24, on, on, False), (24, on, False, False)),
    ]


def test_paper_profile_holds_the_papers_settings() -> None:
    params = load_params(PARAMS, ["profile=paper"])
    config = params.resolve("refcocog_vit_l", 0)
    model, train = config.model, config.train
    assert (model.image_size, model.width, model.num_queries) == (480, 512, 24)
    assert (model.heads, model.ffn, model.channels) == (8, 2048, [256, 512, 1024])
    assert (train.epochs, train.batch_size, train.lr) == (100, 64, 1e-5)
    assert config.dataset.max_length == 22
    # OpenAI's weights under the plain definitions give silently wrong features.
    assert config.tower.architecture == "ViT-L-14-quickgelu"
    for name, tower in params.active.towers.items():
        source = params.active.weights[name]
        assert source.urls[0] == open_clip.get_pretrained_url(tower.architecture, "openai")
        assert f"/{source.sha256}/" in source.urls[0]


def test_an_experiments_keys_override_its_profiles() -> None:
    params = load_params(PARAMS, [f"{RUN}.model={{num_queries: 3}}", f"{RUN}.train={{epochs: 1}}"])
    plain = load_params(PARAMS)
    before, config = (p.resolve("refcoco_vit_b", 0) for p in (plain, params))
    assert config.model == before.model.model_copy(update={"num_queries": 3})
    assert config.train == before.train.model_copy(update={"epochs": 1})
    assert params.resolve("refcoco_vit_l", 0) == plain.resolve("refcoco_vit_l", 0)


# What is refused.


@pytest.mark.parametrize(
    ("override", "place", "known"),
    [
        ("profil=mini", "profil", "profile"),
        ("profiles.mini.trian={}", "profiles.mini.trian", "train"),
        ("profiles.mini.train.epoch=3", "profiles.mini.train.epoch", "epochs"),
        ("profiles.mini.towers.vit_b.lable=x", "profiles.mini.towers.vit_b.lable", "label"),
        ("profiles.mini.datasets.refcoco.max_lenght=9", "datasets.refcoco.max_lenght", "max_len"),
        ("profiles.mini.archives.refcoco+.sha265=x", "archives.refcoco+.sha265", "sha256"),
        ("profiles.mini.shapes.seeds=1", "profiles.mini.shapes.seeds", "seed"),
        ("profiles.mini.pretrain.step=1", "profiles.mini.pretrain.step", "steps"),
        ("profiles.paper.datasets.refcoco.counts.val.ref=1", "counts.val.ref", "refs"),
        ("profiles.paper.datasets.refcoco.counts.vall={}", "datasets.refcoco.counts", "val"),
        (f"{RUN}.modle={{}}", f"{RUN}.modle", "model"),
        (f"{RUN}.model={{num_querys: 3}}", f"{RUN}.model.num_querys", "num_queries"),
        (f"{RUN}.dataset=refcoc", f"{RUN}.dataset", "refcoco"),
        (f"{RUN}.tower=vitb", f"{RUN}.tower", "vit_b"),
        (f"{RUN}.tables=[table9]", f"{RUN}.tables.0", "table"),
        ("profile=papr", "profile", "paper"),
        ("profiles.mini.model.resize=leterbox", "profiles.mini.model.resize", "letterbox"),
        ("profiles.mini.datasets.refcoco.refs=und", "datasets.refcoco.refs", "unc"),
        ("profiles.mini.datasets.refcoco.splits=[val, testC]", "refcoco.splits.1", "test"),
        ("profiles.mini.shapes.images.refcoco.vall=1", "shapes.images.refcoco.vall", "val"),
        ("profiles.mini.pretrain.captions=[refcocoo]", "pretrain.captions.0", "refcoco"),
    ],
)
def test_an_unknown_key_or_name_is_refused_and_the_nearest_named(
    override: str, place: str, known: str
) -> None:
    line = refusal(override)
    assert line.startswith("params.yaml: ")
    assert place in line
    assert f"Did you mean {known}" in line


def test_where_nothing_is_near_the_known_names_are_listed_once() -> None:
    assert refusal("zzz=1").count("Known: " + ", ".join(Params.model_fields) + ".") == 1
    assert refusal("profiles.mini.model.generator_init=xavier").count("glorot") == 1


@pytest.mark.parametrize("norm", ["global", "all"])
def test_batchnorm_on_vectors_refuses_parts_of_one_item(norm: str) -> None:
    normed = f"profiles.mini.model.vector_norm={norm}"
    line = refusal(normed, "profiles.mini.train.accumulate=64")
    assert line.startswith(f"params.yaml: experiments.refcoco_vit_b: model.vector_norm {norm} ")
    load_params(PARAMS, [normed, "profiles.mini.train.accumulate=32"])
    load_params(PARAMS, ["profiles.mini.train.accumulate=64"])


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("train.lr=fast", "train.lr is the text 'fast'"),
        ("train.epochs='8'", "train.epochs is the text '8'"),
        ("train.epochs=2.5", "train.epochs is 2.5"),
        ("train.epochs=true", "train.epochs is True"),
        ("train.epochs=0", "train.epochs is 0"),
        ("train.lr=.nan", "train.lr is nan"),
        ("train.lr=.inf", "train.lr is inf"),
        ("train.workers=-1", "train.workers is -1"),
        ("train.device=gpu", "train.device is 'gpu'"),
        ("cluster.train.minutes=0", "cluster.train.minutes is 0"),
        ("cluster.train.partition=''", "cluster.train.partition is ''"),
        ("model.mmp=1", "model.mmp is 1"),
        ("model.dropout=1.0", "model.dropout is 1.0"),
        ("model.image_size=100", "multiple of 32"),
        ("model.channels=[1, 2]", "at least 3 items"),
        ("model=null", "model is None"),
        ("model.heads=5", "heads (5) must divide width (64)"),
        ("evaluate.threshold=35", "evaluate.threshold is 35"),
        ("datasets.refcoco.max_length=78", "max_length is 78"),
        ("datasets.refcoco.splits=[testA, testB]", "splits must contain val"),
        ("datasets.refcoco.splits=[val, val]", "datasets.refcoco splits"),
        ("shapes.image_sizes=[[64, 0]]", "image_sizes.0.1 is 0"),
        ("archives.refcoco.md5=x", "md5 is 'x'"),
        ("archives.refcoco.sha256=" + "a" * 64, "exactly one of sha256, md5"),
        ("archives.refcoco.urls=[ftp://x/y]", "archives.refcoco.urls.0 is"),
        ("archives.refcoco.urls=['http://x/y']", "needs bytes"),
        ("data.train2014=''", "data.train2014 is ''"),
        ("data.train2015=/x", "data.train2015 is 'train2015'"),
        ("pretrain=null", "['vit_b', 'vit_l', 'rn50']"),
        ("towers.vit_b.architecture=mini-vit-q", "architecture is 'mini-vit-q'"),
        ("towers.vit_b.pretrained=openai", "profiles.mini.weights lacks vit_b"),
    ],
)
def test_a_wrong_value_of_a_profile_is_refused(override: str, reason: str) -> None:
    line = refusal(f"profiles.mini.{override}")
    assert line.startswith("params.yaml: profiles.mini.")
    assert reason in line


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("profile=3", "profile is 3"),
        ("seeds=[]", "at least 1 item"),
        ("seeds=0", "seeds is 0"),
        ("seeds=[-1]", "seeds.0 is -1"),
        ("seeds=[0, 1, 0]", "duplicate seeds; remove one"),
        ("experiments.Nq-8={}", "experiments.Nq-8"),
        (f"{RUN}.model={{heads: 5}}", f"{RUN}.model heads (5) must divide width (64)"),
        (f"{RUN}.evaluate={{threshold: 2}}", f"{RUN}.evaluate.threshold is 2"),
    ],
)
def test_a_wrong_value_is_refused(override: str, reason: str) -> None:
    assert reason in refusal(override)


@pytest.mark.parametrize(
    "key",
    [
        *("seeds", "profiles", "profiles.mini.train.lr", "profiles.paper.towers.vit_b.label"),
        *("profiles.mini.archives.train2014", "profiles.mini.archives.refcoco"),
    ],
)
def test_a_missing_key_is_refused(key: str) -> None:
    values = yaml.safe_load(PARAMS.read_text())
    *parents, last = key.split(".")
    place = values
    for parent in parents:
        place = place[parent]
    del place[last]
    with pytest.raises(ConfigError, match=last) as caught:
        check_params(values)
    assert key in str(caught.value).replace(" lacks ", ".")
    assert "Add it." in str(caught.value)


@pytest.mark.parametrize(
    ("experiment", "seed", "reason"),
    [
        ("refcoco_vitb", 0, "Did you mean refcoco_vit_b?"),
        ("zzz", 0, "Known: refcoco_vit_b, "),
        ("refcoco_vit_b", -1, "seed is -1"),
    ],
)
def test_an_impossible_run_is_refused(experiment: str, seed: int, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_params(PARAMS).resolve(experiment, seed)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_open_clip_the_architecture_is_left_to_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As where Snakemake is installed alone and conda makes the jobs' environment.
    monkeypatch.setattr("mmnet.config.profile.find_spec", lambda name: None)
    load_params(PARAMS, ["profiles.mini.towers.vit_b.architecture=mini-vit-q"])


# The file.


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: [1", "not YAML"),
        (b"a: b: c", "not YAML"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"? [a]\n: b", "not YAML"),
        (b"", "the file is None"),
        (b"- profile", "the file is ['profile']"),
        (b'"a\\nb": 1', "is unknown"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    assert reason in refusal(path=path)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("profile: mini", "profile: \udce9", "line 2 has the byte 0xe9"),
        ("profile: mini", "\tprofile: mini", "line 2, column 1"),
        ("profile: mini", "profile: mini\0", "line 2 has the control character 0x00"),
        ("profile: mini", "profile:\xa0mini", "Line 2 has U+00A0 (no-break"),
        ("seeds: [0]", "seeds: [\u30000]", "Line 3 has U+3000 (ideographic space)"),
        ("profile: mini", "pro\u200bfile: mini", "Line 2 has U+200B"),
        ("profile: mini", "profile: \u2018mini\u2019", "Line 2 has U+2018"),
        ("profile: mini", "profile\uff1amini", "Line 2 has U+FF1A"),
        ("profile: mini", "<<<<<<< HEAD\nprofile: mini", "Line 2 is a mark of a merge"),
        ("profile: mini", "profile: mini\n=======", "Line 3 is a mark of a merge"),
        ("seeds: [0]", "seeds: [2026-13-01]", "month"),
    ],
)
def test_what_an_editor_does_not_show_is_named_with_its_line(
    old: str, new: str, reason: str, tmp_path: Path
) -> None:
    path = edited(tmp_path, old, "HERE")
    path.write_bytes(path.read_bytes().replace(b"HERE", new.encode("utf-8", "surrogateescape")))
    assert reason in refusal(path=path)


def test_a_byte_order_mark_and_other_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + PARAMS.read_bytes().replace(b"\n", b"\r\n"))
    assert load_params(path) == load_params(PARAMS)


def test_a_mistake_of_an_override_is_not_laid_at_the_files_door(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", path)
    with pytest.raises(ConfigError, match=r"itself is right: .*seeds=x"):
        load_params(path, ["seeds=x", "profile=mini"])
    path.write_text(path.read_text().replace("profile: mini", "profile: no"))
    with pytest.raises(ConfigError) as caught:
        load_params(path, ["seeds=[1]"])
    assert "itself is right" not in str(caught.value)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    assert "not found" in refusal(path=tmp_path / "params.yaml")
    assert "cannot be read" in refusal(path=tmp_path)


def test_a_number_that_yaml_takes_for_text_is_refused_with_its_spelling(tmp_path: Path) -> None:
    line = refusal(path=edited(tmp_path, "lr: 1.0e-5", "lr: 1e-5"))
    assert "profiles.paper.train.lr is the text '1e-5'" in line
    assert "write 1.0e-5" in line


def test_a_duplicate_key_is_refused_with_its_line(tmp_path: Path) -> None:
    line = refusal(path=edited(tmp_path, "profile: mini\n", "profile: mini\nprofile: paper\n"))
    assert "duplicate key 'profile'; remove one" in line
    assert "line 3" in line
    path = edited(tmp_path, "{num_queries: 32}", "{num_queries: 32, num_queries: 24}")
    assert "duplicate key 'num_queries'" in refusal(path=path)


MERGED = """
  nq_2: {tables: [table2], dataset: refcoco+, tower: rn50, model: &two {num_queries: 2}}
  again: &again {tables: [], dataset: refcoco+, tower: rn50, model: *two}
  more: &more {<<: *again, model: {<<: *two, mmp: false, num_queries: 5}}
  most: {<<: [*more, *again], tower: vit_b}
"""


def test_anchors_aliases_and_merges_are_read(tmp_path: Path) -> None:
    line = "  nq_2: {tables: [table2], dataset: refcoco+, tower: rn50, model: {num_queries: 2}}\n"
    path = edited(tmp_path, line, MERGED)
    params = load_params(path)
    shown = ("again", "more", "most")
    configs = {name: params.resolve(name, 0) for name in ("nq_2", *shown)}
    assert [configs[name].model.num_queries for name in configs] == [2, 2, 5, 5]
    assert [configs[name].model.mmp for name in configs] == [True, True, False, False]
    assert [configs[name].tower_name for name in configs] == ["rn50", "rn50", "rn50", "vit_b"]
    # An override of one place leaves the others that share its anchor alone.
    params = load_params(path, ["experiments.again.model.num_queries=7"])
    assert [params.resolve(n, 0).model.num_queries for n in ("nq_2", *shown)] == [2, 7, 5, 5]
    assert from_snakemake(path, "seeds=[1]") == ["seeds=[1]"]
    # A key twice beside a merge is still a duplicate.
    path.write_text(path.read_text().replace("mmp: false,", "mmp: false, mmp: true,", 1))
    assert "duplicate key 'mmp'" in refusal(path=path)


# Overrides.


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        *((override, "write KEY=VALUE") for override in ("profile", "", "=mini", "a..b=1")),
        ("profile.mini=1", "profile is not a mapping"),
        ("seeds.0=1", "seeds is not a mapping"),
        ("seeds=[0", "not YAML"),
        ("profiles.mini.train={a:\nb: c", "not YAML"),
    ],
)
def test_a_malformed_override_is_refused(override: str, reason: str) -> None:
    message = refusal(override)
    assert message.startswith("--set ")
    assert reason in message


def from_snakemake(path: Path, *config: str) -> list[str]:
    """The overrides that the rules give to `mmnet` after `snakemake --config ...`."""
    values = load_configfile(path)
    update_config(values, parse_config(config))
    return overrides_between(yaml.safe_load(path.read_text()), values)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"profile": "paper"},
        {"seeds": [0, 1, 2]},
        # JSON writes 1e-05, which YAML alone would read as text.
        {"profiles": {"mini": {"train": {"lr": 1e-5}, "model": {"mmp": False}}}},
        {"profiles": {"mini": {"towers": {"vit_b": {"label": "50% é 'x' = \"y\"\nz"}}}}},
        {"experiments": {"more": {"tables": [], "dataset": "refcoco+", "tower": "rn50"}}},
        {"profiles": {"mini": {"pretrain": {"lr": 1e-7}}}, "seeds": [7]},
    ],
)
def test_overrides_between_carry_every_change(changes: dict[str, Any]) -> None:
    base = yaml.safe_load(PARAMS.read_text())

    def laid_over(values: Any, changes: Any) -> Any:
        if not isinstance(changes, dict):
            return changes
        return {**values, **{k: laid_over(values.get(k, {}), v) for k, v in changes.items()}}

    changed = laid_over(base, changes)
    overrides = overrides_between(base, changed)
    assert bool(overrides) == bool(changes)
    assert all("\n" not in override for override in overrides)
    assert load_params(PARAMS, overrides) == check_params(changed)


@pytest.mark.parametrize(
    ("config", "overrides"),
    [
        ("profile=paper", ['profile="paper"']),
        ("seeds=[0, 1]", ["seeds=[0, 1]"]),
        ("allow_missing=true", ["allow_missing=true"]),
        ("profiles={mini: {train: {lr: 0.5}}}", ["profiles.mini.train.lr=0.5"]),
        ("profiles={mini: {pretrain: null}}", ["profiles.mini.pretrain=null"]),
        ("profiles={mini: {shapes: {image_sizes: [[64, 48]]}}}", ["=[[64, 48]]"]),
        # Text in params.yaml stays text, whatever YAML would read in it.
        ("profiles={mini: {towers: {vit_b: {label: on}}}}", ['vit_b.label="on"']),
        ("profiles={mini: {label: 2024}}", ['profiles.mini.label="2024"']),
        ("profiles={mini: {label: null}}", ['profiles.mini.label="null"']),
        # Where text or null may be: what is null, or was.
        ("profiles={mini: {cluster: {train: {partition: 1e3}}}}", ['train.partition="1e3"']),
        ("profiles={paper: {data: {refcoco: 007}}}", ['profiles.paper.data.refcoco="007"']),
        ("profiles={mini: {archives: {refcoco: {checksums: null}}}}", ["checksums=null"]),
        # New keys, by what the schema says of them; an experiment's own are numbers or names.
        (
            "profiles={mini: {towers: {x: {label: on, train: {epochs: 3}}}}}",
            ['towers.x={"label": "on", "train": {"epochs": 3}}'],
        ),
        (
            "experiments={nq_1: {model: {mmp: false, resize: squash}, train: {lr: 0.1}}}",
            ["model.mmp=false", 'model.resize="squash"', 'nq_1.train={"lr": 0.1}'],
        ),
        ("profiles={mini: {train: {epochs: 2024-01-01}}}", ['train.epochs="2024-01-01"']),
    ],
)
def test_what_snakemakes_command_line_changed_keeps_its_type(
    config: str, overrides: list[str]
) -> None:
    found = from_snakemake(PARAMS, config)
    assert len(found) == len(overrides)
    for line, end in zip(found, overrides, strict=True):
        assert line.endswith(end)
