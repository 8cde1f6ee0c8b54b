/** The tools that the model may call: what the user has typed, and what is sent. */

/** A call of a tool in an answer; `arguments` is JSON as the model has written it. */
export interface Call {
  id: string;
  name: string;
  arguments: string;
}

/** What the user has answered to a call. */
export interface Result {
  id: string;
  name: string;
  text: string;
}

/** The list of tools is not one. */
export class BadTools extends Error {}

/** The tools of a request, of the JSON that was typed; none if nothing was. Raises BadTools. */
export function parseTools(typed: string): unknown[] | undefined {
  if (!typed.trim()) return undefined;
  let value: unknown;
  try {
    value = JSON.parse(typed);
  } catch (error) {
    throw new BadTools(error instanceof Error ? error.message : String(error));
  }
  const list = Array.isArray(value) ? value : [value];
  for (const each of list) {
    const name = each?.function?.name ?? each?.name;
    if (typeof name !== "string" || !name) throw new BadTools(JSON.stringify(each)?.slice(0, 80) ?? "");
  }
  const full = list.map((each) => (each.function ? each : { type: "function", function: each }));
  return full.length ? full : undefined;
}

/** The calls of an answer with what one more event adds to them. */
export function addCalls(calls: readonly Call[], parts: readonly CallPart[]): Call[] {
  const next = [...calls];
  for (const { index, id, name, arguments: text } of parts) {
    const call = next[index] ?? { id: "", name: "", arguments: "" };
    next[index] = { id: call.id || id, name: call.name || name, arguments: call.arguments + text };
  }
  return next;
}

export interface CallPart {
  index: number;
  id: string;
  name: string;
  arguments: string;
}

/** JSON with line breaks, where it is JSON. */
export function showArguments(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
