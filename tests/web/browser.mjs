// A headless Chromium that does what it is told, a line of JSON at a time: {"code": "..."} is the body of an async
// function of (page, context, axe), its value is answered as {"value": ...}. Ends with its standard input.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const [modules, chromium, base] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const playwright = require("playwright-core");
const axeSource = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const browser = await playwright.chromium.launch({ executablePath: chromium, args: ["--no-sandbox"] });
const context = await browser.newContext({ baseURL: base, viewport: { width: 1280, height: 900 } });
context.setDefaultTimeout(180_000);
const page = await context.newPage();
const troubles = [];
page.on("console", (message) => { if (message.type() === "error") troubles.push(message.text()); });
page.on("pageerror", (error) => troubles.push(String(error)));
page.on("request", (request) => { if (!request.url().startsWith(base)) troubles.push(`left: ${request.url()}`); });

async function axe() {
  // Rules of WCAG 2.2 A and AA; what axe calls serious or critical.
  await page.evaluate(axeSource);
  const found = await page.evaluate(() => globalThis.axe.run(document, {
    runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
  }));
  return found.violations
    .filter((one) => ["serious", "critical"].includes(one.impact))
    .map((one) => `${one.id}: ${one.nodes.map((node) => node.target.join(" ")).join(", ")}`);
}

const AsyncFunction = (async () => {}).constructor;
for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const { code } = JSON.parse(line);
    const value = await new AsyncFunction("page", "context", "axe", code)(page, context, axe);
    answer = { value: value ?? null, troubles: troubles.splice(0) };
  } catch (error) {
    answer = { error: String(error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
