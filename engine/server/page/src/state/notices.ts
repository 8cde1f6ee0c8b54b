/** Short messages: seen at the foot of the page, and heard by screen readers. */
import { signal } from "@preact/signals";

export interface Notice {
  text: string;
  isError: boolean;
}

export const notice = signal<Notice | null>(null);
/** What only a screen reader says. */
export const announcement = signal("");

let timer = 0;

export function tell(text: string, isError = false): void {
  notice.value = { text, isError };
  clearTimeout(timer);
  timer = window.setTimeout(() => (notice.value = null), isError ? 10_000 : 4_000);
}

export function announce(text: string): void {
  announcement.value = announcement.value === text ? `${text}\u00a0` : text; // the same text again is a change too
}
