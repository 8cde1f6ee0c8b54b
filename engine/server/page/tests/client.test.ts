// @vitest-environment jsdom
import { afterEach, expect, test, vi } from "vitest";
import { chat, listModels, readProperties, ServerError } from "../src/api/client";
import { all } from "./all";

afterEach(() => vi.unstubAllGlobals());

function answerWith(body: string, status = 200, headers: Record<string, string> = {}) {
  const fetched = vi.fn(async (_url: URL, _options: RequestInit) => new Response(body, { status, headers }));
  vi.stubGlobal("fetch", fetched);
  return fetched;
}

async function failureOf(work: Promise<unknown>): Promise<Partial<ServerError>> {
  const error = await work.then(
    () => undefined,
    (reason) => reason,
  );
  expect(error).toBeInstanceOf(ServerError);
  const { failure, message, status, retryAfter } = error as ServerError;
  return { failure, message, status, retryAfter };
}

const chatAll = () => all(chat({ messages: [] }, "", new AbortController().signal));

test("the key goes with each request, and only then", async () => {
  const fetched = answerWith('{"data":[{"id":"a"},{"id":"b","status":{"value":"unloaded"}}]}');
  expect(await listModels("secret")).toEqual([
    { name: "a", isLoaded: true },
    { name: "b", isLoaded: false },
  ]);
  expect(new Headers(fetched.mock.calls[0]![1].headers).get("Authorization")).toBe("Bearer secret");
  await listModels("");
  expect(new Headers(fetched.mock.calls[1]![1].headers).has("Authorization")).toBe(false);
});

test("properties are the context and the defaults", async () => {
  const fetched = answerWith('{"default_generation_settings":{"n_ctx":512,"params":{"top_k":40}}}');
  expect(await readProperties("", "a/b c")).toEqual({ context: 512, defaults: { top_k: 40 } });
  expect(fetched.mock.calls[0]![0].href).toMatch(/props\?model=a%2Fb%20c$/);
});

test("each refusal is told apart", async () => {
  answerWith('{"error":{"message":"Invalid key"}}', 401);
  expect(await failureOf(listModels(""))).toMatchObject({ failure: "key", message: "Invalid key", status: 401 });
  answerWith("{}", 503, { "Retry-After": "7" });
  expect(await failureOf(listModels(""))).toMatchObject({ failure: "busy", retryAfter: 7 });
  answerWith('{"error":{"message":"too long"}}', 400);
  expect(await failureOf(chatAll())).toMatchObject({ failure: "refused", message: "too long" });
  answerWith("<html>oops</html>", 500);
  expect(await failureOf(listModels(""))).toMatchObject({ failure: "server", status: 500 });
  vi.stubGlobal("fetch", async () => Promise.reject(new TypeError("failed")));
  expect(await failureOf(listModels(""))).toMatchObject({ failure: "unreachable" });
});

test("an answer without its end was cut", async () => {
  answerWith('data: {"choices":[{"delta":{"content":"a"}}]}\n\n');
  expect(await failureOf(chatAll())).toMatchObject({ failure: "cut" });
});

test("an answer ends at [DONE], and its request asks for figures", async () => {
  const fetched = answerWith(
    'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\ndata: x\n\n',
  );
  expect((await chatAll()).map(({ text }) => text)).toEqual(["a"]);
  expect(JSON.parse(String(fetched.mock.calls[0]![1].body))).toEqual({
    messages: [],
    stream: true,
    stream_options: { include_usage: true },
  });
});
