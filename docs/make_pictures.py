"""Make the README's pictures from a finished `make table1`: python docs/make_pictures.py.

table1.png: results/table1.tex, typeset (needs pdflatex and pdftoppm).
examples.png: for each data set, the val sentences at the quartiles of IoU (no taste involved):
image, ground truth, prediction.
"""

import math
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFont
from torch import Tensor

from mmnet.config import load_params
from mmnet.data.dataset import evaluation_items, read, read_image, read_mask
from mmnet.data.transforms import logits_to_image, normalise
from mmnet.evaluate.metrics import iou
from mmnet.evaluate.predict import load_model
from mmnet.layout import RESULTS, Layout
from mmnet.model.mmnet import ImageFeatures

DOCS = Path(__file__).parent
QUARTILES = (0.75, 0.5, 0.25)
SCALE, GAP, LINE = 2, 8, 20  # pixels
BLUE, ORANGE = (0, 114, 178), (230, 120, 0)  # told apart by colour-blind eyes too


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
    params = load_params(Path("params.yaml"))
    layout = Layout(params.profile)
    rows = []
    for experiment, chosen in params.experiments.items():
        if chosen.tower == "vit_l":
            rows.append(examples(params.resolve(experiment, params.seeds[0]), layout))
    width = max(sum(tile.width + GAP for tile in row) for row in rows) + GAP
    height = sum(max(tile.height for tile in row) + GAP for row in rows) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    y = GAP
    for row in rows:
        x = GAP
        for tile in row:
            sheet.paste(tile, (x, y))
            x += tile.width + GAP
        y += max(tile.height for tile in row) + GAP
    sheet.save(DOCS / "examples.png", optimize=True)


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


def examples(config, layout):
    """A tile for each quartile of a run's val sentences."""
    scored = pd.read_parquet(layout.rows(config.experiment, config.seed))
    scored = scored[scored["split"] == "val"].assign(iou=iou)
    scored = scored.sort_values(["iou", "sent_id"]).reset_index(drop=True)
    wanted = [int(scored["sent_id"][int(q * (len(scored) - 1))]) for q in QUARTILES]
    model = load_model(config, layout.checkpoint(config.experiment, config.seed)).eval()
    threshold = config.evaluate.threshold
    tiles = {}
    items = evaluation_items(
        config, layout.table(config.dataset_name), layout.images, splits=["val"]
    )
    for batch in read(items, batch_size=None, workers=0):
        for number, row in enumerate(batch.rows.itertuples()):
            if row.sent_id in wanted:
                place = batch.placements[int(batch.image_of_sentence[number])]
                index = batch.image_of_sentence[number : number + 1]
                with torch.inference_mode():
                    features = model.encode_image(normalise(batch.images))
                    one = ImageFeatures(*(feature[index] for feature in features))
                    logits = model.segment(one, batch.tokens[number : number + 1])
                mask = logits_to_image(logits, place)[0] > math.log(threshold / (1 - threshold))
                truth = read_mask(row.counts, row.height, row.width)
                image = read_image(layout.images / row.file)
                score = float(scored.loc[scored["sent_id"] == row.sent_id, "iou"].iloc[0])
                tiles[row.sent_id] = tile(image, truth, mask, f"{row.sentence}  (IoU {score:.2f})")
    return [tiles[sent_id] for sent_id in wanted]


def tile(image: Tensor, truth: Tensor, mask: Tensor, title: str) -> Image.Image:
    pictures = [shaded(image, None, BLUE), shaded(image, truth, BLUE), shaded(image, mask, ORANGE)]
    width = 3 * (112 * SCALE + 4)
    out = Image.new("RGB", (width, LINE + pictures[0].height), "white")
    font = ImageFont.load_default(15)
    while font.getlength(title) > width:
        font = ImageFont.load_default(font.size - 1)
    ImageDraw.Draw(out).text((0, 0), title, "black", font)
    for number, picture in enumerate(pictures):
        out.paste(picture, (number * (112 * SCALE + 4), LINE))
    return out


def shaded(image: Tensor, mask: Tensor | None, colour: tuple[int, int, int]) -> Image.Image:
    """The image, with all but the mask greyed and the mask's edge drawn."""
    pixels = image.permute(1, 2, 0).numpy().astype(float)
    size = (pixels.shape[1] * SCALE, pixels.shape[0] * SCALE)
    big = np.asarray(
        Image.fromarray(pixels.astype(np.uint8)).resize(size, Image.Resampling.LANCZOS)
    )
    if mask is None:
        return Image.fromarray(big)
    inside = np.asarray(Image.fromarray(mask.numpy()).resize(size, Image.Resampling.NEAREST))
    grey = 0.35 * big.mean(-1, keepdims=True) + 150
    out = np.where(inside[..., None], 0.55 * big + 0.45 * np.array(colour), grey)
    return Image.fromarray(out.clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
