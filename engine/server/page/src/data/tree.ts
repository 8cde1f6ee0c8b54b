/** The branches of a conversation. */
import type { Message } from "./types";

export function byAge(a: Message, b: Message): number {
  return a.created - b.created || (a.id < b.id ? -1 : 1);
}

/** The messages from the first to `leaf`. A leaf that is not there gives the branch of the newest message. */
export function pathTo(messages: readonly Message[], leaf: string | null): Message[] {
  const byId = new Map(messages.map((message) => [message.id, message]));
  const newest = messages.reduce<Message | undefined>(
    (best, each) => (best && byAge(best, each) > 0 ? best : each),
    undefined,
  );
  const path: Message[] = [];
  let at = (leaf !== null ? byId.get(leaf) : undefined) ?? newest;
  while (at && path.length <= messages.length) {
    path.push(at);
    at = at.parent === null ? undefined : byId.get(at.parent);
  }
  return path.reverse();
}

/** The message and what stands at the same place on other branches, oldest first. */
export function siblingsOf(messages: readonly Message[], message: Message): Message[] {
  return messages.filter((each) => each.parent === message.parent).sort(byAge);
}

/** The last message of the branch through `id` that goes on with the newest message each time. */
export function lastUnder(messages: readonly Message[], id: string): string {
  let at = id;
  for (let step = 0; step < messages.length; step++) {
    const next = messages
      .filter((each) => each.parent === at)
      .sort(byAge)
      .at(-1);
    if (!next) break;
    at = next.id;
  }
  return at;
}
