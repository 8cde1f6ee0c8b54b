import { expect, test } from "vitest";
import { lastUnder, pathTo, siblingsOf } from "../src/data/tree";
import { newMessage, type Message } from "../src/data/types";

function node(id: string, parent: string | null, created: number): Message {
  return {
    ...newMessage("c", parent, parent === null || parent.startsWith("a") ? "user" : "assistant", id),
    id,
    created,
  };
}

// u1 – a1 – u2 – a2, a second answer a1b to u1 with u3 below it, and u1b as another beginning
const MESSAGES = [
  node("a2", "u2", 4),
  node("u1", null, 1),
  node("a1", "u1", 2),
  node("u2", "a1", 3),
  node("a1b", "u1", 5),
  node("u3", "a1b", 6),
  node("u1b", null, 7),
];
const ids = (messages: Message[]) => messages.map(({ id }) => id);

test("the path goes from the first message to the leaf", () => {
  expect(ids(pathTo(MESSAGES, "a2"))).toEqual(["u1", "a1", "u2", "a2"]);
  expect(ids(pathTo(MESSAGES, "a1b"))).toEqual(["u1", "a1b"]);
});

test("a leaf that is not there gives the newest message's branch", () => {
  expect(ids(pathTo(MESSAGES, "gone"))).toEqual(["u1b"]);
  expect(pathTo([], null)).toEqual([]);
});

test("a loop of parents ends", () => {
  expect(pathTo([node("x", "y", 1), node("y", "x", 2)], "x").length).toBeLessThanOrEqual(3);
});

test("versions of a message are those of the same parent, oldest first", () => {
  expect(ids(siblingsOf(MESSAGES, MESSAGES[4]!))).toEqual(["a1", "a1b"]);
  expect(ids(siblingsOf(MESSAGES, MESSAGES[6]!))).toEqual(["u1", "u1b"]);
});

test("a branch is entered at its newest end", () => {
  expect(lastUnder(MESSAGES, "a1")).toBe("a2");
  expect(lastUnder(MESSAGES, "u1")).toBe("u3");
});
