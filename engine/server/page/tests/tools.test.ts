import { expect, test } from "vitest";
import { readPart } from "../src/api/client";
import { addCalls, BadTools, parseTools, showArguments } from "../src/data/tools";

test("tools are a list of functions, with or without the wrapper that the server wants", () => {
  const tool = { name: "now", description: "The time" };
  expect(parseTools("  ")).toBeUndefined();
  expect(parseTools("[]")).toBeUndefined();
  expect(parseTools(JSON.stringify(tool))).toEqual([{ type: "function", function: tool }]);
  expect(parseTools(JSON.stringify([{ type: "function", function: tool }]))).toEqual([
    { type: "function", function: tool },
  ]);
});

test.each(["[", "3", '[{"description": "x"}]', "[null]"])("%s is no list of tools", (typed) => {
  expect(() => parseTools(typed)).toThrow(BadTools);
});

test("calls are put together from the events of an answer", () => {
  const event = (call: unknown) => JSON.stringify({ choices: [{ delta: { tool_calls: [call] } }] });
  const events = [
    event({ index: 0, id: "a", type: "function", function: { name: "now", arguments: "" } }),
    event({ index: 0, function: { arguments: '{"zone":' } }),
    event({ index: 0, function: { arguments: ' "CET"}' } }),
    event({ index: 1, id: "b", type: "function", function: { name: "then", arguments: "{}" } }),
  ];
  const calls = events.reduce<ReturnType<typeof addCalls>>((found, each) => addCalls(found, readPart(each).calls), []);
  expect(calls).toEqual([
    { id: "a", name: "now", arguments: '{"zone": "CET"}' },
    { id: "b", name: "then", arguments: "{}" },
  ]);
  expect(showArguments(calls[0]!.arguments)).toBe('{\n  "zone": "CET"\n}');
  expect(showArguments('{"zo')).toBe('{"zo');
});
