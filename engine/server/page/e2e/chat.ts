/** The page as its user sees it, for the tests beside this file. */
import { expect, test as base, type BrowserContext, type Locator, type Page } from "@playwright/test";

/** Requests to other hosts and breaches of the policy, of all pages of a test. None is allowed. */
const faults: string[] = [];

export const test = base.extend<{ watched: void }>({
  watched: [
    async ({ context }, use) => {
      faults.length = 0;
      watch(context);
      await use();
      expect(faults).toEqual([]);
    },
    { auto: true },
  ],
});

function watch(context: BrowserContext): void {
  context.on("request", (request) => {
    const { protocol, hostname } = new URL(request.url());
    if (protocol !== "blob:" && hostname !== "127.0.0.1") faults.push(`a request to ${request.url()}`);
  });
  context.on("console", (message) => {
    if (message.text().includes("Content Security Policy")) faults.push(message.text());
  });
  context.on("weberror", (error) => faults.push(String(error.error())));
  context.on("dialog", (dialog) => {
    faults.push(`a dialog: ${dialog.message()}`);
    void dialog.dismiss();
  });
}

/** Settings that make answers short and always the same. */
export const GREEDY = { temperature: "0", max_tokens: "24" };

export async function openChat(page: Page, settings: Record<string, string> = GREEDY, path = ""): Promise<void> {
  await page.addInitScript((text) => {
    localStorage.getItem("lltool.preferences") ?? localStorage.setItem("lltool.preferences", text);
  }, JSON.stringify({ settings }));
  await page.goto(path);
  await expect(page.getByLabel("Message", { exact: true })).toBeVisible();
}

export async function send(page: Page, text: string): Promise<void> {
  await page.getByLabel("Message", { exact: true }).fill(text);
  await page.getByRole("button", { name: "Send" }).click();
  await expect(page.locator(".asked").last()).toContainText(text);
}

/** Sends a message and waits for the whole answer. */
export async function ask(page: Page, text: string): Promise<Locator> {
  await send(page, text);
  return finished(page);
}

export async function finished(page: Page): Promise<Locator> {
  const answer = page.locator(".answer").last();
  await expect(answer).toHaveAttribute("data-state", "done");
  await expect(page.getByRole("button", { name: "Send" })).toBeVisible();
  return answer;
}

export const proseOf = (answer: Locator) => answer.locator(":scope > .prose");

/** Waits until an answer has some words and is still being written. */
export async function started(page: Page): Promise<Locator> {
  const answer = page.locator(".answer").last();
  await expect(proseOf(answer)).toContainText(/\w+\W+\w+\W+\w+/);
  await expect(answer).toHaveAttribute("data-state", "streaming");
  return answer;
}

/** A file of one conversation with one answer for each text. */
export function fileOf(...answers: string[]): { name: string; mimeType: string; buffer: Buffer } {
  const messages = answers.flatMap((text, at) => [
    { id: `u${at}`, parent: at ? `a${at - 1}` : null, role: "user", text: `Question ${at}`, created: 2 * at },
    { id: `a${at}`, parent: `u${at}`, role: "assistant", text, created: 2 * at + 1 },
  ]);
  const conversation = { id: "imported", title: "Imported", named: true, created: 1, updated: 2, leaf: null, messages };
  const file = { format: "lltool-conversations", version: 1, conversations: [conversation] };
  return { name: "chats.json", mimeType: "application/json", buffer: Buffer.from(JSON.stringify(file)) };
}

export async function importFile(page: Page, file: ReturnType<typeof fileOf>): Promise<void> {
  await page.getByRole("button", { name: "Settings" }).first().click();
  await page.locator('input[type="file"][accept*="json"]').setInputFiles(file);
  await expect(page.locator(".notice")).toContainText("Imported 1 conversation");
  await page.keyboard.press("Escape");
}

export { expect };
