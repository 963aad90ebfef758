"""The mini benchmark: REFER's layout, true masks, and sentences that name one thing."""

import hashlib
import io
import json
import pickle
import re
from collections import Counter, defaultdict
from types import SimpleNamespace
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import pandas as pd
import pytest
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from pycocotools import mask as coco_mask

from mmnet.benchmark.language import Speaker
from mmnet.benchmark.scenes import draw_scene, paint, scenes, write_mirror
from mmnet.benchmark.words import COLOURS
from mmnet.runtime.errors import DataError
from support.scene_meaning import read

SIZES = [(112, 96), (96, 112), (104, 104), (112, 104)]
IMAGES = {
    "refcoco": {"train": 50, "val": 20, "testA": 20, "testB": 20},
    "refcocog": {"train": 50, "val": 15, "test": 15},
}
FEW = {
    "refcoco": {"train": 3, "val": 2, "testA": 1, "testB": 1},
    "refcocog": {"train": 2, "val": 1, "test": 1},
}
REFS = {"refcoco": "refs(unc).p", "refcoco+": "refs(unc).p", "refcocog": "refs(umd).p"}
GROUPS = {"testA": {"circle", "square", "triangle"}, "testB": {"star", "cross", "ring"}}
PLACES = r"\b(left|right|top|bottom|middle|center|corner|side|above|below|under|front|behind)"


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """A written mirror, read back with none of the code that wrote it."""
    folder = tmp_path_factory.mktemp("mirror")
    write_mirror(folder, seed=7, image_sizes=SIZES, images=IMAGES)
    instances, refs = {}, {}
    for dataset, name in REFS.items():
        with ZipFile(folder / f"{dataset}.zip") as archive:
            instances[dataset] = json.loads(archive.read(f"{dataset}/instances.json"))
            refs[dataset] = pickle.loads(archive.read(f"{dataset}/{name}"))
    drawn = {i: (split, s) for _, split, i, s in scenes(seed=7, image_sizes=SIZES, images=IMAGES)}
    annotations = {d: {a["id"]: a for a in instances[d]["annotations"]} for d in REFS}
    place = {}
    for d in REFS:  # of every annotation's thing in its scene
        images = defaultdict(list)
        for annotation in instances[d]["annotations"]:
            images[annotation["image_id"]].append(annotation["id"])
        place[d] = {ann: i for anns in images.values() for i, ann in enumerate(anns)}
    said = {d: [] for d in REFS}
    for d in REFS:
        for ref in refs[d]:
            _, scene = drawn[ref["image_id"]]
            for sentence in ref["sentences"]:
                reading = read(sentence["sent"], scene.things, scene.width, scene.height)
                said[d].append((sentence["sent"], reading, scene, place[d][ref["ann_id"]]))
    return SimpleNamespace(
        folder=folder,
        instances=instances,
        refs=refs,
        annotations=annotations,
        scenes=drawn,
        place=place,
        said=said,
    )


def decode(segmentation, height, width):
    rle = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(coco_mask.merge(rle) if isinstance(rle, list) else rle).astype(bool)


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("dataset", REFS)
def test_every_sentence_names_exactly_the_referred_thing(mirror, dataset):
    for sentence, reading, _, target in mirror.said[dataset]:
        assert reading.sure == reading.possible == {target}, sentence


@pytest.mark.parametrize("dataset", REFS)
def test_sentences_of_many_more_scenes_name_exactly_one_thing(dataset):
    for seed in range(250):
        rng = np.random.default_rng(seed)
        scene = draw_scene(rng, *SIZES[seed % len(SIZES)])
        speaker = Speaker(scene.things, scene.width, scene.height, rng)
        for i, thing in enumerate(scene.things):
            for sentence in speaker.sentences(dataset, thing):
                reading = read(sentence, scene.things, scene.width, scene.height)
                assert reading.sure == reading.possible == {i}, (seed, sentence)


def test_the_judge_of_meaning_sees_wrong_words_and_doubtful_places():
    def thing(shape, colour, x, y, size="small", pattern="plain"):
        return SimpleNamespace(shape=shape, colour=colour, pattern=pattern, size=size, x=x, y=y)

    things = [
        thing("star", "red", 20, 20),
        thing("star", "blue", 27, 80, pattern="striped"),
        thing("star", "red", 80, 50, size="large"),
        thing("ring", "white", 50, 50),
    ]

    for sentence, sure, possible in (
        ("red star", {0, 2}, {0, 2}),
        ("the big red star", {2}, {2}),
        ("star with stripes", {1}, {1}),
        ("yellow star", set(), set()),
        ("left star", {0}, {0, 1}),
        ("left red star", {0}, {0}),
        ("red star on the left", {0}, {0}),
        ("star on the left", {0, 1}, {0, 1}),
        ("bottom left one", {1}, {1}),
        ("star in the middle", set(), set()),
        ("the one in the center", {3}, {3}),
        ("a star that is to the right of the white ring", {2}, {2}),
        ("the star above the ring", set(), {0}),
    ):
        reading = read(sentence, things, 100, 100)
        assert (reading.sure, reading.possible) == (sure, possible), sentence
    for nonsense in ("purple", "the star above the star", "star left circle", "red red"):
        with pytest.raises(ValueError, match=r"star|is no sentence"):
            read(nonsense, things, 100, 100)


@pytest.mark.parametrize("dataset", REFS)
def test_another_colour_word_makes_the_sentence_false(mirror, dataset):
    changed = 0
    for sentence, _, scene, target in mirror.said[dataset]:
        own = scene.things[target].colour
        head, *rest = re.split(
            r"(?= (?:above|below|to the|on the|that is|which is) )", sentence, maxsplit=1
        )
        if own in head.split():
            other = "green" if own == "red" else "red"
            words = [other if word == own else word for word in head.split()]
            text = " ".join(words) + "".join(rest)
            assert target not in read(text, scene.things, scene.width, scene.height).possible
            changed += 1
    assert changed > 0.25 * len(mirror.said[dataset])


@pytest.mark.parametrize(
    ("dataset", "placed", "needed"),
    [
        ("refcoco", (0.5, 0.85), (0.25, 1)),
        ("refcoco+", (0, 0), (0, 0)),  # by appearance alone
        ("refcocog", (0.6, 1), (0.22, 0.38)),  # relations, a quarter to a third of them needed
    ],
)
def test_places_and_relations_occur_and_are_needed_as_in_the_originals(
    mirror, dataset, placed, needed
):
    said = mirror.said[dataset]
    share = np.mean([bool(re.search(PLACES, sentence)) for sentence, *_ in said])
    assert placed[0] <= share <= placed[1]
    share = np.mean([len(reading.noun) > 1 for _, reading, *_ in said])
    assert needed[0] <= share <= needed[1]


def test_sentences_fit_the_papers_number_of_clip_tokens(mirror):
    tokenizer = SimpleTokenizer()
    for dataset, longest in {"refcoco": 17, "refcoco+": 17, "refcocog": 22}.items():
        lengths = [len(tokenizer.encode(s)) + 2 for s in {s for s, *_ in mirror.said[dataset]}]
        assert max(lengths) <= longest


def test_a_ref_has_about_three_different_sentences_and_nearly_all_things_have_a_ref(mirror):
    for dataset in REFS:
        said = [[s["sent"] for s in ref["sentences"]] for ref in mirror.refs[dataset]]
        assert 2.5 < np.mean([len(group) for group in said]) < 3.3
        assert all(len(set(group)) == len(group) for group in said)
        train = [r for r in mirror.refs[dataset] if r["split"] == "train"]
        things = [len(mirror.scenes[i][1].things) for i in {r["image_id"] for r in train}]
        assert len(train) > 0.85 * sum(things)


def test_a_key_word_names_its_object_and_the_word_beside_it_does_not(mirror):
    lines = pd.read_csv(mirror.folder / "key_words.csv").itertuples()
    sentences = {
        s["sent_id"]: (ref, s["sent"]) for ref in mirror.refs["refcoco+"] for s in ref["sentences"]
    }
    found = {}
    for line in lines:
        ref, said = sentences[line.sent_id]
        assert (line.split, line.sentence) == (ref["split"], said)
        found[line.sent_id] = line.key, line.other
    judged = {}
    for sent_id, (ref, said) in sentences.items():
        things, place = mirror.scenes[ref["image_id"]][1].things, mirror.place["refcoco+"]
        words = re.findall(r"\w+", re.sub(r"\b(the|a|one|thing|with)\b", "", said))
        alone = [w for w in words if named_by(w, things) == {place[ref["ann_id"]]}]
        if len(words) == 2 and len(alone) == 1:
            judged[sent_id] = alone[0], next(w for w in words if w != alone[0])
    assert found == judged
    # 'blue triangle' among triangles, and among blue things.
    keys = {key for key, _ in found.values()}
    assert keys & {*COLOURS}
    assert keys & (GROUPS["testA"] | GROUPS["testB"])


def named_by(word, things):
    """Positions of the things that one word is true of."""
    phrase = {"stripes": "one with stripes"}.get(word, word)
    noun = "" if phrase in GROUPS["testA"] | GROUPS["testB"] or " " in phrase else " one"
    try:
        return read(phrase + noun, things, 100, 100).noun
    except ValueError:  # of size, where all things have one size
        return set()


def test_scenes_have_three_or_four_things_of_two_sizes_that_share_their_shapes(mirror):
    drawn = list(mirror.scenes.values())
    counts = [len(scene.things) for _, scene in drawn]
    assert set(counts) == {3, 4}
    assert np.mean(counts) > 3.1
    shared = [
        sum(other.shape == thing.shape for other in scene.things) > 1
        for split, scene in drawn
        if split == "train"
        for thing in scene.things
    ]
    assert np.mean(shared) > 0.5
    radii = defaultdict(list)
    for _, scene in drawn:
        for thing in scene.things:
            radii[thing.size].append(thing.radius / min(scene.width, scene.height))
    assert min(radii["large"]) > 1.35 * max(radii["small"])


# pycocotools 2.0 decodes by a protocol that NumPy 2 calls old.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_masks_written_are_the_masks_painted(mirror):
    for dataset in ("refcoco", "refcocog"):
        for annotation in mirror.instances[dataset]["annotations"]:
            _, scene = mirror.scenes[annotation["image_id"]]
            painted = scene.visible(mirror.place[dataset][annotation["id"]])
            written = decode(annotation["segmentation"], scene.height, scene.width)
            assert (painted & written).sum() > 0.95 * (painted | written).sum()
            assert annotation["area"] == written.sum()
            left, top, width, height = annotation["bbox"]
            rows, columns = np.flatnonzero(written.any(1)), np.flatnonzero(written.any(0))
            assert left == pytest.approx(columns[0], abs=1)
            assert top == pytest.approx(rows[0], abs=1)
            assert left + width == pytest.approx(columns[-1] + 1, abs=1)
            assert top + height == pytest.approx(rows[-1] + 1, abs=1)


def test_photos_show_the_colours_inside_the_masks_and_nowhere_else(mirror):
    palette = np.array(list(COLOURS.values()))
    with ZipFile(mirror.folder / "train2014.zip") as archive:
        for image in mirror.instances["refcoco"]["images"][:40]:
            photo = Image.open(io.BytesIO(archive.read(f"train2014/{image['file_name']}")))
            assert photo.size == (image["width"], image["height"])
            pixels = np.asarray(photo, dtype=float)
            distance = np.linalg.norm(pixels[:, :, None] - palette, axis=-1)
            _, scene = mirror.scenes[image["id"]]
            for i, thing in enumerate(scene.things):
                near = distance[..., list(COLOURS).index(thing.colour)][scene.visible(i)] < 75
                # Stripes take nearly half of a thing, and an edge is blurred.
                assert near.mean() > (0.8 if thing.pattern == "plain" else 0.3), thing
            outside = ~np.any([layer > 0 for layer in scene.layers], axis=0)
            assert (distance.min(-1)[outside] < 50).mean() < 0.02


def test_at_least_half_of_every_thing_is_visible_and_some_are_partly_hidden(mirror):
    shares = [
        scene.visible(i).sum() / (layer >= 128).sum()
        for _, scene in mirror.scenes.values()
        for i, layer in enumerate(scene.layers)
    ]
    assert min(shares) > 0.55
    assert 0.05 < np.mean(np.array(shares) < 0.95) < 0.5


def test_both_forms_of_segmentation_occur_and_rings_keep_their_hole(mirror):
    for dataset in REFS:
        names = {c["id"]: c["name"] for c in mirror.instances[dataset]["categories"]}
        forms = Counter(
            (names[a["category_id"]] == "ring", type(a["segmentation"]))
            for a in mirror.instances[dataset]["annotations"]
        )
        assert forms[False, list] > 20
        assert forms[False, dict] > 20
        assert forms[True, dict] > 20
        assert forms[True, list] == 0


def test_archives_have_the_members_of_the_originals(mirror):
    for dataset, name in REFS.items():
        with ZipFile(mirror.folder / f"{dataset}.zip") as archive:
            assert archive.namelist() == [f"{dataset}/instances.json", f"{dataset}/{name}"]
    with ZipFile(mirror.folder / "train2014.zip") as archive:
        members = archive.infolist()
    assert {m.compress_type for m in members} == {ZIP_STORED}
    assert all(re.fullmatch(r"train2014/COCO_train2014_\d{12}\.jpg", m.filename) for m in members)
    listed = {f"train2014/{i['file_name']}" for d in REFS for i in mirror.instances[d]["images"]}
    assert {m.filename for m in members} == listed


def test_checksums_are_of_the_files_written(mirror):
    lines = (mirror.folder / "SHA256SUMS").read_text().splitlines()
    found = hashes(mirror.folder)
    del found["SHA256SUMS"], found["key_words.csv"]
    assert dict(reversed(line.split("  ")) for line in lines) == found
    assert len(found) == 4


def test_instances_and_refs_have_exactly_the_keys_of_the_originals(mirror):
    annotation_keys = {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"}
    ref_keys = {"ref_id", "ann_id", "image_id", "category_id", "split", "file_name", "sent_ids"}
    for dataset in REFS:
        instances = mirror.instances[dataset]
        assert set(instances) == {"info", "licenses", "images", "annotations", "categories"}
        assert all({"id", "file_name", "width", "height"} <= set(i) for i in instances["images"])
        assert all(set(a) == annotation_keys for a in instances["annotations"])
        assert all(set(c) == {"id", "name", "supercategory"} for c in instances["categories"])
        for ref in mirror.refs[dataset]:
            annotation = mirror.annotations[dataset][ref["ann_id"]]
            assert set(ref) == ref_keys | {"sentences"}
            assert ref["image_id"] == annotation["image_id"]
            assert ref["category_id"] == annotation["category_id"]
            assert ref["file_name"] == f"COCO_train2014_{ref['image_id']:012d}_{ref['ann_id']}.jpg"
            assert ref["sent_ids"] == [s["sent_id"] for s in ref["sentences"]]
            for sentence in ref["sentences"]:
                assert set(sentence) == {"sent_id", "sent", "raw", "tokens"}
                assert sentence["tokens"] == sentence["sent"].split()
                assert {type(v) for v in sentence.values()} == {int, str, list}


def test_ids_are_unique_within_a_data_set(mirror):
    for dataset in REFS:
        refs, instances = mirror.refs[dataset], mirror.instances[dataset]
        for ids in (
            [ref["ref_id"] for ref in refs],
            [ref["ann_id"] for ref in refs],
            [i for ref in refs for i in ref["sent_ids"]],
            [image["id"] for image in instances["images"]],
            [annotation["id"] for annotation in instances["annotations"]],
        ):
            assert len(set(ids)) == len(ids)


def test_splits_share_no_image_and_refcoco_plus_has_refcocos(mirror):
    images = {}
    for dataset in REFS:
        by_split = defaultdict(set)
        for ref in mirror.refs[dataset]:
            by_split[ref["split"]].add(ref["image_id"])
        assert sum(map(len, by_split.values())) == len(set.union(*by_split.values()))
        images[dataset] = by_split
    assert {k: len(v) for k, v in images["refcoco"].items()} == IMAGES["refcoco"]
    # A scene of which nothing can be said has no ref, and so no image: few have.
    for split, number in IMAGES["refcocog"].items():
        assert 0.9 * number <= len(images["refcocog"][split]) <= number
    for split, shown in images["refcoco+"].items():
        # As in the originals, where RefCOCO+ lacks two images that no word tells apart.
        assert shown <= images["refcoco"][split]
        assert len(shown) > 0.9 * IMAGES["refcoco"][split]
    assert mirror.instances["refcoco+"] == mirror.instances["refcoco"]
    one, other = (set.union(*images[d].values()) for d in ("refcoco", "refcocog"))
    assert not one & other


@pytest.mark.parametrize("dataset", ["refcoco", "refcoco+"])
def test_test_a_and_test_b_refer_to_different_categories(mirror, dataset):
    names = {c["id"]: c["name"] for c in mirror.instances[dataset]["categories"]}
    seen = defaultdict(set)
    for ref in mirror.refs[dataset]:
        seen[ref["split"]].add(names[ref["category_id"]])
    assert seen["testA"] == GROUPS["testA"]
    assert seen["testB"] == GROUPS["testB"]
    assert seen["train"] == seen["val"] == GROUPS["testA"] | GROUPS["testB"]
    for split, scene in mirror.scenes.values():
        if split in GROUPS:
            own = [thing.shape in GROUPS[split] for thing in scene.things]
            assert np.mean(own) >= 0.5


def test_one_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        write_mirror(tmp_path / name, seed=seed, image_sizes=SIZES, images=FEW)
    one, again, other = (hashes(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again
    assert not set(one.values()) & set(other.values())


def test_an_image_depends_on_no_other_image():
    more = {source: {s: n + (s == "train") for s, n in ns.items()} for source, ns in FEW.items()}
    few, many = (
        [
            (source, split, scene.things)
            for source, split, _, scene in scenes(seed=3, image_sizes=SIZES, images=images)
        ]
        for images in (FEW, more)
    )
    assert len(many) == len(few) + 2
    assert all(scene in many for scene in few)


def test_painting_is_repeatable_and_noisy():
    scene = draw_scene(np.random.default_rng(0), 128, 96)
    first, again, other = (np.asarray(paint(scene, np.random.default_rng(s))) for s in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).mean() > 0.5


def test_progress_sees_every_image(tmp_path):
    seen = []

    def watch(items):
        for item in items:
            seen.append(item)
            yield item

    write_mirror(tmp_path, seed=1, image_sizes=SIZES, images=FEW, progress=watch)
    assert len(seen) == sum(sum(counts.values()) for counts in FEW.values())


def test_an_unknown_split_is_refused_before_anything_is_written(tmp_path):
    wrong = {**FEW, "refcocog": {"train": 1, "val": 1, "testA": 1}}
    with pytest.raises(DataError, match="testA"):
        write_mirror(tmp_path / "mirror", seed=1, image_sizes=SIZES, images=wrong)
    assert not (tmp_path / "mirror").exists()
