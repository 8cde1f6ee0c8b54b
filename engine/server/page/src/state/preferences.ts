/** What the user has chosen, kept in this browser and the same in all tabs. */
import { signal } from "@preact/signals";
import type { Typed } from "../data/settings";

export interface Preferences {
  language: "" | "en" | "zh"; // "": the browser's
  theme: "" | "light" | "dark"; // "": the system's
  model: string;
  system: string; // of new conversations
  settings: Typed;
  tools: string; // JSON
}

const PLACE = "lltool.preferences";
const DEFAULTS: Preferences = { language: "", theme: "", model: "", system: "", settings: {}, tools: "" };

export const preferences = signal<Preferences>(read());

export function setPreferences(change: Partial<Preferences>): void {
  preferences.value = { ...read(), ...change };
  localStorage.setItem(PLACE, JSON.stringify(preferences.value));
}

export function setTyped(name: string, text: string | undefined): void {
  const { [name]: _, ...others } = read().settings;
  setPreferences({ settings: text === undefined ? others : { ...others, [name]: text } });
}

function read(): Preferences {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(PLACE) ?? "{}") };
  } catch {
    return DEFAULTS;
  }
}

addEventListener("storage", (event) => {
  if (event.key === PLACE) preferences.value = read();
});
