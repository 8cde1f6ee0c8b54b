/** Finding conversations by what is in them. */
import * as database from "../data/database";
import type { Conversation } from "../data/types";
import { excerptAround } from "../text/excerpt";
import { conversations } from "./chats";

export interface Found {
  conversation: Conversation;
  excerpt?: string;
}

/** The conversations of which the title or one message has all the words, with the place in the message. */
export async function findConversations(text: string): Promise<Found[]> {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const hasAll = (where: string) => words.every((word) => where.toLowerCase().includes(word));
  const hits = new Map<string, string>();
  for (const message of await database.allMessages()) {
    if (!hits.has(message.conversation) && hasAll(message.text)) {
      hits.set(message.conversation, excerptAround(message.text, words[0]!));
    }
  }
  return conversations.value
    .filter((each) => hasAll(each.title) || hits.has(each.id))
    .map((conversation) => ({ conversation, excerpt: hits.get(conversation.id) }));
}
