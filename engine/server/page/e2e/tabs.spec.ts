/** Two tabs, and conversations as files. */
import { readFile } from "node:fs/promises";
import { ask, expect, finished, openChat, proseOf, send, started, test } from "./chat";

test("two tabs see each other's work and lose nothing", async ({ page, context }) => {
  await openChat(page, { temperature: "0", max_tokens: "200", ignore_eos: "on" });
  await send(page, "Write a story about a fox.");
  await started(page);
  const other = await context.newPage();
  await openChat(other);
  await other.getByRole("link", { name: "Write a story about a fox." }).click();
  const seen = other.locator(".answer");
  await expect(seen).toHaveAttribute("data-state", "streaming");
  const early = await proseOf(seen).innerText();
  await expect(async () => expect((await proseOf(seen).innerText()).length).toBeGreaterThan(early.length)).toPass();
  const whole = await proseOf(await finished(page)).innerText();
  await expect(seen).toHaveAttribute("data-state", "done");
  await expect(proseOf(seen)).toHaveText(whole, { useInnerText: true });

  // A tab that has no news of the others goes on from the same message: both ways are kept.
  const late = await context.newPage();
  await late.addInitScript(() =>
    Reflect.set(
      window,
      "BroadcastChannel",
      class {
        postMessage() {}
      },
    ),
  );
  await openChat(late);
  await late.getByRole("link", { name: "Write a story about a fox." }).click();
  await expect(late.locator(".answer")).toHaveCount(1);
  await send(page, "First tab");
  await expect(other.locator(".bubble").last()).toHaveText("First tab");
  await send(late, "Second tab");
  await expect(late.locator(".asked")).toHaveCount(2);
  await other.getByRole("button", { name: "Stop" }).click(); // the answer that the first tab receives
  await expect(page.locator(".answer").last()).toHaveAttribute("data-state", "stopped");
  await finished(late);
  await page.reload();
  await expect(page.locator(".bubble").last()).toHaveText("Second tab");
  await page.getByRole("button", { name: "Previous version" }).click();
  await expect(page.locator(".bubble").last()).toHaveText("First tab");
});

test("a conversation that another tab deletes closes", async ({ page, context }) => {
  await openChat(page);
  await ask(page, "What is the capital of Japan?");
  const other = await context.newPage();
  await openChat(other);
  await other.getByRole("button", { name: "More actions for “What is the capital of Japan?”" }).click();
  await other.getByRole("menuitem", { name: "Delete" }).click();
  await other.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
  await expect(page.getByText("What would you like to know?")).toBeVisible();
  await expect(page.locator(".item")).toHaveCount(0);
});

test("conversations are renamed, found, exported, deleted and imported", async ({ page }) => {
  await openChat(page);
  const first = await proseOf(await ask(page, "What is the capital of Japan?")).innerText();
  await page.getByRole("button", { name: "New chat" }).click();
  await ask(page, "What is the capital of Italy?");
  await page.getByRole("button", { name: "More actions for “What is the capital of Italy?”" }).click();
  await page.getByRole("menuitem", { name: "Rename" }).click();
  await page.getByLabel("Rename").fill("About Rome");
  await page.keyboard.press("Enter");
  await expect(page.locator(".item-title")).toHaveText(["About Rome", "What is the capital of Japan?"]);

  const search = page.getByLabel("Search conversations and their messages");
  await search.fill("tokyo");
  await expect(page.locator(".item-title")).toHaveText(["What is the capital of Japan?"]);
  await expect(page.locator(".item-excerpt")).toContainText("Tokyo");
  await search.fill("nothing of this kind");
  await expect(page.getByText("Nothing was found.")).toBeVisible();
  await search.fill("");

  await page.getByRole("button", { name: "Settings" }).click();
  const downloading = page.waitForEvent("download");
  await page.getByRole("button", { name: "Export all" }).click();
  const text = await readFile(await (await downloading).path());
  expect(JSON.parse(text.toString()).conversations).toHaveLength(2);
  await page.getByRole("button", { name: "Delete all conversations" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Delete all conversations" }).click();
  await expect(page.locator(".item")).toHaveCount(0);

  await page.getByRole("button", { name: "Settings" }).click();
  await page
    .locator('input[type="file"][accept*="json"]')
    .setInputFiles({ name: "a.json", mimeType: "application/json", buffer: text });
  await expect(page.locator(".notice")).toHaveText("Imported 2 conversations with 4 new messages.");
  await page
    .locator('input[type="file"][accept*="json"]')
    .setInputFiles({ name: "a.json", mimeType: "", buffer: Buffer.from("{}") });
  await expect(page.locator(".notice")).toContainText("holds no exported conversations");
  await page.keyboard.press("Escape");
  await page.getByRole("link", { name: "What is the capital of Japan?" }).click();
  await expect(proseOf(page.locator(".answer"))).toHaveText(first, { useInnerText: true });
});
