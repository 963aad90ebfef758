"""Make the pictures of README and docs from a finished `make all`: python docs/make_pictures.py.

table1.png: results/table1.tex, typeset (needs pdflatex and pdftoppm).
examples.png: for each data set, the val sentences at the quartiles of IoU, so that none is picked
by hand: image, ground truth, prediction.
figure6.png: results/figure6.png.
use.png: what RefCOCO's larger model finds in a picture of val, of three of its sentences.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pandas as pd
import torch
from PIL import Image, ImageChops

import mmnet
from mmnet.config.load import load_params
from mmnet.config.paths import RESULTS, Paths
from mmnet.data.dataset import evaluation_items, read_image, read_mask
from mmnet.data.loader import read
from mmnet.evaluate.metrics import iou
from mmnet.evaluate.pictures import ORANGE, comparison, overlay, sheet, shrunk, strip
from mmnet.evaluate.predict import load_model, predict_masks

DOCS = Path(__file__).parent
QUARTILES = (0.75, 0.5, 0.25)

PAGE = r"""\documentclass{article}
\usepackage{booktabs,graphicx}
\usepackage[margin=3cm]{geometry}
\pagestyle{empty}
\begin{document}
%s
\end{document}
"""


def main() -> None:
    typeset(RESULTS / "table1.tex", DOCS / "table1.png")
    shutil.copy(RESULTS / "figure6.png", DOCS / "figure6.png")
    params = load_params(Path("params.yaml"))
    paths, seed = Paths(params.profile), params.seeds[0]
    rows = []
    for experiment, chosen in params.experiments.items():
        if chosen.tower == "vit_l":
            config = params.resolve(experiment, seed)
            rows.append(examples(config, paths.run(experiment, seed), paths.inputs(config)))
    sheet(rows).quantize(256).save(DOCS / "examples.png", optimize=True)
    config = params.resolve("refcoco_vit_l", seed)
    found = use(config, paths.run(config.experiment, seed), paths.inputs(config))
    found.quantize(64).save(DOCS / "use.png", optimize=True)


def use(config, run, inputs):
    """Draw what the API finds in the middle one of val's pictures that name three objects."""
    rows = evaluation_items(config, inputs.table, inputs.images, splits=["val"]).rows
    objects = rows.drop_duplicates(["image_id", "ann_id"]).groupby("image_id").size()
    pictures = objects.index[objects >= 3]
    chosen = rows[rows["image_id"] == pictures[len(pictures) // 2]].drop_duplicates("ann_id")[:3]
    path = inputs.images / chosen["file"].iloc[0]
    image = read_image(path)
    tiles = [strip("a picture of val", {"encoded once": shrunk(image)})]
    for found in mmnet.load(run.folder, device="cpu").look(path).find([*chosen["sentence"]]):
        label = f"confidence {found.confidence:.2f}"
        tiles.append(strip(found.sentence, {label: overlay(image, found.mask, ORANGE)}))
    return sheet([tiles])


def typeset(table: Path, picture: Path) -> None:
    """Typeset a table and cut the page down to it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "page.tex").write_text(PAGE % table.read_text())
        for command in (
            "pdflatex -interaction=batchmode page",
            "pdftoppm -r 150 -png page.pdf page",
        ):
            subprocess.run(command.split(), cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with Image.open(next(Path(folder).glob("page*.png"))) as page:
            left, top, right, bottom = ImageChops.invert(page.convert("L")).getbbox()
            page.crop((left - 20, top - 20, right + 20, bottom + 20)).save(picture, optimize=True)


def examples(config, run, inputs):
    """A picture for each quartile of a run's val sentences."""
    scored = pd.read_parquet(run.rows)
    scored = scored[scored["split"] == "val"].assign(iou=iou)
    scored = scored.sort_values(["iou", "sent_id"]).reset_index(drop=True)
    wanted = [int(scored["sent_id"][int(q * (len(scored) - 1))]) for q in QUARTILES]
    items = evaluation_items(config, inputs.table, inputs.images, splits=["val"])
    masks = predict_masks(
        load_model(config, run.checkpoint),
        read(items, batch_size=None, workers=0),
        sent_ids=wanted,
        threshold=config.evaluate.threshold,
        device=torch.device("cpu"),
    )
    rows = items.rows.merge(scored[["sent_id", "iou"]]).set_index("sent_id")
    return [
        comparison(
            f"{row.sentence}  (IoU {row.iou:.2f})",
            read_image(inputs.images / row.file),
            read_mask(row.counts, row.height, row.width),
            {"prediction": masks[sent_id]},
        )
        for sent_id, row in rows.loc[wanted].iterrows()
    ]


if __name__ == "__main__":
    main()
