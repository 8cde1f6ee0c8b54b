/**
 * Conversations in IndexedDB. Each message is a record of its own, written only by the tab that makes it, and a
 * conversation is changed by reading and writing it in one transaction: two tabs do not undo each other's work.
 */
import { openDB, type DBSchema, type IDBPDatabase } from "idb";
import type { Conversation, Message } from "./types";

interface Schema extends DBSchema {
  conversations: { key: string; value: Conversation };
  messages: { key: string; value: Message; indexes: { conversation: string } };
}

const NAME = "lltool";
let opened: Promise<IDBPDatabase<Schema>> | undefined;

function database(): Promise<IDBPDatabase<Schema>> {
  opened ??= openDB<Schema>(NAME, 1, {
    upgrade(db) {
      db.createObjectStore("conversations", { keyPath: "id" });
      db.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
    },
    blocking(_from, _to, event) {
      (event.target as IDBDatabase).close(); // another tab has a newer page
      opened = undefined;
    },
    terminated() {
      opened = undefined;
    },
  });
  return opened;
}

/** Newest first. */
export async function listConversations(): Promise<Conversation[]> {
  const all = await (await database()).getAll("conversations");
  return all.sort((a, b) => b.updated - a.updated);
}

export async function conversation(id: string): Promise<Conversation | undefined> {
  return (await database()).get("conversations", id);
}

export async function messagesOf(conversation: string): Promise<Message[]> {
  return (await database()).getAllFromIndex("messages", "conversation", conversation);
}

export async function allMessages(): Promise<Message[]> {
  return (await database()).getAll("messages");
}

export async function addConversation(conversation: Conversation): Promise<void> {
  await (await database()).add("conversations", conversation);
}

/** Changes the conversation as it is stored now. Gives undefined if another tab has deleted it. */
export async function changeConversation(id: string, change: Partial<Conversation>): Promise<Conversation | undefined> {
  const transaction = (await database()).transaction("conversations", "readwrite");
  const found = await transaction.store.get(id);
  const changed = found && { ...found, ...change, id };
  if (changed) await transaction.store.put(changed);
  await transaction.done;
  return changed;
}

/** Writes messages, unless their conversation has been deleted. */
export async function putMessages(...messages: Message[]): Promise<boolean> {
  const transaction = (await database()).transaction(["conversations", "messages"], "readwrite");
  let isKept = true;
  for (const message of messages) {
    if (await transaction.objectStore("conversations").getKey(message.conversation)) {
      await transaction.objectStore("messages").put(message);
    } else {
      isKept = false;
    }
  }
  await transaction.done;
  return isKept;
}

export async function deleteConversations(ids: readonly string[]): Promise<void> {
  const transaction = (await database()).transaction(["conversations", "messages"], "readwrite");
  for (const id of ids) {
    await transaction.objectStore("conversations").delete(id);
    const keys = await transaction.objectStore("messages").index("conversation").getAllKeys(id);
    for (const key of keys) await transaction.objectStore("messages").delete(key);
  }
  await transaction.done;
}

export async function deleteMessage(id: string): Promise<void> {
  await (await database()).delete("messages", id);
}

/** Adds what is not there yet, in one transaction; what is there stays as it is. Gives the number of messages added. */
export async function mergeIn(conversations: readonly Conversation[], messages: readonly Message[]): Promise<number> {
  const transaction = (await database()).transaction(["conversations", "messages"], "readwrite");
  let added = 0;
  for (const each of conversations) {
    if (!(await transaction.objectStore("conversations").getKey(each.id))) {
      await transaction.objectStore("conversations").add(each);
    }
  }
  for (const each of messages) {
    if (await transaction.objectStore("messages").getKey(each.id)) continue;
    await transaction.objectStore("messages").add(each);
    added++;
  }
  await transaction.done;
  return added;
}
