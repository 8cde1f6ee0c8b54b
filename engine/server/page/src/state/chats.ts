/** The conversations, the one that is open, and its messages. */
import { computed, signal } from "@preact/signals";
import * as database from "../data/database";
import { lastUnder, pathTo } from "../data/tree";
import { newConversation, newId, type Conversation, type Message } from "../data/types";
import { preferences } from "./preferences";

const TAB_PLACE = "lltool.tab";
const DEAD_AFTER = 5_000; // milliseconds without a sign of life of the tab that writes an answer

export const conversations = signal<Conversation[]>([]);
export const current = signal<Conversation | null>(null);
export const messages = signal<Message[]>([]);
export const isLoaded = signal(false);
/** The system prompt of a conversation that has no message yet. */
export const newSystem = signal<string | null>(null);
/** Where this tab is in the tree; another tab may show another branch. */
const leaf = signal<string | null>(null);
export const path = computed(() => pathTo(messages.value, leaf.value));

/** The answers that this tab is receiving, as they are now. */
export const running = signal<ReadonlyMap<string, Message>>(new Map());
/** Whether the branch that is shown is being written, here or in another tab. */
export const isAnswering = computed(() => {
  const last = path.value.at(-1);
  return last?.state === "streaming" && !isInterrupted(last);
});

/** The answer that another tab has asked this one to stop. */
export const stopRequested = signal("");

/** How many messages this tab has sent: each brings the end of the conversation into view. */
export const sentCount = signal(0);

/** This tab, also after a reload. */
export const tab = sessionStorage.getItem(TAB_PLACE) ?? newId();
sessionStorage.setItem(TAB_PLACE, tab);

export const clock = signal(Date.now());
setInterval(() => {
  if (messages.value.some((each) => each.state === "streaming" && !running.value.has(each.id)))
    clock.value = Date.now();
}, 1_000);

/** Whether the tab that received an answer has left it half written. */
export function isInterrupted(message: Message): boolean {
  if (message.state !== "streaming" || running.value.has(message.id)) return false;
  return message.owner === tab || clock.value - message.beat > DEAD_AFTER;
}

type News = { kind: "list" } | { kind: "messages"; conversation: string } | { kind: "stop"; message: string };
const channel = new BroadcastChannel("lltool");
channel.onmessage = ({ data }: MessageEvent<News>) => {
  if (data.kind === "list") void loadList();
  else if (data.kind === "stop") stopRequested.value = data.message;
  else if (data.conversation === current.value?.id) void loadMessages(data.conversation);
};

export function tellOtherTabs(news: News): void {
  channel.postMessage(news);
}

export async function loadList(): Promise<void> {
  conversations.value = await database.listConversations();
  const id = current.value?.id;
  if (id === undefined) return;
  const found = conversations.value.find((each) => each.id === id);
  if (found) current.value = found;
  else await open(null); // another tab has deleted it
}

async function loadMessages(id: string): Promise<void> {
  const stored = await database.messagesOf(id);
  if (current.value?.id !== id) return; // another one was opened meanwhile
  const before = leaf.value;
  const latest = await database.conversation(id);
  messages.value = stored.map((each) => running.value.get(each.id) ?? each);
  // Another tab may have gone on from where this one is.
  const ahead = latest?.leaf ?? null;
  if (ahead !== null && pathTo(messages.value, ahead).some((each) => each.id === before)) leaf.value = ahead;
}

export async function open(id: string | null): Promise<void> {
  const [found, stored] = id === null ? [undefined, []] : await readConversation(id);
  current.value = found ?? null;
  messages.value = stored.map((each) => running.value.get(each.id) ?? each);
  leaf.value = found?.leaf ?? null;
  newSystem.value = null;
  clock.value = Date.now();
  isLoaded.value = true;
  const place = found ? `#/c/${found.id}` : "#/";
  if (location.hash !== place) history.pushState(null, "", place);
}

async function readConversation(id: string): Promise<[Conversation | undefined, Message[]]> {
  try {
    const found = await database.conversation(id);
    return [found, found ? await database.messagesOf(id) : []];
  } finally {
    isLoaded.value = true; // also where the browser keeps nothing, of which the page tells
  }
}

export function openFromAddress(): Promise<void> {
  return open(/^#\/c\/([\w-]+)$/.exec(location.hash)?.[1] ?? null);
}

/** The open conversation; if none is open, a new one. */
export async function ensureConversation(): Promise<Conversation> {
  if (current.value) return current.value;
  const made = newConversation(newSystem.value ?? preferences.value.system);
  await database.addConversation(made);
  conversations.value = [made, ...conversations.value];
  await open(made.id);
  return made;
}

export async function change(id: string, what: Partial<Conversation>): Promise<void> {
  const changed = await database.changeConversation(id, what);
  if (changed && current.value?.id === id) current.value = changed;
  await loadList();
  tellOtherTabs({ kind: "list" });
}

export async function remove(ids: readonly string[]): Promise<void> {
  await database.deleteConversations(ids);
  await loadList();
  tellOtherTabs({ kind: "list" });
}

/** Puts a message into the tree and shows its branch. */
export async function add(message: Message): Promise<boolean> {
  const isKept = await database.putMessages(message);
  if (!isKept) return false;
  show(message);
  if (current.value?.id === message.conversation) leaf.value = message.id;
  await change(message.conversation, { leaf: message.id, updated: Date.now() });
  tellOtherTabs({ kind: "messages", conversation: message.conversation });
  return true;
}

/** Takes a message without children out of the tree. */
export async function drop(message: Message): Promise<void> {
  await database.deleteMessage(message.id);
  messages.value = messages.value.filter((each) => each.id !== message.id);
  tellOtherTabs({ kind: "messages", conversation: message.conversation });
}

/** Shows a message as it is now, if its conversation is open. */
export function show(message: Message): void {
  if (current.value?.id !== message.conversation) return;
  const others = messages.value.filter((each) => each.id !== message.id);
  messages.value = [...others, message];
}

export async function store(message: Message): Promise<boolean> {
  const isKept = await database.putMessages(message);
  tellOtherTabs({ kind: "messages", conversation: message.conversation });
  return isKept;
}

/** Shows the branch through a message. */
export async function switchTo(message: Message): Promise<void> {
  leaf.value = lastUnder(messages.value, message.id);
  await change(message.conversation, { leaf: leaf.value });
}
