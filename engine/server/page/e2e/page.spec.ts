/** What the page shows and asks: text that attacks, formulas, settings, keys, languages, keyboards, phones. */
import { KEY, LOCKED } from "../playwright.config";
import AxeBuilder from "@axe-core/playwright";
import { ask, expect, fileOf, finished, GREEDY, importFile, openChat, proseOf, send, test } from "./chat";

const ATTACKS = [
  '<img src="https://example.org/x" onerror="window.hit=1"><script>window.hit=1</script>',
  '[click](javascript:window.hit=1) ![x](https://example.org/x.png) <svg onload="window.hit=1">',
  '<iframe srcdoc="<script>parent.hit=1</script>"></iframe><style>@import "https://example.org/x";</style>',
  '```html"onmouseover="window.hit=1\n<script>window.hit=1</script>\n```',
  "$\\href{javascript:window.hit=1}{x} \\url{https://example.org} \\includegraphics{https://example.org/x.png}$",
  "$\\htmlStyle{background:url(https://example.org/x)}{x} \\def\\a{\\a\\a}\\a$",
  '<think><img src=x onerror="window.hit=1"></think>| a |\n|---|\n| <img src=x onerror="window.hit=1"> |',
  '[x]: javascript:window.hit=1\n[x] <a href="javascript:window.hit=1">y</a> <base href="https://example.org/">',
];

test("text that attacks stays text", async ({ page }) => {
  await openChat(page);
  await importFile(page, fileOf(...ATTACKS));
  await page.getByRole("link", { name: "Imported" }).click();
  await expect(page.locator(".answer")).toHaveCount(ATTACKS.length);
  await expect(page.locator(".answer .katex")).toHaveCount(1);
  await expect(page.locator(".answer .math-error")).toHaveCount(1);
  await page.locator("summary", { hasText: "Reasoning" }).click();
  await page.waitForTimeout(500);
  expect(await page.evaluate(() => "hit" in window)).toBe(false);
  await expect(page.locator(".answer :is(img, iframe, script, style, base, object, form)")).toHaveCount(0);
  const links = await page.locator(".answer a").evaluateAll((all) => all.map((each) => each.getAttribute("href")));
  expect(links.filter((each) => !each?.startsWith("https://"))).toEqual([]);
});

test("Markdown has code to copy, tables and formulas", async ({ page, context }) => {
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  await openChat(page);
  await importFile(
    page,
    fileOf(
      "```python\nprint(1 < 2)\n```\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\nSo \\(x^2\\) and\n\n$$\\int_0^1 x\\,dx$$",
    ),
  );
  await page.getByRole("link", { name: "Imported" }).click();
  await expect(page.locator(".code-head")).toContainText("python");
  await expect(page.locator(".hljs-built_in")).toHaveText("print");
  await page.getByRole("button", { name: "Copy code" }).click();
  expect(await page.evaluate(() => navigator.clipboard.readText())).toBe("print(1 < 2)");
  await expect(page.locator(".katex-display")).toBeVisible();
  await expect(page.locator("td").nth(1)).toHaveCSS("text-align", "right");
  const font = await page.evaluate(async () => (await document.fonts.load("16px KaTeX_Main")).length);
  expect(font).toBe(1);
});

test("the server takes every setting", async ({ page }) => {
  const settings = {
    temperature: "0.5",
    top_k: "20",
    top_p: "0.9",
    min_p: "0.02",
    seed: "7",
    max_tokens: "8",
    stop: "zzz\n\\n\\n",
    repeat_penalty: "1.1",
    repeat_last_n: "-1",
    presence_penalty: "0.1",
    frequency_penalty: "-0.1",
    dry_multiplier: "0.8",
    dry_base: "1.5",
    dry_allowed_length: "3",
    dry_penalty_last_n: "-1",
    dry_sequence_breakers: "\\n\n:",
    typical_p: "0.9",
    top_n_sigma: "2",
    xtc_probability: "0.1",
    xtc_threshold: "0.2",
    dynatemp_range: "0.1",
    dynatemp_exponent: "1.1",
    mirostat: "0",
    mirostat_tau: "4",
    mirostat_eta: "0.2",
    adaptive_target: "0.5",
    adaptive_decay: "0.8",
    samplers: "top_k; top_p; temperature; adaptive_p",
    logit_bias: "5+1, 6-2.5",
    ignore_eos: "on",
  };
  await openChat(page, settings);
  const request = page.waitForRequest("**/v1/chat/completions");
  await ask(page, "Hello");
  const sent = (await request).postDataJSON();
  expect(Object.keys(settings).filter((name) => !(name in sent))).toEqual([]);
  expect(sent).toMatchObject({ stop: ["zzz", "\n\n"], logit_bias: { 5: 1, 6: -2.5 }, ignore_eos: true, seed: 7 });
});

test("settings show the server's defaults, refuse what is none, and go back", async ({ page }) => {
  await openChat(page, {});
  await page.getByRole("button", { name: "Settings" }).first().click();
  const field = page.getByRole("textbox", { name: "Top P" });
  await expect(field).toHaveAttribute("placeholder", "0.95");
  await expect(page.getByLabel("Steps")).toHaveAttribute("placeholder", /^penalties; dry; .*temperature$/);
  await field.fill("2");
  await expect(page.getByText("Top P wants a number from 0 to 1.")).toBeVisible();
  await page.keyboard.press("Escape");
  await page.getByLabel("Message", { exact: true }).fill("Hello");
  await page.keyboard.press("Enter");
  await expect(page.locator(".notice")).toHaveText("Top P wants a number from 0 to 1.");
  await expect(page.locator(".asked")).toHaveCount(0);
  await page.getByRole("button", { name: "Set Top P to its default" }).click();
  await expect(field).toHaveValue("");
  await page.keyboard.press("Escape");
  await expect(page.getByLabel("Message", { exact: true })).toHaveValue("Hello");
});

test("a server that wants a key is given one", async ({ page }) => {
  await openChat(page, GREEDY, LOCKED);
  const window = page.getByRole("dialog", { name: "This server wants an API key" });
  await window.getByLabel("API key").fill("wrong");
  await window.getByRole("button", { name: "Use this key" }).click();
  await expect(window.getByLabel("API key")).toHaveValue("");
  await window.getByLabel("API key").fill(KEY);
  await window.getByRole("button", { name: "Use this key" }).click();
  await expect(window).toHaveCount(0);
  await ask(page, "Hello");
  await page.reload(); // the key stays with the tab
  await expect(page.locator(".model-name")).toHaveText("smollm2-q4_1");
  await expect(window).toHaveCount(0);
});

test("files of text go with a message, and others are refused", async ({ page }) => {
  await openChat(page);
  const chooser = page.locator('.composer input[type="file"]');
  await chooser.setInputFiles([
    { name: "notes.txt", mimeType: "text/plain", buffer: Buffer.from("The code word is 水.\n") },
    { name: "picture.png", mimeType: "image/png", buffer: Buffer.from([0x89, 0x50, 0x4e, 0x47, 0, 0xff]) },
  ]);
  await expect(page.locator(".notice")).toHaveText("picture.png is not a text file and was not attached.");
  await expect(page.locator(".chip")).toHaveText(["notes.txt"]);
  const request = page.waitForRequest("**/v1/chat/completions");
  await ask(page, "What is the code word?");
  expect((await request).postDataJSON().messages).toEqual([
    { role: "user", content: "notes.txt\n```\nThe code word is 水.\n```\n\nWhat is the code word?" },
  ]);
});

test("everything is done with the keyboard", async ({ page }) => {
  await openChat(page);
  await page.keyboard.press("Control+/");
  await expect(page.getByRole("dialog", { name: "Keyboard shortcuts" })).toBeVisible();
  await page.keyboard.press("Escape");
  const field = page.getByLabel("Message", { exact: true });
  await expect(field).toBeFocused();
  await page.keyboard.type("One");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("two");
  await expect(field).toHaveValue("One\ntwo");
  await page.keyboard.press("Enter");
  await finished(page);
  await page.keyboard.press("ArrowUp");
  await expect(page.getByLabel("Edit the message")).toBeFocused();
  await page.keyboard.press("Escape");
  await page.keyboard.press("Control+k");
  await expect(page.getByLabel("Search conversations and their messages")).toBeFocused();
  await page.keyboard.press("Control+b");
  await expect(page.getByRole("navigation")).toHaveCount(0);
  await page.keyboard.press("Control+Shift+O");
  await expect(page.getByText("What would you like to know?")).toBeVisible();
  await expect(field).toBeFocused();
  await page.keyboard.press("Control+,");
  await expect(page.getByRole("dialog", { name: "Settings" })).toBeVisible();
});

test("Chinese is the browser's or chosen, and dark too", async ({ browser, page }) => {
  const chinese = await browser.newPage({ locale: "zh-CN", colorScheme: "dark" });
  await chinese.goto("/");
  await expect(chinese.getByText("想了解些什么？")).toBeVisible();
  await expect(chinese.locator("html")).toHaveAttribute("lang", "zh");
  await expect(chinese.locator("body")).toHaveCSS("background-color", "rgb(25, 25, 24)");
  await chinese.close();
  await openChat(page);
  await page.getByRole("button", { name: "Settings" }).first().click();
  await page.getByRole("radio", { name: "中文" }).check();
  await page.getByRole("radio", { name: "深色" }).check();
  await expect(page.getByRole("dialog", { name: "设置" })).toBeVisible();
  await expect(page.locator("body")).toHaveCSS("background-color", "rgb(25, 25, 24)");
});

test("an answer is announced", async ({ page }) => {
  await openChat(page);
  await send(page, "Hello");
  await finished(page);
  await expect(page.locator(".unseen[role=status]")).toContainText("The answer is complete.");
  await expect(page.getByRole("log", { name: "Messages" }).getByRole("article")).toHaveCount(2);
});

for (const scheme of ["light", "dark"] as const) {
  test(`axe finds nothing in ${scheme}`, async ({ page }) => {
    await page.emulateMedia({ colorScheme: scheme, reducedMotion: "reduce" });
    await openChat(page);
    const check = async () => {
      const { violations } = await new AxeBuilder({ page }).analyze();
      expect(violations.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)])).toEqual([]);
    };
    await check();
    await importFile(
      page,
      fileOf("# A\n\n```python\ndef f(x): return 'a'  # b\n```\n\n| a |\n|---|\n| $x$ |\n\n[b](https://example.org)"),
    );
    await page.getByRole("link", { name: "Imported" }).click();
    await expect(page.locator(".katex")).toBeVisible();
    await expect(page.locator(".notice")).toBeHidden();
    await check();
    await page.getByRole("button", { name: "Settings" }).first().click();
    await page.locator(".group summary").last().click();
    await check();
  });
}

test.describe("on a phone", () => {
  test.use({ viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true });

  test("everything fits, and the list slides over", async ({ page }) => {
    await openChat(page);
    const fits = async () =>
      expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBeLessThanOrEqual(360);
    await fits();
    await importFile(
      page,
      fileOf(
        "```\n" +
          "x".repeat(300) +
          "\n```\n\n" +
          "y".repeat(300) +
          "\n\n| " +
          "a | ".repeat(12) +
          "\n|" +
          "---|".repeat(12),
      ),
    );
    await fits();
    await page.getByRole("button", { name: "Show conversations" }).tap();
    await page.getByRole("link", { name: "Imported" }).tap();
    await expect(page.getByRole("navigation")).toHaveCount(0);
    await expect(page.locator(".answer")).toHaveCount(1);
    await fits();
    await page.getByRole("button", { name: "New chat" }).tap();
    const field = page.getByLabel("Message", { exact: true });
    await field.fill("What is the capital");
    await field.press("Enter"); // a phone's keyboard has no Shift+Enter
    await field.pressSequentially("of Japan?");
    await page.getByRole("button", { name: "Send" }).tap();
    await expect(proseOf(await finished(page))).toContainText("Tokyo");
    await fits();
    for (const each of await page.locator(".top button, .composer button").all()) {
      const box = (await each.boundingBox())!;
      expect(Math.min(box.width, box.height)).toBeGreaterThanOrEqual(36);
    }
  });
});
