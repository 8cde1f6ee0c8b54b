/** The model calls a tool, and the user answers the call. */
import { expect, openChat, proseOf, send, test } from "./chat";

const TOOLS = JSON.stringify([
  {
    name: "get_weather",
    description: "The weather of a city",
    parameters: { type: "object", properties: { city: { enum: ["Paris", "Rome"] } }, required: ["city"] },
  },
]);

test("a call is shown, and goes on with what the user writes", async ({ page }) => {
  // The model is small: it is told to call first, and to answer then.
  await page.route("**/v1/chat/completions", (route) => {
    const body = route.request().postDataJSON() as { messages: { role: string }[] };
    const hasResult = body.messages.some((each) => each.role === "tool");
    return route.continue({ postData: JSON.stringify({ ...body, tool_choice: hasResult ? "none" : "required" }) });
  });
  await openChat(page);
  await page.getByRole("button", { name: "Settings" }).first().click();
  const list = page.getByLabel("A JSON list of functions");
  await list.fill("[");
  await expect(page.getByRole("alert")).toContainText("cannot be used");
  await list.fill(TOOLS);
  await expect(page.getByRole("alert")).toHaveCount(0);
  await page.keyboard.press("Escape");

  await send(page, "How is the weather in Rome?");
  const call = page.locator(".call");
  await expect(call).toContainText("Calls get_weather");
  await expect(call).toContainText(/"city": "(Paris|Rome)"/);
  await page.getByLabel("What get_weather gave").fill("It rains, 12 degrees.");
  await page.getByRole("button", { name: "Send the results" }).click();
  const answer = page.locator(".answer").last();
  await expect(answer).toHaveAttribute("data-state", "done");
  await expect(proseOf(answer)).toContainText(/\w/);
  await expect(page.locator(".asked").last()).toContainText("What get_weather gave");
  await page.reload();
  await expect(page.locator(".call")).toContainText("Calls get_weather");
  await expect(page.getByRole("button", { name: "Send the results" })).toHaveCount(0);
});
