"""params.yaml: what is refused, in which words, and what a run's values are."""

from pathlib import Path
from typing import Any

import pytest
import yaml

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


def test_the_ablations_are_13_runs_on_the_papers_data_and_tower() -> None:
    params = load_params(PARAMS, ["profile=paper"])
    names = [
        n for n, e in params.experiments.items() if {*e.tables} & {"table2", "table3", "table4"}
    ]
    configs = [params.resolve(name, 0) for name in names]
    assert len(names) == 13
    assert {config.dataset_name for config in configs} == {"refcoco+"}
    assert {config.tower.architecture for config in configs} == {"RN50-quickgelu"}
    assert {config.train.epochs for config in configs} == {50}
    switches = [(c.model.num_queries, c.model.mmp, c.model.mqe, c.model.f_vg) for c in configs]
    on = True
    assert switches == [
        *((count, on, on, on) for count in (32, 24, 16, 8, 4, 2, 1)),
        *((count, False, on, on) for count in (24, 16, 8)),
        *((24, on, False, on), (24, on, on, False), (24, on, False, False)),
    ]


def test_paper_profile_holds_the_papers_settings() -> None:
    config = load_params(PARAMS, ["profile=paper"]).resolve("refcocog_vit_l", 0)
    model, train = config.model, config.train
    assert (model.image_size, model.width, model.num_queries) == (480, 512, 24)
    assert (model.heads, model.ffn, model.channels) == (8, 2048, [256, 512, 1024])
    assert (train.epochs, train.batch_size, train.lr) == (100, 64, 1e-5)
    assert config.dataset.max_length == 22
    # OpenAI's weights under the plain definitions give silently wrong features.
    assert config.tower.architecture == "ViT-L-14-quickgelu"


def test_an_experiments_keys_lie_over_its_profiles() -> None:
    params = load_params(PARAMS, [f"{RUN}.model={{num_queries: 3}}", f"{RUN}.train={{epochs: 1}}"])
    plain = load_params(PARAMS).resolve("refcoco_vit_b", 0)
    config = params.resolve("refcoco_vit_b", 0)
    assert config.model == plain.model.model_copy(update={"num_queries": 3})
    assert config.train == plain.train.model_copy(update={"epochs": 1})
    other = load_params(PARAMS).resolve("refcoco_vit_l", 0)
    assert params.resolve("refcoco_vit_l", 0) == other


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("profil=mini", "profil is unknown. Did you mean profile?"),
        ("profiles.mini.trian={}", "profiles.mini.trian is unknown. Did you mean train?"),
        ("profiles.mini.train.epoch=3", "train.epoch is unknown. Did you mean epochs?"),
        ("profiles.paper.model.num_querys=3", "num_querys is unknown. Did you mean num_queries?"),
        ("profiles.mini.towers.vit_b.lable=x", "vit_b.lable is unknown. Did you mean label?"),
        ("profiles.mini.datasets.refcoco.max_lenght=9", "Did you mean max_length?"),
        ("profiles.mini.archives.refcoco+.sha265=x", "refcoco+.sha265 is unknown. Did you mean"),
        ("profiles.mini.shapes.seeds=1", "shapes.seeds is unknown. Did you mean seed?"),
        ("profiles.mini.pretrain.step=1", "pretrain.step is unknown. Did you mean steps?"),
        (f"{RUN}.modle={{}}", f"{RUN}.modle is unknown. Did you mean model?"),
        (
            f"{RUN}.model={{num_querys: 3}}",
            f"params.yaml: {RUN}.model.num_querys is unknown. Did you mean num_queries?",
        ),
        ("zzz=1", "Known: profile, seeds, allow_missing, mlflow, experiments, profiles."),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_named(override: str, advice: str) -> None:
    assert advice in refusal(override)


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("profile=papr", "profiles has no 'papr'. Did you mean paper?"),
        (f"{RUN}.dataset=refcoc", "must be one of refcoco, refcoco+, refcocog. Did you mean"),
        (f"{RUN}.tower=vitb", f"{RUN}.tower: profiles.mini.towers has no 'vitb'. Did you mean"),
        (f"{RUN}.tables=[table9]", "one of table1, table2, table3, table4. Did you mean"),
        ("profiles.mini.model.resize=leterbox", "letterbox, squash. Did you mean letterbox?"),
        ("profiles.mini.datasets.refcoco.refs=und", "one of unc, umd, google. Did you mean unc?"),
        ("experiments.Nq-8={}", "String should match pattern"),
    ],
)
def test_an_unknown_name_is_refused_and_the_nearest_named(override: str, advice: str) -> None:
    assert advice in refusal(override)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("profiles.mini.train.lr=fast", "lr is the text 'fast': must be a number."),
        ("profiles.mini.train.epochs='8'", "epochs is the text '8': must be a number."),
        ("profiles.mini.train.epochs=2.5", "epochs is 2.5: should be a valid integer."),
        ("profiles.mini.train.epochs=true", "epochs is True: should be a valid integer."),
        ("profiles.mini.cluster.train.minutes=0", "minutes is 0: should be greater than 0."),
        ("profiles.mini.cluster.train.partition=''", "should have at least 1 character"),
        ("profiles.mini.train.epochs=0", "epochs is 0: should be greater than 0."),
        ("profiles.mini.train.lr=.nan", "lr is nan: should be a finite number."),
        ("profiles.mini.train.lr=.inf", "lr is inf: should be a finite number."),
        ("profiles.mini.train.workers=-1", "should be greater than or equal to 0."),
        ("profiles.mini.model.mmp=1", "mmp is 1: should be a valid boolean."),
        ("profiles.mini.model.dropout=1.0", "dropout is 1.0: should be less than 1."),
        ("profiles.mini.model.image_size=100", "image_size is 100: should be a multiple of 32."),
        ("profiles.mini.model.channels=[1, 2]", "should have at least 3 items"),
        ("profiles.mini.model=null", "model is None: should be a valid dictionary"),
        ("profiles.mini.evaluate.threshold=35", "threshold is 35: should be less than 1."),
        ("profiles.mini.datasets.refcoco.max_length=78", "should be less than or equal to 77."),
        ("profiles.mini.datasets.refcoco.splits=[testA, testB]", "splits must contain val"),
        ("profiles.mini.shapes.image_sizes=[[64, 0]]", "image_sizes.0.1 is 0"),
        ("profiles.mini.archives.refcoco.md5=x", "md5 is 'x': String should match pattern"),
        ("profiles.paper.archives.refcoco.sha256=null", "needs exactly one of sha256, md5"),
        ("profiles.mini.pretrain=null", "['vit_b', 'vit_l', 'rn50'] are to be pre-trained"),
        ("profile=3", "profile is 3: should be a valid string."),
        ("seeds=[]", "should have at least 1 item"),
        ("seeds=0", "seeds is 0: should be a valid list."),
        ("seeds=[-1]", "seeds.0 is -1: should be greater than or equal to 0."),
        ("seeds=[0, 1, 0]", "seeds: [0, 1, 0] names a seed twice. Drop one."),
        ("profiles.mini.model.heads=5", "profiles.mini.model heads (5) must divide width (64)."),
        (f"{RUN}.model={{heads: 5}}", f"{RUN}.model heads (5) must divide width (64)."),
        (f"{RUN}.evaluate={{threshold: 2}}", f"{RUN}.evaluate.threshold is 2"),
    ],
)
def test_a_wrong_type_or_range_is_refused(override: str, reason: str) -> None:
    message = refusal(override)
    assert message.startswith("params.yaml: ")
    assert reason in message


@pytest.mark.parametrize(
    "key",
    ["seeds", "profiles", "profiles.mini.train.lr", "profiles.paper.towers.vit_b.label"],
)
def test_a_missing_key_is_refused(key: str) -> None:
    values = yaml.safe_load(PARAMS.read_text())
    *parents, last = key.split(".")
    place = values
    for parent in parents:
        place = place[parent]
    del place[last]
    with pytest.raises(ConfigError, match=rf"^params.yaml: {key} is missing. Add it.$"):
        check_params(values)


def test_1e_5_in_the_file_is_text_and_the_remedy_is_said(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text().replace("lr: 1.0e-5", "lr: 1e-5"))
    message = refusal(path=path)
    assert "profiles.paper.train.lr is the text '1e-5': must be a number" in message
    assert "write 1.0e-5" in message


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("profile", "write KEY=VALUE"),
        ("", "write KEY=VALUE"),
        ("=mini", "write KEY=VALUE"),
        ("profiles..mini=1", "write KEY=VALUE"),
        ("profile.mini=1", "profile holds no keys."),
        ("seeds.0=1", "seeds holds no keys."),
        ("seeds=[0", "not YAML"),
        ("profiles.mini.train={a:\nb: c", "not YAML"),
    ],
)
def test_a_malformed_override_is_refused(override: str, reason: str) -> None:
    message = refusal(override)
    assert message.startswith("--set ")
    assert reason in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: [1", "not YAML: while parsing a flow sequence"),
        (b"a: b: c", "not YAML: mapping values are not allowed here"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"", "the file is None: should be a valid dictionary"),
        (b"- profile", "the file is ['profile']: should be a valid dictionary"),
        (b'"a\\nb": 1', "is unknown"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    assert reason in refusal(path=path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "not found. Run from the repository's root." in refusal(path=tmp_path / "params.yaml")
    assert "cannot be read" in refusal(path=tmp_path)


@pytest.mark.parametrize(
    ("experiment", "seed", "reason"),
    [
        ("refcoco_vitb", 0, "experiments has no 'refcoco_vitb'. Did you mean refcoco_vit_b?"),
        ("zzz", 0, "Known: refcoco_vit_b, "),
        ("refcoco_vit_b", -1, "seed is -1: should be greater than or equal to 0."),
    ],
)
def test_a_run_that_cannot_be_is_refused(experiment: str, seed: int, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_params(PARAMS).resolve(experiment, seed)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


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


def test_params_cannot_be_changed_after_loading() -> None:
    params: Params = load_params(PARAMS)
    with pytest.raises(ValueError, match="frozen"):
        params.profile = "paper"


def test_numbers_and_nulls_that_a_command_line_left_as_text_are_read_again() -> None:
    # As Snakemake's --config 'seeds=[0, 1]' arrives: text inside containers.
    base = {"seeds": [0], "experiments": {"a": {"model": {}}}, "profile": "mini"}
    changed = {
        "seeds": ["0", "1"],
        "experiments": {"a": {"model": {"mmp": "false", "dropout": "0.5", "name": "null"}}},
        "profile": "paper",
    }
    assert overrides_between(base, changed) == [
        "seeds=[0, 1]",
        "experiments.a.model.mmp=false",
        "experiments.a.model.dropout=0.5",
        "experiments.a.model.name=null",
        'profile="paper"',
    ]


def mistyped(path: Path, old: str, new: str) -> str:
    path.write_text(PARAMS.read_text().replace(old, new))
    return refusal(path=path)


def test_key_mistyped_in_place_is_told_by_its_nearest(tmp_path: Path) -> None:
    line = mistyped(tmp_path / "p.yaml", "      num_queries: 8", "      num_querys: 8")
    assert line.endswith("model.num_querys is unknown. Did you mean num_queries?")
    line = mistyped(tmp_path / "p.yaml", "\nexperiments:", "\nexperimnts:")
    assert line.endswith("experimnts is unknown. Did you mean experiments?")


def test_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    line = mistyped(tmp_path / "p.yaml", "profile: mini\n", "profile: mini\nprofile: paper\n")
    assert "the key 'profile' stands twice" in line


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("towers.vit_b.architecture=mini-vit-q", "architecture is 'mini-vit-q': neither"),
        ("datasets.refcoco.splits=[val, val]", "splits names a split twice: val, val"),
        ("datasets.refcoco.splits=[val, testC]", "Did you mean test?"),
        ("shapes.images.refcoco={train: 1, vall: 1, testA: 1, testB: 1}", "Did you mean val?"),
        ("pretrain.captions=[refcocoo]", "Did you mean refcoco?"),
        ("train.device=gpu", "train.device is 'gpu'"),
    ],
)
def test_what_would_fail_after_hours_is_refused_at_load(override: str, advice: str) -> None:
    assert advice in refusal(f"profiles.mini.{override}")


def test_archives_must_hold_every_dataset_and_the_images(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    values = yaml.safe_load(PARAMS.read_text())
    del values["profiles"]["mini"]["archives"]["train2014"]
    path.write_text(yaml.safe_dump(values))
    assert "archives lacks train2014" in refusal(path=path)


def test_without_open_clip_the_architecture_is_left_to_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As where Snakemake stands alone and conda makes the jobs' environment.
    monkeypatch.setattr("mmnet.config.find_spec", lambda name: None)
    load_params(PARAMS, ["profiles.mini.towers.vit_b.architecture=mini-vit-q"])


def test_weights_of_openai_lie_where_open_clip_says() -> None:
    import open_clip

    paper = load_params(PARAMS, ["profile=paper"]).active
    for name, tower in paper.towers.items():
        source, url = (
            paper.weights[name],
            open_clip.get_pretrained_url(tower.architecture, "openai"),
        )
        assert source.urls[0] == url
        assert f"/{source.sha256}/" in url


def test_a_tower_of_openais_needs_the_source_of_its_weights() -> None:
    line = refusal("profile=paper", "profiles.paper.weights={}")
    assert "profiles.paper.weights lacks vit_b" in line


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("profiles.paper.data.train2014=''", "should have at least 1 character"),
        ("profiles.paper.archives.refcoco.urls=[ftp://x/y]", "should match pattern"),
        ("profiles.paper.data.train2015=/x", "data.train2015 is 'train2015': must be one of"),
        ("profiles.paper.datasets.refcoco.counts.vall={}", "Did you mean val?"),
        ("profiles.paper.datasets.refcoco.counts.val.ref=1", "is unknown. Did you mean refs?"),
        ("profiles.paper.weights.vit_b.md5=" + "a" * 32, "needs exactly one of sha256, md5"),
    ],
)
def test_a_mistake_about_sources_is_told(override: str, advice: str) -> None:
    assert advice in refusal(override)
