/** The settings of a request: what the user has typed, as texts, and the values that they stand for. */
import table from "./settings.json";

export type Kind = "number" | "whole" | "seed" | "flag" | "steps" | "texts" | "biases";

export interface Setting {
  name: string;
  group: string;
  kind: Kind;
  low?: number;
  high?: number;
  slider?: number[];
}

export const SETTINGS = table as Setting[];
export const GROUPS = [...new Set(SETTINGS.map((each) => each.group))];

/** What the user has typed, by the setting's name. A setting that is not here is the server's default. */
export type Typed = Record<string, string>;

/** Why a text is not a value: the key of the sentence and what it names. */
export class BadSetting extends Error {
  constructor(
    readonly key: "bad.number" | "bad.whole" | "bad.range" | "bad.bias",
    readonly setting: Setting,
  ) {
    super(`${setting.name}: ${key}`);
  }
}

/** The value of a text as the request has it. Raises BadSetting. */
export function parseSetting(setting: Setting, typed: string): unknown {
  const text = typed.trim();
  switch (setting.kind) {
    case "flag":
      return text === "on";
    case "steps":
      return text.split(/[;,\s]+/).filter(Boolean);
    case "texts":
      return typed
        .split("\n")
        .filter((line) => line !== "")
        .map(unescape);
    case "biases":
      return Object.fromEntries(
        text
          .split(/[,\s]+/)
          .filter(Boolean)
          .map((part) => parseBias(setting, part)),
      );
    default:
      return parseNumber(setting, text);
  }
}

function parseNumber(setting: Setting, text: string): number {
  const value = text === "" ? NaN : Number(text);
  if (!Number.isFinite(value)) throw new BadSetting("bad.number", setting);
  if (setting.kind !== "number" && !Number.isInteger(value)) throw new BadSetting("bad.whole", setting);
  if (value < (setting.low ?? -Infinity) || value > (setting.high ?? Infinity))
    throw new BadSetting("bad.range", setting);
  return value;
}

function parseBias(setting: Setting, part: string): [string, number] {
  const found = /^(\d+)([+-]\d+(?:\.\d+)?)$/.exec(part);
  if (!found) throw new BadSetting("bad.bias", setting);
  return [found[1]!, Number(found[2])];
}

/** The texts of a list are typed one a line, so that a line break, a tab or a backslash is written as in C. */
function unescape(line: string): string {
  return line.replace(/\\([nt\\])/g, (_, letter: string) => ({ n: "\n", t: "\t" })[letter] ?? "\\");
}

function escape(text: string): string {
  return text.replace(/[\\\n\t]/g, (letter) => ({ "\n": "\\n", "\t": "\\t" })[letter] ?? "\\\\");
}

/** A value in the form that `parseSetting` reads. */
export function showSetting(setting: Setting, value: unknown): string {
  if (value === undefined || value === null) return "";
  switch (setting.kind) {
    case "flag":
      return value === true ? "on" : "off";
    case "steps":
      return Array.isArray(value) ? value.join("; ") : String(value);
    case "texts":
      return Array.isArray(value) ? value.map(String).map(escape).join("\n") : String(value);
    case "biases":
      return typeof value === "object"
        ? Object.entries(value)
            .map(([id, bias]) => `${id}${bias < 0 ? "" : "+"}${bias}`)
            .join(", ")
        : "";
    default:
      return typeof value === "number" && !Number.isInteger(value) ? shortest(value) : String(value);
  }
}

/** Some servers keep their defaults as 32-bit numbers: 0.949999988079071 is 0.95. */
function shortest(value: number): string {
  return String(Number(value.toPrecision(6)));
}

/** The settings of a request, of what is not left at the server's default. Raises BadSetting. */
export function requestSettings(typed: Typed): Record<string, unknown> {
  const known = SETTINGS.filter((each) => typed[each.name] !== undefined);
  return Object.fromEntries(known.map((each) => [each.name, parseSetting(each, typed[each.name]!)]));
}
