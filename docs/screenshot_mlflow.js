// Make docs/mlflow.png from a finished `make table1`: the runs in MLflow.
//
//   make ui &                                        # prints ADDRESS, once it is up
//   cd "$(mktemp -d)" && npm install playwright-core
//   NODE_PATH=node_modules node .../docs/screenshot_mlflow.js 'ADDRESS' .../docs/mlflow.png
//
// ADDRESS is the one that opens the runs: http://HOST/#/experiments/ID/runs?workflowType=...
// CHROMIUM names the browser, FILTER the runs: "tags.tables ILIKE '%table1%'".
const { chromium } = require("playwright-core");

const [address, picture] = process.argv.slice(2);
const filter = process.env.FILTER
  ? `&searchFilter=${encodeURIComponent(process.env.FILTER)}`
  : "";

(async () => {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
  });
  const page = await browser.newPage({ viewport: { width: 1400, height: 760 } });
  await page.goto(address + filter);
  await page.waitForTimeout(6000);
  // Close the assistant's panel, which is open at the first visit.
  await page.mouse.click(1363, 35);
  await page.waitForTimeout(3000);
  await page.screenshot({ path: picture });
  await browser.close();
})();
