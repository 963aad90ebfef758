"""The report on the data, from hand-made tables counted by hand."""

from pathlib import Path

import pandas as pd
import pytest

from mmnet.report.pages.data import write_data_report
from mmnet.runtime.errors import DataError
from support.results import hand_made_tables, params_of
from support.tiny import Tiny


def sections(folder: Path) -> dict[str, list[list[str]]]:
    """Heading → its table's rows, the heads first."""
    found = {}
    for section in (folder / "data.md").read_text().split("\n## ")[1:]:
        lines = [line for line in section.splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        assert len({len(line) for line in cells}) == 1, "a ragged table"
        assert set("".join(cells[1])) == {"-", ":"}
        found[section.splitlines()[0]] = [cells[0], *cells[2:]]
    return found


def test_the_data_report_has_the_numbers_counted_by_hand(tmp_path: Path) -> None:
    write_data_report(hand_made_tables(tmp_path), tmp_path, params=params_of("mini"))
    found = sections(tmp_path)
    assert list(found) == ["Sizes", "Sentences", "Masks", "Leakage"]
    for name in ("Sizes", "Sentences", "Masks"):
        assert [row[:2] for row in found[name][1:]] == [
            *(["RefCOCO", split] for split in ("train", "val", "testA", "testB")),
            *(["RefCOCO+", split] for split in ("train", "val", "testA", "testB")),
            *(["G-Ref", split] for split in ("train", "val", "test")),
        ]
    assert [row[2:] for row in found["Sizes"][:4]] == [
        ["Refs", "Sentences", "Images", "Objects per image"],
        ["3", "6", "2", "1.00"],
        ["2", "3", "2", "1.00"],
        ["1", "2", "1", "1.00"],
    ]
    assert [row[2:] for row in found["Sentences"][:4]] == [
        ["Mean", "Median", "95th percentile", "Longest", "L", "Cut"],
        # 4, 5, 6, 6, 17, 18
        ["9.33", "6", "18", "18", "17", "1"],
        ["3.00", "3", "4", "4", "17", "0"],
        ["19.00", "19", "20", "20", "17", "2"],
    ]
    # Exactly L tokens are not cut, one more is.
    assert found["Sentences"][9][2:] == ["23.00", "23", "23", "23", "22", "3"]
    assert found["Sentences"][10][2:] == ["22.00", "22", "22", "22", "22", "0"]
    assert [row[2:] for row in found["Masks"][:4]] == [
        ["Lower quartile", "Median", "Upper quartile", "Small", "Empty"],
        # The upper quartile is halfway from 0.99 to 20.01 %.
        ["0.99%", "0.99%", "10.50%", "66.7%", "0"],
        # 0 and 1 %, which is not below 1 %.
        ["0.25%", "0.50%", "0.75%", "50.0%", "1"],
        ["5.00%", "5.00%", "5.00%", "0.0%", "0"],
    ]


def test_the_data_report_counts_images_of_evaluation_seen_in_training(tmp_path: Path) -> None:
    write_data_report(hand_made_tables(tmp_path), tmp_path, params=params_of("mini"))
    no = "0 (0.0%)"
    assert sections(tmp_path)["Leakage"] == [
        [
            "Trained on",
            *(f"RefCOCO {split}" for split in ("val", "testA", "testB")),
            *(f"RefCOCO+ {split}" for split in ("val", "testA", "testB")),
            *("G-Ref val", "G-Ref test"),
        ],
        ["RefCOCO", no, no, no, "1 (50.0%)", no, no, "1 (33.3%)", "1 (100.0%)"],
        ["RefCOCO+", "1 (50.0%)", no, no, "1 (50.0%)", no, no, "1 (33.3%)", "1 (100.0%)"],
        ["G-Ref", "1 (50.0%)", "1 (100.0%)", no, "1 (50.0%)", "1 (100.0%)", no, no, no],
        [
            *("all of them", "2 (100.0%)", "1 (100.0%)", no),
            *("2 (100.0%)", "1 (100.0%)", no, "1 (33.3%)", "1 (100.0%)"),
        ],
    ]
    assert "together leaks.\n" in (tmp_path / "data.md").read_text()


def test_the_data_report_in_long_form_has_every_number(tmp_path: Path) -> None:
    write_data_report(hand_made_tables(tmp_path), tmp_path, params=params_of("mini"))
    lines = (tmp_path / "data.csv").read_text().splitlines()
    assert lines[0] == "profile,dataset,split,measure,training,value"
    # 15 measures of 11 splits; 4 rows of 8 columns of leakage.
    assert len(lines) == 1 + 15 * 11 + 4 * 8
    for line in (
        "mini,refcoco,train,sentences,,6",
        "mini,refcoco,train,tokens_mean,,9.333333",
        "mini,refcoco,val,mask_25,,0.002500",
        "mini,refcocog,train,cut,,3",
        "mini,refcocog,val,in_training,refcoco,1",
        "mini,refcoco,val,in_training,all,2",
    ):
        assert lines.count(line) == 1, line


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_the_data_report_names_its_profile(profile: str, tmp_path: Path) -> None:
    params = params_of(profile)
    write_data_report(hand_made_tables(tmp_path), tmp_path, params=params)
    text = (tmp_path / "data.md").read_text()
    assert f"profile {profile} prepared: {params.active.label}" in text
    assert ("not comparable" in text) == (profile == "mini")
    assert set(pd.read_csv(tmp_path / "data.csv")["profile"]) == {profile}


def test_the_data_report_of_prepared_tables(tiny: Tiny, tmp_path: Path) -> None:
    write_data_report(list(tiny.tables.values()), tmp_path, params=tiny.params)
    found = sections(tmp_path)
    images = [int(row[4]) for row in found["Sizes"][1:]]
    assert images[:4] == [8, 3, 2, 2]
    assert images[8:] == [6, 2, 2]
    # Image-disjoint, and G-Ref has images of its own.
    assert {cell for row in found["Leakage"][1:] for cell in row[1:]} == {"0 (0.0%)"}
    assert "together leaks nothing." in (tmp_path / "data.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.csv", "data.md"]


def test_a_table_without_the_reports_columns_is_refused(tmp_path: Path) -> None:
    tables = hand_made_tables(tmp_path)
    pd.read_parquet(tables[1]).drop(columns=["tokens", "area"]).to_parquet(tables[1])
    with pytest.raises(DataError) as caught:
        write_data_report(tables, tmp_path / "results", params=params_of("mini"))
    message = str(caught.value)
    assert message.startswith(f"{tables[1]}: ")
    assert "area, tokens" in message
    assert "mmnet prepare refcoco+" in message
    assert not (tmp_path / "results").exists()
