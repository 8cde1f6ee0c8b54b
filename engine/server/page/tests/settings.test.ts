import { expect, test } from "vitest";
import { BadSetting, parseSetting, requestSettings, SETTINGS, showSetting } from "../src/data/settings";

const named = (name: string) => SETTINGS.find((each) => each.name === name)!;

test("only what was typed goes into a request, in its own type", () => {
  expect(requestSettings({})).toEqual({});
  expect(
    requestSettings({
      temperature: " 0.5",
      top_k: "20",
      seed: "-1",
      ignore_eos: "on",
      samplers: "top_k; temperature",
      stop: "a b\n\\n\n\\\\n",
      logit_bias: "15043+1, 42-5.5",
      unknown: "1",
    }),
  ).toEqual({
    temperature: 0.5,
    top_k: 20,
    seed: -1,
    ignore_eos: true,
    samplers: ["top_k", "temperature"],
    stop: ["a b", "\n", "\\n"],
    logit_bias: { 15043: 1, 42: -5.5 },
  });
});

test.each([
  ["temperature", "warm", "bad.number"],
  ["temperature", "", "bad.number"],
  ["temperature", "-1", "bad.range"],
  ["top_p", "1.5", "bad.range"],
  ["top_k", "1.5", "bad.whole"],
  ["logit_bias", "15043", "bad.bias"],
])("%s %j is refused", (name, text, key) => {
  expect(() => parseSetting(named(name), text)).toThrow(expect.objectContaining({ key }));
  expect(() => parseSetting(named(name), text)).toThrow(BadSetting);
});

test.each([
  ["top_p", 0.949999988079071, "0.95"],
  ["seed", 4294967295, "4294967295"],
  ["dry_sequence_breakers", ["\n", ":", "\\"], "\\n\n:\n\\\\"],
  ["samplers", ["top_k", "min_p"], "top_k; min_p"],
  ["ignore_eos", false, "off"],
  ["logit_bias", { 5: 1, 6: -2 }, "5+1, 6-2"],
  ["max_tokens", undefined, ""],
])("the default of %s is shown, and reads back", (name, value, text) => {
  expect(showSetting(named(name), value)).toBe(text);
  if (text && name !== "top_p") expect(parseSetting(named(name), text)).toEqual(value);
});
