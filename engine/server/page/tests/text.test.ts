import { expect, test } from "vitest";
import { newMessage } from "../src/data/types";
import { NotText, readTextFile } from "../src/text/files";
import { requestMessages, titleOf, withAttachments } from "../src/text/request";
import { splitThinking } from "../src/text/thinking";
import { excerptAround } from "../src/text/excerpt";

test.each([
  ["plain", { reasoning: "", answer: "plain", isOpen: false }],
  ["<think>\nwhy\n</think>\n\nso", { reasoning: "why", answer: "so", isOpen: false }],
  ["<think>wh", { reasoning: "wh", answer: "", isOpen: true }],
  ["\n<thi", { reasoning: "", answer: "", isOpen: true }],
  ["why</think>so", { reasoning: "why", answer: "so", isOpen: false }],
  ["the tag `</think>` ends it", { reasoning: "", answer: "the tag `</think>` ends it", isOpen: false }],
  ["<think>it ends at `</think>so", { reasoning: "it ends at `", answer: "so", isOpen: false }],
  ["<b>", { reasoning: "", answer: "<b>", isOpen: false }],
  ["", { reasoning: "", answer: "", isOpen: false }],
])("reasoning is split from %j", (text, wanted) => {
  expect(splitThinking(text)).toEqual(wanted);
});

test("a request has the branch without reasoning and without answers that never came", () => {
  const asked = (text: string) => newMessage("c", null, "user", text);
  const said = (text: string) => newMessage("c", null, "assistant", text);
  expect(
    requestMessages("Be brief.", [asked("a"), said("<think>x</think>b"), asked("c"), said(""), asked("d")]),
  ).toEqual([
    { role: "system", content: "Be brief." },
    { role: "user", content: "a" },
    { role: "assistant", content: "b" },
    { role: "user", content: "c\n\nd" },
  ]);
  expect(requestMessages("  ", [asked("a")])).toEqual([{ role: "user", content: "a" }]);
});

test("a request has calls with their results, but no calls without", () => {
  const asked = newMessage("c", null, "user", "a");
  const called = {
    ...newMessage("c", null, "assistant", "<think>x</think>"),
    calls: [{ id: "1", name: "now", arguments: "{}" }],
  };
  const given = { ...newMessage("c", null, "user", ""), results: [{ id: "1", name: "now", text: "noon" }] };
  expect(requestMessages("", [asked, called, given])).toEqual([
    { role: "user", content: "a" },
    {
      role: "assistant",
      content: "",
      tool_calls: [{ id: "1", type: "function", function: { name: "now", arguments: "{}" } }],
    },
    { role: "tool", content: "noon", tool_call_id: "1" },
  ]);
  expect(requestMessages("", [asked, called, newMessage("c", null, "user", "b")])).toEqual([
    { role: "user", content: "a\n\nb" },
  ]);
});

test("a file's fence is longer than every run of backticks in it", () => {
  expect(withAttachments("What is it?", [{ name: "a.md", text: "```x\n````\n" }])).toBe(
    "a.md\n`````\n```x\n````\n`````\n\nWhat is it?",
  );
  expect(withAttachments("", [{ name: "a", text: "b" }])).toBe("a\n```\nb\n```");
});

test("a title is the first line, without marks, cut between letters", () => {
  expect(titleOf("\n## Hello *world*\nmore")).toBe("Hello *world*");
  expect(titleOf("🙂".repeat(8), 5)).toBe("🙂🙂🙂🙂…");
});

test("files are read as text, or refused", async () => {
  expect(await readTextFile(new File(["é\r\n"], "a.txt"))).toEqual({ name: "a.txt", text: "é\n" });
  expect(await readTextFile(new File([new Uint8Array([0xff, 0xfe, 0x41, 0])], "b"))).toEqual({ name: "b", text: "A" });
  await expect(readTextFile(new File([new Uint8Array([0xc3, 0x28])], "c"))).rejects.toThrow(NotText);
  await expect(readTextFile(new File(["a\0"], "d"))).rejects.toThrow("not_text");
  await expect(readTextFile(new File([new Uint8Array((1 << 20) + 1)], "e"))).rejects.toThrow("too_large");
});

test("an excerpt shows what stands around a word", () => {
  expect(excerptAround("one two  three four", "three", 4)).toBe("…two three fou…");
  expect(excerptAround("Three", "three", 4)).toBe("Three");
});
