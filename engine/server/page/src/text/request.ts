/** A branch of a conversation as the messages of a request. */
import type { ChatMessage } from "../api/client";
import type { Attachment, Message } from "../data/types";
import { splitThinking } from "./thinking";

/**
 * Reasoning is left out, and so are answers of which nothing came, and calls that have no results. Two user messages in
 * a row become one.
 */
export function requestMessages(system: string, path: readonly Message[]): ChatMessage[] {
  const messages: ChatMessage[] = system.trim() ? [{ role: "system", content: system }] : [];
  for (const [at, each] of path.entries()) {
    if (each.calls?.length && path[at + 1]?.results) {
      const calls = each.calls.map(({ id, ...called }) => ({ id, type: "function" as const, function: called }));
      messages.push({ role: "assistant", content: splitThinking(each.text).answer, tool_calls: calls });
      continue;
    }
    if (each.results) {
      for (const { id, text } of each.results) messages.push({ role: "tool", content: text, tool_call_id: id });
      continue;
    }
    const content =
      each.role === "user" ? withAttachments(each.text, each.attachments) : splitThinking(each.text).answer;
    const last = messages.at(-1);
    if (content === "") continue;
    if (each.role === "user" && last?.role === "user") last.content += `\n\n${content}`;
    else messages.push({ role: each.role, content });
  }
  return messages;
}

/** Each file stands in a block of code before the text, under its name. */
export function withAttachments(text: string, attachments: readonly Attachment[]): string {
  const parts = attachments.map(({ name, text: content }) => {
    const longest = Math.max(2, ...(content.match(/`+/g) ?? []).map((run) => run.length));
    const fence = "`".repeat(longest + 1);
    return `${name}\n${fence}\n${content.replace(/\n$/, "")}\n${fence}`;
  });
  return [...parts, text].filter(Boolean).join("\n\n");
}

/** The first line of a message, as the title of its conversation. */
export function titleOf(text: string, length = 60): string {
  const line =
    text
      .split("\n")
      .map((each) => each.replace(/^[#>*\-\s]+/, "").trim())
      .find(Boolean) ?? "";
  const letters = [...line];
  return letters.length <= length
    ? line
    : `${letters
        .slice(0, length - 1)
        .join("")
        .trimEnd()}…`;
}
