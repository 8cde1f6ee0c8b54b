import { beforeEach, expect, test } from "vitest";
import * as database from "../src/data/database";
import { exportText, ImportError, importText } from "../src/data/transfer";
import { newConversation, newMessage, type Message } from "../src/data/types";

beforeEach(async () => {
  await database.deleteConversations((await database.listConversations()).map(({ id }) => id));
});

async function conversationOf(...texts: string[]): Promise<{ id: string; messages: Message[] }> {
  const conversation = newConversation("Be kind.");
  await database.addConversation(conversation);
  const messages: Message[] = [];
  for (const text of texts) {
    messages.push(
      newMessage(conversation.id, messages.at(-1)?.id ?? null, messages.length % 2 ? "assistant" : "user", text),
    );
  }
  await database.putMessages(...messages);
  return { id: conversation.id, messages };
}

test("changes of two tabs to one conversation are both kept", async () => {
  const { id } = await conversationOf("a");
  await Promise.all([
    database.changeConversation(id, { title: "t" }),
    database.changeConversation(id, { system: "s" }),
  ]);
  expect(await database.conversation(id)).toMatchObject({ title: "t", system: "s" });
});

test("a message of a deleted conversation is not stored", async () => {
  const { id, messages } = await conversationOf("a", "b");
  await database.deleteConversations([id]);
  expect(await database.putMessages(messages[1]!)).toBe(false);
  expect(await database.allMessages()).toEqual([]);
  expect(await database.changeConversation(id, { title: "t" })).toBeUndefined();
});

test("an export read back is what was there", async () => {
  const { messages } = await conversationOf("a", "b");
  const before = await database.listConversations();
  const read = importText(exportText(before, await database.allMessages()));
  expect(read.conversations).toEqual(before);
  expect(read.messages.sort((a, b) => (a.parent ? 1 : b.parent ? -1 : 0))).toEqual(messages);
});

test("an import adds what is missing and changes nothing", async () => {
  const { id, messages } = await conversationOf("a", "b");
  const file = importText(exportText(await database.listConversations(), await database.allMessages()));
  await database.putMessages({ ...messages[0]!, text: "newer" });
  await database.deleteMessage(messages[1]!.id);
  expect(await database.mergeIn(file.conversations, file.messages)).toBe(1);
  expect((await database.messagesOf(id)).map(({ text }) => text).sort()).toEqual(["b", "newer"]);
  await database.deleteConversations([id]);
  expect(await database.mergeIn(file.conversations, file.messages)).toBe(2);
});

const GOOD = { id: "m", parent: null, role: "user", text: "a", created: 1 };
const file = (...messages: unknown[]) =>
  JSON.stringify({
    format: "lltool-conversations",
    version: 1,
    conversations: [{ id: "c", title: "", created: 1, updated: 1, messages }],
  });

test.each([
  ["{", "import.not_json", ""],
  ["[]", "import.not_ours", ""],
  ['{"format":"other","conversations":[]}', "import.not_ours", ""],
  ['{"format":"lltool-conversations","version":2,"conversations":[]}', "import.newer", ""],
  [file({ ...GOOD, role: "system" }), "import.bad", "conversations[0].messages[0].role"],
  [file({ ...GOOD, text: 5 }), "import.bad", "conversations[0].messages[0].text"],
  [file({ ...GOOD, id: "<img>" }), "import.bad", "conversations[0].messages[0].id"],
  [file({ ...GOOD, parent: "x" }), "import.bad", "conversations[0].messages: m"],
  [file({ ...GOOD, parent: "n" }, { ...GOOD, id: "n", parent: "m" }), "import.bad", "conversations[0].messages: m"],
  [file(GOOD, GOOD), "import.bad", "conversations[0].messages"],
  [file({ ...GOOD, attachments: [{ name: "a" }] }), "import.bad", "conversations[0].messages[0].attachments[0].text"],
])("the file %j is refused", (text, key, where) => {
  expect(() => importText(text)).toThrow(ImportError);
  expect(() => importText(text)).toThrow(expect.objectContaining({ key, where }));
});

test("an answer that was being written when it was exported is one that was stopped", () => {
  const read = importText(file({ ...GOOD, state: "streaming", owner: "x", extra: 1 }));
  expect(read.messages[0]).toMatchObject({ state: "stopped", owner: "" });
  expect(read.messages[0]).not.toHaveProperty("extra");
});
