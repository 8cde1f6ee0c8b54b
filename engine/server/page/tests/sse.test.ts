import { expect, test } from "vitest";
import { readPart } from "../src/api/client";
import { eventsOf } from "../src/api/sse";
import { all } from "./all";

function bodyOf(text: string, size: number): ReadableStream<Uint8Array> {
  const bytes = new TextEncoder().encode(text);
  return new ReadableStream({
    start(controller) {
      for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
      controller.close();
    },
  });
}

const collect = (text: string, size: number) => all(eventsOf(bodyOf(text, size)));

test.each([1, 2, 3, 7, 1000])("events are whole whatever the pieces of %i bytes cut", async (size) => {
  const first = 'data: {"a":"水 🙂"}\n\n: a comment\r\n';
  const text = `${first}data: one\r\ndata:two\r\n\r\nevent: x\nid: 4\n\ndata: [DONE]\n\n`;
  expect(await collect(text, size)).toEqual(['{"a":"水 🙂"}', "one\ntwo", "[DONE]"]);
});

test.each([1, 4])("an event at the end counts without an empty line", async (size) => {
  expect(await collect("data: a\r\rdata: b", size)).toEqual(["a", "b"]);
});

test("a part holds text, reasoning, end, usage and timings", () => {
  expect(
    readPart('{"model":"m","choices":[{"delta":{"content":"a","reasoning_content":"b"},"finish_reason":null}]}'),
  ).toMatchObject({
    text: "a",
    reasoning: "b",
    finish: "",
    model: "m",
  });
  expect(readPart('{"choices":[],"usage":{"prompt_tokens":3},"timings":{"predicted_n":4}}')).toMatchObject({
    text: "",
    usage: { prompt_tokens: 3 },
    timings: { predicted_n: 4 },
  });
});

test("an error within the stream is raised with its sentence", () => {
  expect(() => readPart('{"error":{"message":"no memory"}}')).toThrow("no memory");
  expect(() => readPart("<html>")).toThrow("<html>");
});
