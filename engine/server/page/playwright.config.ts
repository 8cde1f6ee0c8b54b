/**
 * `npm run e2e` starts two servers with a real model, one of which wants a key, and uses the page in Chromium. It wants
 * the repository's .venv, and the model and ports that are named here.
 */
import { existsSync } from "node:fs";
import { defineConfig } from "@playwright/test";

// Else the one that Playwright installs.
const system = ["/usr/bin/chromium", "/usr/bin/google-chrome"].find(existsSync);
const root = "../../..";
const serve = `${root}/.venv/bin/lltool serve ${root}/.cache/models/smollm2-q4_1.gguf -c 2048`;
export const OPEN = "http://127.0.0.1:8173/";
export const LOCKED = "http://127.0.0.1:8174/";
export const KEY = "a-key-for-the-test";

export default defineConfig({
  testDir: "e2e",
  outputDir: "../../../build/page-e2e",
  workers: 1, // the model has few cores
  timeout: 90_000,
  expect: { timeout: 20_000 },
  reporter: "list",
  use: {
    baseURL: OPEN,
    locale: "en-US",
    colorScheme: "light",
    viewport: { width: 1280, height: 800 },
    launchOptions: { executablePath: system, args: ["--no-sandbox"] },
  },
  webServer: [
    { command: `${serve} --port 8173`, url: `${OPEN}health`, reuseExistingServer: true, stderr: "ignore" },
    {
      command: `${serve} --port 8174 --api-key ${KEY}`,
      url: `${LOCKED}health`,
      reuseExistingServer: true,
      stderr: "ignore",
    },
  ],
});
