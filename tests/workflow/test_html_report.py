"""`snakemake --report`, loaded in a headless browser; and the pages that it shows."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from mmnet.config.paths import Paths
from mmnet.report.pages.html import to_html
from mmnet.report.pages.parameters import to_markdown
from support.project import copy_project, snakemake
from support.results import hand_made_tables, make_runs, params_of

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
NAMES = ["table1", "table2", "table3", "table4", "claims", "data", "parameters"]
CATEGORIES = ["Claims", "Data", "Figures", "Parameters", "Tables"]

pytestmark = pytest.mark.xdist_group("report")


# The pages.


def test_a_page_shows_html_as_text_scrolls_tables_and_aligns_numbers() -> None:
    body = to_html("# <b>\n\n`a<b`\n\n```\n**no**\n```\n", title="<t>").split("<body>")[1]
    assert "<b>" not in body
    assert "**no**" in body
    table = to_html("| Name | N |\n| --- | ---: |\n| a\\|b | -1.00 |\n|  | 2 |", title="t")
    assert re.search(r"<div><table>.*</table></div>", table, re.S)
    cells = re.findall(r"<td(.*?)>(.*?)</td>", table)
    assert [text for _, text in cells] == ["a|b", "-1.00", "", "2"]
    assert ["right" in style for style, _ in cells] == [False, True, False, True]


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_parameters_are_those_of_each_run(profile: str) -> None:
    params = params_of(profile, "experiments.no_mqe.train={lr: 0.5}", "seeds=[4, 2]")
    text = to_markdown(params)
    assert f"Profile {profile} ({params.active.label}), seeds: 4, 2." in text
    label, config = params.active.towers["rn50"].label, params.resolve("no_mqe", 4)
    epochs, batch = config.train.epochs, config.train.batch_size
    row = f"| no_mqe | table4 | refcoco+ | {label} | 24 | ✓ | ✗ | ✓ | {epochs} | {batch} | 0.5 |"
    assert row in text
    values = yaml.safe_load(re.search(r"```yaml\n(.*)```", text, re.S)[1])  # type: ignore[index]
    assert values["profiles"].keys() == {profile}
    assert values["experiments"]["no_mqe"]["train"] == {"lr": 0.5}


# The report of all results, of runs that are made up.


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which all but the trainings and predictions has run, and its report."""
    folder = copy_project(tmp_path_factory.mktemp("clone"), tiny=False)
    params, paths = params_of("mini"), Paths("mini")
    make_runs(folder, params)
    runs = [(name, 0) for name in params.experiments]
    data = folder / paths.data
    data.mkdir(parents=True)
    hand_made_tables(data)
    # What stands before all that: empty, and marked as made.
    (data / "mirror").mkdir()
    (data / "archives").mkdir()
    (folder / "clip" / "mini").mkdir(parents=True)
    others = [
        *(paths.mirror / f"{name}.zip" for name in params.active.archives),
        *(paths.mirror / "SHA256SUMS", paths.key_words),
        *(paths.fetched(paths.archive(name)) for name in params.active.archives),
        paths.manifest,
        *(paths.clip(name) for name in params.active.towers),
        *(paths.run(*run).checkpoint for run in runs),
        *(paths.run(*run).metrics for run in runs),
    ]
    for path in others:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    (folder / paths.key_words).write_text("sent_id,split,sentence,key,other\n")
    targets = [paths.run(*run).scores for run in runs]
    others += [paths.run(*run).percents for run in runs]
    targets += [paths.run("nq_24", 0).examples, paths.run("nq_24", 0).queries]
    targets += [paths.table(name) for name in params.active.datasets]
    touched = snakemake(folder, "--cores", "1", "--touch", "--forceall", "--", *map(str, targets))
    assert touched.returncode == 0, touched.stderr
    done = snakemake(folder, "--cores", "2")
    assert done.returncode == 0, done.stderr
    assert "write_table1" in done.stderr
    assert "train_mmnet" not in done.stderr
    report = snakemake(folder, "--report", "results/report.html")
    assert report.returncode == 0, report.stderr
    return folder


def test_the_rules_make_all_and_again_nothing(made: Path) -> None:
    for name in NAMES:
        assert "</html>" in (made / "results" / f"{name}.html").read_text()
    assert "Nothing to be done" in snakemake(made, "-n").stdout


PROBE = """<script>
// What a reader does: open a category, each of its results, and that result's caption.
window.addEventListener("load", async () => {
  const wait = () => new Promise(done => setTimeout(done, 300));
  const seen = {};
  await wait();
  seen.start = document.body.innerText;
  app.setView({content: "stats"});
  await wait();
  seen.charts = document.querySelectorAll("#runtimes canvas, #runtimes svg").length;
  for (const category of Object.keys(categories)) {
    for (const path of Object.values(categories[category]).flat()) {
      app.showCategory(category);
      await wait();
      const label = Object.values(results[path].labels)[0];
      const row = [...document.querySelectorAll("tr")].find(row => row.innerText.includes(label));
      const [open, info] = row.querySelectorAll("a");
      open.click();
      await wait();
      const frame = document.querySelector("iframe");
      // The page has another origin: read what was given to its frame.
      const bytes = frame ? atob(frame.src.split("base64,")[1]) : "";
      const text = new TextDecoder().decode(Uint8Array.from(bytes, c => c.charCodeAt(0)));
      const page = new DOMParser().parseFromString(text, "text/html");
      info.click();
      await wait();
      seen[path] = {
        shown: page.body.textContent,
        rows: [...page.querySelectorAll("tr")].map(row => [...row.cells].map(c => c.textContent)),
        width: [...document.querySelectorAll("img")].pop().naturalWidth,
        caption: document.body.innerText,
      };
    }
  }
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome is on the PATH")
def test_a_browser_shows_every_result_with_its_caption(made: Path, tmp_path: Path) -> None:
    assert BROWSER
    page = tmp_path / "report.html"
    # The scripts inside the report name the closing tag too.
    before, _, after = (made / "results" / "report.html").read_text().rpartition("</body>")
    page.write_text(f"{before}{PROBE}</body>{after}")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/user"]
    options += ["--virtual-time-budget=60000", "--enable-logging=stderr"]
    run = subprocess.run(
        [BROWSER, *options, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', run.stdout, re.S)
    assert found, run.stderr[-2000:]
    console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    assert not [line for line in console if "rror" in line], console
    seen = json.loads(html.unescape(found[1]))
    start = seen.pop("start")
    assert all(category in start for category in CATEGORIES)
    assert "All numbers here are of the procedural benchmark" in start
    assert "Profile mini (procedural benchmark), seeds: 0" in start
    assert seen.pop("charts") >= 1
    figures = {f"results/figure{number}.png" for number in (4, 5, 6)}
    assert seen.keys() == figures | {f"results/{name}.html" for name in NAMES}
    for path, result in seen.items():
        assert "Profile mini" in result["caption"], path
        if path in figures:
            assert result["width"] > 1000
            continue
        # The cells of the Markdown, one by one.
        lines = (made / path).with_suffix(".md").read_text().splitlines()
        cells = [line.strip("|").split("|") for line in lines if line.startswith("|")]
        rows = [[re.sub(r"`|\*\*", "", cell).strip() for cell in row] for row in cells]
        assert result["rows"] == [row for row in rows if not set("".join(row)) <= set("-: ")], path
    assert "relu_kernel: true" in seen["results/parameters.html"]["shown"]
    assert "Not comparable with published numbers" in seen["results/table2.html"]["caption"]
    assert "neither confirm nor refute" in seen["results/claims.html"]["caption"]
