/** Sending, streaming, stopping, reloading, and branches. */
import { ask, expect, finished, openChat, proseOf, send, started, test } from "./chat";

const LONG = { temperature: "0", max_tokens: "1200", ignore_eos: "on" };

test("an answer streams, with its speed and the context used, and is there after a reload", async ({ page }) => {
  await openChat(page, { temperature: "0", max_tokens: "120" });
  await send(page, "Write a story about a fox.");
  const early = await proseOf(await started(page)).innerText();
  const answer = await finished(page);
  const whole = await proseOf(answer).innerText();
  expect(whole.length).toBeGreaterThan(early.length);
  await expect(answer.locator(".figures")).toHaveText(/^\d+ tokens · [\d.]+ tokens\/s · smollm2/);
  await expect(page.locator(".context")).toHaveAttribute("aria-label", /^\d+ of 2,048 tokens/);
  await expect(page.locator(".item.current")).toContainText("Write a story about a fox.");
  await page.reload();
  await expect(proseOf(page.locator(".answer"))).toHaveText(whole, { useInnerText: true });
});

test("the model hears the messages before, and the system prompt", async ({ page }) => {
  await openChat(page);
  await page.getByRole("button", { name: "Settings" }).first().click();
  await page.getByLabel("System prompt of this conversation").fill("Be brief.");
  await page.keyboard.press("Escape");
  const first = await proseOf(await ask(page, "What is the capital of Japan?")).innerText();
  expect(first).toContain("Tokyo");
  const request = page.waitForRequest("**/v1/chat/completions");
  await ask(page, "And of France?");
  const { messages } = (await request).postDataJSON();
  expect(messages).toEqual([
    { role: "system", content: "Be brief." },
    { role: "user", content: "What is the capital of Japan?" },
    { role: "assistant", content: first },
    { role: "user", content: "And of France?" },
  ]);
});

for (const [way, stop] of [
  ["the button", (page: import("@playwright/test").Page) => page.getByRole("button", { name: "Stop" }).click()],
  ["Escape", (page: import("@playwright/test").Page) => page.keyboard.press("Escape")],
] as const) {
  test(`${way} stops an answer, which stays`, async ({ page }) => {
    await openChat(page, LONG);
    await send(page, "Count from one to a thousand.");
    const answer = await started(page);
    await stop(page);
    await expect(answer).toHaveAttribute("data-state", "stopped");
    await expect(answer).toContainText("Stopped.");
    const text = await proseOf(answer).innerText();
    await page.reload();
    await expect(proseOf(page.locator(".answer"))).toHaveText(text, { useInnerText: true });
    await page.getByRole("button", { name: "Send" }).waitFor();
  });
}

test("a reload while an answer streams keeps what has come", async ({ page }) => {
  await openChat(page, LONG);
  await send(page, "Count from one to a thousand.");
  const answer = await started(page);
  await page.waitForTimeout(1_500); // longer than the time between two stores
  const before = await proseOf(answer).innerText();
  await page.reload();
  const after = page.locator(".answer");
  await expect(after).toHaveAttribute("data-state", "interrupted");
  await expect(after).toContainText("The page was closed while this answer was being written.");
  const kept = await proseOf(after).innerText();
  expect(kept.length).toBeGreaterThan(before.length * 0.5);
  await page.getByRole("button", { name: "Answer again" }).click();
  await started(page);
  await page.keyboard.press("Escape");
  await expect(page.getByRole("group", { name: "Version 2 of 2" })).toBeVisible();
});

test("edits and other answers are branches, and none is lost", async ({ page }) => {
  await openChat(page);
  const japan = await proseOf(await ask(page, "What is the capital of Japan?")).innerText();
  await ask(page, "Thank you.");
  await page.getByRole("button", { name: "Answer again" }).last().click();
  await expect(page.getByRole("group", { name: "Version 2 of 2" })).toBeVisible();
  await finished(page);
  await page.locator(".asked").first().hover();
  await page.getByRole("button", { name: "Edit" }).first().click();
  await page.getByLabel("Edit the message").fill("What is the capital of Italy?");
  const request = page.waitForRequest("**/v1/chat/completions");
  await page.getByLabel("Edit the message").press("Enter");
  await expect(page.locator(".asked")).toHaveCount(1);
  expect((await request).postDataJSON().messages).toEqual([{ role: "user", content: "What is the capital of Italy?" }]);
  await finished(page);
  await page.getByRole("button", { name: "Previous version" }).click();
  await expect(page.locator(".asked")).toHaveCount(2);
  await expect(proseOf(page.locator(".answer").first())).toHaveText(japan, { useInnerText: true });
  await expect(page.getByRole("group", { name: "Version 2 of 2" })).toBeVisible(); // of the second answer
  await page.reload();
  await expect(page.locator(".asked")).toHaveCount(2); // the branch that was shown
  await page.getByRole("button", { name: "Next version" }).first().click();
  await expect(page.locator(".asked")).toContainText(["What is the capital of Italy?"]);
});

test("a failure is said plainly, and the next try takes its place", async ({ page }) => {
  await openChat(page);
  await page.route("**/v1/chat/completions", (route) => route.abort(), { times: 1 });
  await send(page, "What is the capital of Japan?");
  const answer = page.locator(".answer");
  await expect(answer).toContainText("The server does not answer. Check that it is running, and try again.");
  await page.getByRole("button", { name: "Try again" }).click();
  await expect(proseOf(await finished(page))).toContainText("Tokyo");
  await expect(page.locator(".versions")).toHaveCount(0);
});

test("a prompt over the context is refused with the server's words, and a busy server says when to come again", async ({
  page,
}) => {
  await openChat(page);
  await send(page, "word ".repeat(3000));
  await expect(page.locator(".answer")).toContainText(/The server refused: .*2,?048/);
  await page.route("**/v1/chat/completions", (route) =>
    route.fulfill({ status: 503, headers: { "Retry-After": "7" }, body: "{}" }),
  );
  await page.getByRole("button", { name: "Try again" }).click();
  await expect(page.locator(".answer")).toContainText("The server is busy. Try again in 7 seconds.");
});
