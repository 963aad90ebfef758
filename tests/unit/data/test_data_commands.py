"""The commands on data: download, download-clip, prepare, unpack-images."""

import hashlib
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from mmnet.cli.parser import main
from mmnet.data.dataset import read_image
from mmnet.data.refer import read_table
from mmnet.runtime.errors import DataError
from support.mirror import CONTENT, OTHER, SHA256, Mirror, pinned, status, whole
from support.tiny import ROOT, Tiny

ARCHIVES = Path("data/mini/archives")
COPY = ["--set", "profiles.mini.data.train2014=mine"]


@pytest.fixture
def project(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose params.yaml names our mirror, and a tower with OpenAI's weights."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    mini = params["profiles"]["mini"]
    for name in mini["archives"]:
        mini["archives"][name] = pinned(mirror.serves(whole, at=f"/{name}.zip")).model_dump()
    mini["towers"]["vit_b"]["pretrained"] = "openai"
    weights = pinned(mirror.serves(whole, at="/ViT-B-16.pt")).model_dump()
    # The second tower's file is made here: nothing to download or to verify.
    mini["weights"] = {"vit_b": weights, "vit_l": weights}
    mini["data"] = {"train2014": None}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    capsys.readouterr()
    code = main(list(arguments))
    output, error = capsys.readouterr()
    return code, output.splitlines(), error


def write(content: bytes, *paths: Path | str) -> None:
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_download_fetches_all_but_local_copies_and_the_second_time_nothing(
    project: Path, mirror: Mirror, capsys: pytest.CaptureFixture[str]
) -> None:
    write(CONTENT, "mine")
    code, output, error = run(capsys, "download", *COPY)
    assert (code, output) == (0, [])
    fetched = ["refcoco", "refcoco+", "refcocog"]
    assert mirror.requests == [(f"/{name}.zip", 0) for name in fetched]
    assert sorted(path.name for path in ARCHIVES.iterdir()) == sorted(
        f"{name}.zip{end}" for name in fetched for end in ("", ".sha256")
    )
    assert "profiles.mini.data.train2014 names your copy, mine" in error
    code, _, error = run(capsys, "download", *COPY)
    assert code == 0
    assert error.count(f"sha256 {SHA256}") == 3
    assert len(mirror.requests) == 3
    for _ in range(2):
        assert run(capsys, "download-clip", "vit_b")[0] == 0
    assert Path("clip/mini/vit_b.pt").read_bytes() == CONTENT
    assert mirror.requests[3:] == [("/ViT-B-16.pt", 0)]


def test_download_fetches_what_is_named_and_a_wrong_one_again(
    project: Path, mirror: Mirror, capsys: pytest.CaptureFixture[str]
) -> None:
    write(OTHER, path := ARCHIVES / "refcoco+.zip")
    code, _, error = run(capsys, "download", "refcoco+")
    assert code == 0
    assert path.read_bytes() == CONTENT
    assert hashlib.sha256(OTHER).hexdigest() in error
    assert mirror.requests == [("/refcoco+.zip", 0)]
    # It was the user's: set aside. What was fetched and then damaged is ours.
    assert (kept := path.with_name("refcoco+.zip.own1")).read_bytes() == OTHER
    assert str(kept) in error
    write(OTHER, path)
    assert run(capsys, "download", "refcoco+")[0] == 0
    assert len([*ARCHIVES.glob("*.own*")]) == 1


@pytest.mark.parametrize(
    ("command", "file", "place", "key"),
    [
        (["download", "refcoco"], "/refcoco.zip", ARCHIVES / "refcoco.zip", "data.refcoco"),
        (["download-clip", "vit_b"], "/ViT-B-16.pt", "clip/mini/vit_b.pt", "vit_b.pretrained"),
    ],
)
def test_a_file_that_no_mirror_has_may_be_put_in_place_and_is_kept(
    command: list[str],
    file: str,
    place: Path | str,
    key: str,
    project: Path,
    mirror: Mirror,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mirror.serves(status(404), at=file)
    code, _, error = run(capsys, *command)
    assert code == 1
    assert "404 Not Found" in error
    assert str(place) in error
    assert key in error
    write(CONTENT, place)
    before = Path(place).stat()
    for _ in range(2):
        assert run(capsys, *command)[0] == 0
    after = Path(place).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert mirror.requests == [(file, 0)]


def test_check_reports_each_file_and_fetches_nothing(
    project: Path, mirror: Mirror, capsys: pytest.CaptureFixture[str]
) -> None:
    write(CONTENT, ARCHIVES / "refcoco.zip", "clip/mini/vit_b.pt")
    write(CONTENT[:2000], ARCHIVES / ".refcocog.zip.part")
    write(OTHER, "clip/mini/vit_l.pt")
    (project / "mine").mkdir()
    code, lines, error = run(capsys, "download", "--check", *COPY)
    assert (code, error) == (0, "")
    found = [line.partition(": ")[::2] for line in lines]
    assert found == [
        (f"{ARCHIVES}/refcoco.zip", f"correct, sha256 {SHA256}"),
        (f"{ARCHIVES}/refcoco+.zip", "missing"),
        (f"{ARCHIVES}/refcocog.zip", "missing; 2.0 kB of it downloaded"),
        ("mine", "a folder, not verified"),
        ("clip/mini/vit_b.pt", f"correct, sha256 {SHA256}"),
    ]
    assert run(capsys, "download", "--check", "refcoco+") == (0, lines[1:2], "")
    assert mirror.requests == []


def test_check_fails_on_wrong_files_after_it_has_named_them_all(
    project: Path, mirror: Mirror, capsys: pytest.CaptureFixture[str]
) -> None:
    write(OTHER, ARCHIVES / "refcoco.zip", "clip/mini/vit_b.pt", "mine")
    copies = [*COPY, "--set", "profiles.mini.data.refcocog=nowhere"]
    code, lines, error = run(capsys, "download", "--check", *copies)
    assert code == 1
    facts = [
        (f"{ARCHIVES}/refcoco.zip", "mmnet download refcoco"),
        (f"{ARCHIVES}/refcoco+.zip", "missing"),
        ("params.yaml: profiles.mini.data.refcocog", "nowhere"),
        ("mine", "profiles.mini.data.train2014"),
        ("clip/mini/vit_b.pt", "mmnet download-clip vit_b"),
    ]
    for line, (start, fact) in zip(lines, facts, strict=True):
        assert line.startswith(f"{start}: ")
        assert fact in line
    assert sum(hashlib.sha256(OTHER).hexdigest() in line for line in lines) == 3
    assert "4 of 5 files" in error
    assert Path("mine").read_bytes() == OTHER
    assert mirror.requests == []


def test_the_commands_read_a_users_own_folders(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("refcoco", "train2014"):
        with ZipFile(tiny.archives[name]) as archive:
            archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = ", ".join(f"{name}: {tmp_path}" for name in ("refcoco", "train2014"))
    dataset = "{refcoco: {refs: unc, splits: [val], max_length: 17, counts: null}}"
    common = ["--params", str(ROOT / "params.yaml"), "--set", f"profiles.mini.data={{{names}}}"]
    common += ["--set", f"profiles.mini.datasets={dataset}", "--set", "experiments={}"]
    common += ["--set", "profiles.mini.pretrain=null", "--set", "profiles.mini.towers={}"]
    assert main(["prepare", "refcoco", *common]) == 0
    assert main(["unpack-images", *common]) == 0
    table = read_table(Path("data/mini/refcoco.parquet"))
    assert len(table) == len(read_table(tiny.table))
    assert {path.name for path in Path("data/mini/images").iterdir()} == set(table["file"])
    assert not Path("data/mini/archives").exists()


def test_a_fault_in_a_users_own_files_names_them_and_what_helps_there(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ZipFile(tiny.archives["refcoco"]) as archive:
        archive.extractall(tmp_path)
    own = tmp_path / "refcoco"
    (own / "instances.json").write_bytes(b"{")
    monkeypatch.chdir(tmp_path)
    copy = ["--params", str(ROOT / "params.yaml"), "--set", f"profiles.mini.data.refcoco={own}"]
    code, _, error = run(capsys, "prepare", "refcoco", *copy)
    assert code == 1
    assert error.startswith(f"mmnet: {own}: instances.json: ")
    assert "profiles.mini.data.refcoco" in error
    assert "etch" not in error
    # An image is a link: unpacking would make the same link again.
    image = tmp_path / "own.jpg"
    image.write_bytes(next(tiny.images.iterdir()).read_bytes()[:100])
    link = tmp_path / "link.jpg"
    link.symlink_to(image)
    for path, facts in ((link, (str(image), "data.train2014")), (image, ("unpack-images",))):
        with pytest.raises(DataError) as caught:
            read_image(path)
        assert all(fact in str(caught.value) for fact in facts)
        assert ("unpack-images" in str(caught.value)) == (path == image)
