/** What the browser keeps. Times are milliseconds since 1970. */
import type { Call, Result } from "./tools";

export interface Attachment {
  name: string;
  text: string;
}

/** What an answer took, as the server reported it. */
export interface Figures {
  promptTokens?: number;
  cachedTokens?: number;
  newTokens?: number;
  tokensPerSecond?: number;
  promptPerSecond?: number;
}

export type MessageState = "done" | "streaming" | "stopped" | "failed";

/** A node of a conversation's tree: an edited or regenerated message is another child of the same parent. */
export interface Message {
  id: string;
  conversation: string;
  parent: string | null;
  role: "user" | "assistant";
  text: string;
  reasoning: string;
  attachments: Attachment[];
  /** The calls of tools in an answer. */
  calls?: Call[];
  /** In place of a text of the user: what the calls of the answer before gave. */
  results?: Result[];
  created: number;
  state: MessageState;
  error: string;
  model: string;
  finish: string;
  figures: Figures;
  /** The tab that is writing the message, and when it last did: a tab that is gone writes no more. */
  owner: string;
  beat: number;
}

export interface Conversation {
  id: string;
  title: string;
  /** Whether the user has chosen the title. */
  named: boolean;
  system: string;
  created: number;
  updated: number;
  /** The last message of the branch that is shown. */
  leaf: string | null;
}

/** 96 random bits. `crypto.randomUUID` is missing where a page comes over plain HTTP from another machine. */
export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newConversation(system: string): Conversation {
  const now = Date.now();
  return { id: newId(), title: "", named: false, system, created: now, updated: now, leaf: null };
}

export function newMessage(conversation: string, parent: string | null, role: Message["role"], text: string): Message {
  return {
    id: newId(),
    conversation,
    parent,
    role,
    text,
    reasoning: "",
    attachments: [],
    created: Date.now(),
    state: "done",
    error: "",
    model: "",
    finish: "",
    figures: {},
    owner: "",
    beat: 0,
  };
}
