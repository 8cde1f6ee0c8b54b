/** Reasoning that a model writes into its answer, between <think> and </think>. */

const OPEN = "<think>";
const CLOSE = "</think>";

export interface Parts {
  reasoning: string;
  answer: string;
  /** Whether the reasoning has not ended yet. */
  isOpen: boolean;
}

/** A template may have written <think> itself: then the text begins within the reasoning, and has only </think>. */
export function splitThinking(text: string): Parts {
  const start = text.trimStart();
  if (start !== "" && OPEN.startsWith(start)) return { reasoning: "", answer: "", isOpen: true };
  const isOpened = start.startsWith(OPEN);
  const body = isOpened ? start.slice(OPEN.length) : text;
  const end = body.indexOf(CLOSE);
  if (end >= 0 && (isOpened || isOutsideCode(body, end))) {
    return { reasoning: body.slice(0, end).trim(), answer: body.slice(end + CLOSE.length).trimStart(), isOpen: false };
  }
  return isOpened
    ? { reasoning: body.trimStart(), answer: "", isOpen: true }
    : { reasoning: "", answer: text, isOpen: false };
}

/** An answer may quote the tag as code. */
function isOutsideCode(text: string, at: number): boolean {
  return (text.slice(0, at).match(/`/g)?.length ?? 0) % 2 === 0;
}
