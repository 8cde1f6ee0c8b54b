/** The page's texts. */
import { computed } from "@preact/signals";
import { preferences } from "../state/preferences";
import en from "./en.json";
import zh from "./zh.json";

export type Key = keyof typeof en;
const TEXTS = { en, zh } satisfies Record<string, Record<Key, string>>;
export type Language = keyof typeof TEXTS;
export const LANGUAGES: Record<Language, string> = { en: "English", zh: "中文" };

/** The language that the user has chosen or, without a choice, the browser's. */
export const language = computed<Language>(() => {
  const chosen = preferences.value.language;
  if (chosen) return chosen;
  return navigator.languages
    .find((each) => /^(en|zh)\b/i.test(each))
    ?.toLowerCase()
    .startsWith("zh")
    ? "zh"
    : "en";
});

/** A text, with `{name}` replaced by the value of that name. */
export function t(key: Key, values: Record<string, string | number> = {}): string {
  const text: string = TEXTS[language.value][key];
  return text.replace(/\{(\w+)\}/g, (whole, name: string) => (name in values ? showValue(values[name]!) : whole));
}

function showValue(value: string | number): string {
  return typeof value === "number" ? showNumber(value) : value;
}

export function showNumber(value: number, digits = 0): string {
  return value.toLocaleString(language.value, { maximumFractionDigits: digits, minimumFractionDigits: digits });
}
