/** The first place of a word, with what stands around it. */
export function excerptAround(text: string, word: string, around = 40): string {
  const flat = text.replace(/\s+/g, " ");
  const at = Math.max(0, flat.toLowerCase().indexOf(word));
  const start = Math.max(0, at - around);
  const end = at + word.length + around;
  return `${start > 0 ? "…" : ""}${flat.slice(start, end)}${end < flat.length ? "…" : ""}`;
}
