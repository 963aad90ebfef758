"""The page's server: what it answers, and what it refuses."""

import asyncio
import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile, JpegImagePlugin
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.testclient import TestClient
from starlette.types import Message

from mmnet.runtime.errors import MMNetError
from mmnet.use.model import Model
from mmnet.use.page.about import About, about
from mmnet.use.page.app import application, body
from mmnet.use.page.serve import bound
from mmnet.use.page.worker import PICTURES, Worker
from support.page import claiming, loaded, made_run, picture, png
from support.tiny import Tiny

HOST = "http://127.0.0.1"
MB = 1_000_000


def pixels(data: bytes) -> NDArray[Any]:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run(tmp_path_factory.mktemp("run"), tiny)


@pytest.fixture(scope="module")
def known(run: Path) -> tuple[Model, About]:
    return loaded(run)


@pytest.fixture(scope="module")
def client(known: tuple[Model, About]) -> Iterator[TestClient]:
    worker = Worker(known[0])
    with TestClient(application(worker, known[1]), HOST, raise_server_exceptions=False) as client:
        yield client
    worker.close()


def test_the_page_says_what_the_model_is_and_shows_its_own_val(
    client: TestClient, known: tuple[Model, About], tiny: Tiny
) -> None:
    said = client.get("/model").json()
    facts = dict(said["facts"])
    assert facts["Model"] == said["name"] == "refcoco_vit_b/seed0"
    assert facts["val mIoU"] == "37.5 %"
    assert "procedural" in facts["Trained on"]
    sentences = {example.sentence for example in known[1].examples}
    assert set(said["examples"]) == sentences
    assert len(sentences) == 3  # of each picture of tiny's val
    shown = client.get("/examples/0").content
    assert shown == known[1].examples[0].file.read_bytes()
    by_number = client.post("/examples/0").json()
    assert by_number == client.post("/pictures", content=shown).json()


def test_an_exported_folder_has_its_score_and_no_examples(
    known: tuple[Model, About], tmp_path: Path
) -> None:
    scores = {"val": {"mIoU": 0.4321}}
    (tmp_path / "config.json").write_text(json.dumps({"scores": scores}))
    said = about(known[0].config, tmp_path)
    assert dict(said.facts)["val mIoU"] == "43.2 %"
    assert said.examples == []
    (tmp_path / "config.json").unlink()
    assert "val mIoU" not in dict(about(known[0].config, tmp_path).facts)


def test_the_page_gets_what_python_gives(client: TestClient, known: tuple[Model, About]) -> None:
    image, sentence = picture(), "the red circle on the left"
    seen = client.post("/pictures", content=png(image)).json()
    assert (seen["width"], seen["height"]) == image.size
    assert pixels(client.get(f"/pictures/{seen['id']}").content).shape == (40, 60, 3)
    answer = client.post("/find", json={"picture": seen["id"], "sentence": sentence}).json()
    looked = known[0].look(image)
    found, read = looked.find(sentence), looked.queries(sentence)
    for key in ("confidence", "area", "threshold", "cut"):
        assert answer[key] == pytest.approx(getattr(found, key))
    sent = pixels(base64.b64decode(answer["probability"]))
    np.testing.assert_array_equal(sent, np.rint(255 * found.probability))
    assert answer["words"] == read.words
    order = [query["number"] - 1 for query in answer["queries"]]
    assert order == np.argsort(-read.scores, kind="stable").tolist()
    for query, number in zip(answer["queries"], order, strict=True):
        assert query["attention"] == pytest.approx(read.attention[number].tolist())
        mask = pixels(base64.b64decode(query["mask"]))
        np.testing.assert_array_equal(mask, np.rint(255 * read.masks[number]))
    for threshold in (None, 0.5):
        question = {"picture": seen["id"], "sentence": sentence, "threshold": threshold}
        mask = pixels(client.post("/mask", json=question).content)
        np.testing.assert_array_equal(mask, 255 * looked.find(sentence, threshold).mask)


def test_a_plain_jpeg_is_decoded_as_that_of_a_path(
    client: TestClient, known: tuple[Model, About], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("decoded by Pillow")

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", fail)
    for example in known[1].examples:
        data = example.file.read_bytes()
        seen = client.post("/pictures", content=data).json()
        question = {"picture": seen["id"], "sentence": example.sentence}
        answer = client.post("/find", json=question).json()
        found = known[0].look(example.file).find(example.sentence)
        assert (answer["confidence"], answer["area"]) == (found.confidence, found.area)
        mask = pixels(client.post("/mask", json=question).content)
        np.testing.assert_array_equal(mask > 0, found.mask)
        refused = client.post("/pictures", content=data[: len(data) // 2])
        assert refused.status_code == 400
        assert "JPEG" in refused.json()["error"]


@pytest.mark.parametrize("changes", [{"mmp": False}, {"num_queries": 1}, {"mqe": False}])
def test_models_without_a_part_have_a_page(
    changes: dict[str, Any], tiny: Tiny, tmp_path: Path
) -> None:
    model, said = loaded(made_run(tmp_path, tiny, **changes))
    with TestClient(application(Worker(model), said), HOST) as client:
        seen = client.post("/examples/0").json()
        question = {"picture": seen["id"], "sentence": "the star"}
        answer = client.post("/find", json=question).json()
    assert len(answer["queries"]) == model.config.model.num_queries
    has_masks = {query["mask"] is not None for query in answer["queries"]}
    assert has_masks == {model.config.model.mmp}
    assert all(sum(query["attention"]) == pytest.approx(1) for query in answer["queries"])
    assert answer["scored"] == model.config.model.mqe
    assert "nan" not in answer["diversity"]


SENTENCE = {"picture": "0" * 16, "sentence": "the star"}
WHOLE = png(picture(size=(300, 300)))
BAD = {
    "not a picture": ("POST", "/pictures", b"%PDF-1.4", {}, 400, "no picture"),
    "PostScript": ("POST", "/pictures", b"%!PS-Adobe-3.0 EPSF-3.0\n", {}, 400, "no picture"),
    "nothing": ("POST", "/pictures", b"", {}, 400, "no picture"),
    "truncated": ("POST", "/pictures", WHOLE[: len(WHOLE) // 2], {}, 400, "damaged"),
    "30 MB": ("POST", "/pictures", bytes(30 * MB), {}, 413, "20 MB"),
    "broken JSON": ("POST", "/find", b'{"picture": ', {}, 400, "JSON"),
    "not UTF-8": ("POST", "/find", b"\xff\xfe\xff", {}, 400, "JSON"),
    "deep JSON": ("POST", "/find", b"[" * 50_000, {}, 400, "JSON"),
    "a list": ("POST", "/find", [], {}, 400, "JSON"),
    "no sentence": ("POST", "/find", {"picture": "0"}, {}, 400, "sentence"),
    "a number": ("POST", "/find", SENTENCE | {"sentence": 1}, {}, 400, "sentence"),
    "empty": ("POST", "/find", SENTENCE | {"sentence": " \n"}, {}, 400, "empty"),
    "long": ("POST", "/find", SENTENCE | {"sentence": "a" * 10_000}, {}, 400, "10,000"),
    "forgotten": ("POST", "/find", SENTENCE, {}, 410, "again"),
    "threshold": ("POST", "/mask", SENTENCE | {"threshold": 2}, {}, 400, "threshold"),
    "not a number": ("POST", "/mask", SENTENCE | {"threshold": "a"}, {}, 400, "threshold"),
    "no example": ("GET", "/examples/99", None, {}, 404, "example"),
    "traversal": ("GET", "/examples/..%2f..%2f..%2fetc%2fpasswd", None, {}, 404, ""),
    "traversal of pictures": ("GET", "/pictures/..%2f..%2fetc%2fpasswd", None, {}, 404, ""),
    "method": ("GET", "/find", None, {}, 405, ""),
    "another site": ("POST", "/find", SENTENCE, {"Origin": "http://a.example"}, 403, "site"),
    "another host": ("GET", "/", None, {"Host": "a.example"}, 400, "host"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_one_line_and_the_server_lives(case: str, client: TestClient) -> None:
    method, path, body, headers, status, word = BAD[case]
    sent = {"content": body} if isinstance(body, bytes) else {"json": body}
    answer = client.request(method, path, headers=headers, **(sent if body is not None else {}))
    assert answer.status_code == status
    assert word.lower() in answer.text.lower()
    assert len(answer.text) < 300
    assert "Traceback" not in answer.text
    if "host" not in word:
        assert answer.json().keys() == {"error"}
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    ("gaps", "late"),
    [([50.0] * 11, None), ([1.0, 70.0], "60 s"), ([50.0] * 20, "600 s")],
    ids=["steady", "stopped", "too slow"],
)
def test_a_body_may_be_slow_while_it_goes_on(gaps: list[float], late: str | None) -> None:
    """`gaps` are the seconds between its parts, by the loop's own clock."""

    async def received() -> bytes:
        now, waits = 0.0, iter(gaps)
        asyncio.get_running_loop().time = lambda: now  # type: ignore[method-assign]

        async def receive() -> Message:
            nonlocal now
            now += (gap := next(waits, 0.0))
            for _ in range(3):  # in which what is due is called
                await asyncio.sleep(0)
            return {"type": "http.request", "body": b"a" * bool(gap), "more_body": bool(gap)}

        return await body(Request({"type": "http"}, receive), MB)

    if late is None:
        assert asyncio.run(received()) == b"a" * len(gaps)
        return
    with pytest.raises(HTTPException) as caught:
        asyncio.run(received())
    assert caught.value.status_code == 408
    assert late in caught.value.detail


@pytest.mark.parametrize("side", [8_000, 20_000])
def test_too_many_pixels_are_refused_before_they_are_decoded(
    side: int, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fail(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    answer = client.post("/pictures", content=claiming(side))
    assert answer.status_code == 400
    assert "megapixels" in answer.json()["error"]


def test_the_last_pictures_stay_in_memory(client: TestClient) -> None:
    ids = [client.post("/pictures", content=png(picture(n))).json()["id"] for n in range(PICTURES)]
    assert client.get(f"/pictures/{ids[0]}").status_code == 200  # which makes it the last one
    client.post("/pictures", content=png(picture(PICTURES)))
    states = [client.get(f"/pictures/{id}").status_code for id in ids]
    assert states == [200, 410, *[200] * (PICTURES - 2)]


def test_the_page_allows_its_own_scripts_alone_and_names_no_other_host(client: TestClient) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'self'"
    for kind in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-[\w+/]{43}='", rules[kind])
    # The browser tests show that these hashes are the page's.
    hosts = set(re.findall(r"https?://[\w.]+", answer.text))
    assert hosts == {"http://www.w3.org"}  # SVG's name, which is fetched by nobody
    assert not re.search(r"\son\w+=|style=", answer.text)


def test_a_port_that_is_taken_is_one_line() -> None:
    with bound(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MMNetError, match=rf"^port {port}: .*--port 0"):
            bound(port)
    with pytest.raises(MMNetError, match=r"^port 70000: "):
        bound(70_000)
