// @vitest-environment jsdom
import { expect, test } from "vitest";
import { GROUPS, SETTINGS } from "../src/data/settings";
import { t } from "../src/language";
import en from "../src/language/en.json";
import zh from "../src/language/zh.json";
import { setPreferences } from "../src/state/preferences";

const holes = (text: string) => (text.match(/\{\w+\}/g) ?? []).sort();

test.each(Object.keys(en) as (keyof typeof en)[])("%s has the same values in both languages", (key) => {
  expect(holes(zh[key])).toEqual(holes(en[key]));
  expect(zh[key]).not.toBe("");
});

test("every setting and group has its words", () => {
  const keys = [
    ...SETTINGS.flatMap(({ name }) => [`setting.${name}`, `setting.${name}.help`]),
    ...GROUPS.map((each) => `group.${each}`),
  ];
  expect(keys.filter((key) => !(key in en))).toEqual([]);
});

test("values are put in, numbers in the language's way", () => {
  setPreferences({ language: "en" });
  expect(t("context.used", { used: 1234, all: 8192 })).toBe("1,234 of 8,192 tokens of the context are used");
  setPreferences({ language: "zh" });
  expect(t("context.used", { used: 1234, all: 8192 })).toBe("上下文共 8,192 个词元，已用 1,234 个");
});
