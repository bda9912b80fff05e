// node shot.mjs URL FILE WIDTH: waits until all is drawn, and writes a picture of the whole page. Fails if a query gave nothing.
import { chromium } from "playwright-core";

const [url, file, width] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: Number(width), height: 1000 } });
const faults = [];
page.on("pageerror", (error) => faults.push(String(error)));
page.on("console", (message) => message.type() === "error" && !/404|Failed to load/.test(message.text()) && faults.push(message.text()));
await page.goto(url, { waitUntil: "networkidle" });
await page.waitForTimeout(3000);
const height = await page.evaluate(() => Math.max(document.body.scrollHeight, document.documentElement.scrollHeight));
await page.setViewportSize({ width: Number(width), height: Math.ceil(height) + 20 });
await page.waitForTimeout(4000);
await page.screenshot({ path: file, fullPage: true });
const queries = await page.evaluate(() => window.__queries ?? []);
const empty = queries.filter((query) => !query.series);
console.log(`${file}: ${queries.length} queries, ${empty.length} empty, ${faults.length} faults`);
for (const fault of faults.slice(0, 5)) console.log(fault.slice(0, 600));
for (const query of empty) console.log("empty:", query.expr);
await browser.close();
