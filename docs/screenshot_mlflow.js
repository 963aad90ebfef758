// Make docs/mlflow.png from a finished `make table1`: MLflow's view of its runs.
//
//   make ui &                                        # it prints the address of the runs
//   cd "$(mktemp -d)" && npm install playwright-core
//   PAGE=ADDRESS NODE_PATH=node_modules node .../docs/screenshot_mlflow.js .../docs/mlflow.png
//
// CHROMIUM names the browser, TABLE another table, RUN the run of the last picture.
// Further paths: their charts, one run.
const { chromium } = require("playwright-core");

const runs =
  process.env.PAGE || "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning";
const table = process.env.TABLE || "table1";
const one = process.env.RUN || "refcoco_vit_l";
const [list, charts, run] = process.argv.slice(2);

(async () => {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
  });
  const page = await browser.newPage({ viewport: { width: 1400, height: 760 } });
  const settle = () => page.waitForTimeout(6000);
  await page.goto(runs);
  await settle();
  // The assistant's panel, open at the first visit.
  await page.mouse.click(1363, 35);
  const view = async (more) => {
    await page.goto(`${runs}&viewStateShareKey=${table}${more}`);
    await page.reload();
    await settle();
  };
  if (charts) {
    await view("&compareRunsMode=CHART");
    await page.screenshot({ path: charts });
  }
  await view("");
  await page.screenshot({ path: list });
  if (run) {
    await page.getByText(`${one} seed 0`).first().click();
    await settle();
    await page.screenshot({ path: run });
  }
  await browser.close();
})();
