/** Conversations as a JSON file, out and in. */
import type { Call, Result } from "./tools";
import { newMessage, type Attachment, type Conversation, type Figures, type Message, type MessageState } from "./types";

const FORMAT = "lltool-conversations";
const VERSION = 1;

/** A file that cannot be imported; `key` names the text that says why, `where` the place in the file. */
export class ImportError extends Error {
  constructor(
    readonly key: "import.not_json" | "import.not_ours" | "import.newer" | "import.bad",
    readonly where = "",
  ) {
    super(`${key} ${where}`);
  }
}

export function exportText(conversations: readonly Conversation[], messages: readonly Message[]): string {
  const parts = conversations.map((conversation) => ({
    ...conversation,
    messages: messages.filter((each) => each.conversation === conversation.id).map(({ owner, beat, ...kept }) => kept),
  }));
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations: parts }, null, 2);
}

type Table = Record<string, unknown>;

/** Reads a file as a whole, or raises ImportError. Fields that are not known are left out. */
export function importText(text: string): { conversations: Conversation[]; messages: Message[] } {
  let data: unknown;
  try {
    data = JSON.parse(text);
  } catch {
    throw new ImportError("import.not_json");
  }
  if (!isTable(data) || data.format !== FORMAT || !Array.isArray(data.conversations))
    throw new ImportError("import.not_ours");
  if (typeof data.version !== "number" || data.version > VERSION) throw new ImportError("import.newer");
  const conversations: Conversation[] = [];
  const messages: Message[] = [];
  data.conversations.forEach((each: unknown, at) => {
    const place = `conversations[${at}]`;
    const table = tableAt(each, place);
    const conversation = readConversation(table, place);
    const own = listAt(table.messages, `${place}.messages`).map((message, index) =>
      readMessage(message, conversation.id, `${place}.messages[${index}]`),
    );
    checkTree(own, place);
    if (!own.some((message) => message.id === conversation.leaf)) conversation.leaf = null;
    conversations.push(conversation);
    messages.push(...own);
  });
  return { conversations, messages };
}

function readConversation(table: Table, place: string): Conversation {
  return {
    id: idAt(table.id, `${place}.id`),
    title: textAt(table.title, `${place}.title`),
    named: table.named === true,
    system: textAt(table.system ?? "", `${place}.system`),
    created: numberAt(table.created, `${place}.created`),
    updated: numberAt(table.updated, `${place}.updated`),
    leaf: typeof table.leaf === "string" ? table.leaf : null,
  };
}

function readMessage(value: unknown, conversation: string, place: string): Message {
  const table = tableAt(value, place);
  const role = table.role;
  if (role !== "user" && role !== "assistant") throw new ImportError("import.bad", `${place}.role`);
  const states: MessageState[] = ["done", "stopped", "failed"];
  return {
    ...newMessage(conversation, null, role, textAt(table.text, `${place}.text`)),
    id: idAt(table.id, `${place}.id`),
    parent: table.parent === null ? null : idAt(table.parent, `${place}.parent`),
    reasoning: textAt(table.reasoning ?? "", `${place}.reasoning`),
    attachments: listAt(table.attachments ?? [], `${place}.attachments`).map((each, index): Attachment => {
      const inner = tableAt(each, `${place}.attachments[${index}]`);
      return {
        name: textAt(inner.name, `${place}.attachments[${index}].name`),
        text: textAt(inner.text, `${place}.attachments[${index}].text`),
      };
    }),
    ...(table.calls === undefined ? {} : { calls: readCalls(table.calls, `${place}.calls`) }),
    ...(table.results === undefined ? {} : { results: readResults(table.results, `${place}.results`) }),
    created: numberAt(table.created, `${place}.created`),
    state: states.find((state) => state === table.state) ?? "stopped", // "streaming" was cut by the export
    error: textAt(table.error ?? "", `${place}.error`),
    model: textAt(table.model ?? "", `${place}.model`),
    finish: textAt(table.finish ?? "", `${place}.finish`),
    figures: readFigures(table.figures),
  };
}

function readCalls(value: unknown, place: string): Call[] {
  return listAt(value, place).map((each, at) => {
    const table = tableAt(each, `${place}[${at}]`);
    const text = (name: string) => textAt(table[name], `${place}[${at}].${name}`);
    return { id: text("id"), name: text("name"), arguments: text("arguments") };
  });
}

function readResults(value: unknown, place: string): Result[] {
  return listAt(value, place).map((each, at) => {
    const table = tableAt(each, `${place}[${at}]`);
    const text = (name: string) => textAt(table[name], `${place}[${at}].${name}`);
    return { id: text("id"), name: text("name"), text: text("text") };
  });
}

function readFigures(value: unknown): Figures {
  if (!isTable(value)) return {};
  const names: (keyof Figures)[] = ["promptTokens", "cachedTokens", "newTokens", "tokensPerSecond", "promptPerSecond"];
  return Object.fromEntries(names.filter((name) => Number.isFinite(value[name])).map((name) => [name, value[name]]));
}

/** Every parent is in the conversation, and none is below its child. */
function checkTree(messages: readonly Message[], place: string): void {
  const parents = new Map(messages.map((each) => [each.id, each.parent]));
  if (parents.size < messages.length) throw new ImportError("import.bad", `${place}.messages`);
  const isRooted = new Set<string>();
  for (const each of messages) {
    const seen = new Set<string>();
    let at: string | null = each.id;
    while (at !== null && !isRooted.has(at)) {
      const parent: string | null | undefined = parents.get(at);
      if (seen.has(at) || parent === undefined) throw new ImportError("import.bad", `${place}.messages: ${each.id}`);
      seen.add(at);
      at = parent;
    }
    seen.forEach((id) => isRooted.add(id));
  }
}

function isTable(value: unknown): value is Table {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function tableAt(value: unknown, place: string): Table {
  if (!isTable(value)) throw new ImportError("import.bad", place);
  return value;
}

function listAt(value: unknown, place: string): unknown[] {
  if (!Array.isArray(value)) throw new ImportError("import.bad", place);
  return value;
}

function textAt(value: unknown, place: string): string {
  if (typeof value !== "string") throw new ImportError("import.bad", place);
  return value;
}

function idAt(value: unknown, place: string): string {
  if (typeof value !== "string" || !/^[\w-]{1,64}$/.test(value)) throw new ImportError("import.bad", place);
  return value;
}

function numberAt(value: unknown, place: string): number {
  if (typeof value !== "number" || !Number.isFinite(value)) throw new ImportError("import.bad", place);
  return value;
}
