import { signal } from "@preact/signals";

export type Open =
  { kind: "settings" } | { kind: "shortcuts" } | { kind: "question"; text: string; yes: string; onYes: () => void };

/** The window that is open above the page. */
export const dialog = signal<Open | null>(null);
/** The list of conversations: beside the page or, on a phone, above it. */
export const isListOpen = signal(matchMedia("(min-width: 900px)").matches);
export const isNarrow = signal(!matchMedia("(min-width: 900px)").matches);

matchMedia("(min-width: 900px)").addEventListener("change", ({ matches }) => {
  isNarrow.value = !matches;
  isListOpen.value = matches;
});
