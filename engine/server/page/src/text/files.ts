/** Text files that go with a message. */
import type { Attachment } from "../data/types";

export const LARGEST = 1 << 20; // bytes of a file: more than a context of 262,144 tokens holds

export class NotText extends Error {
  constructor(
    readonly key: "file.too_large" | "file.not_text",
    readonly file: string,
  ) {
    super(`${file}: ${key}`);
  }
}

/** Reads UTF-8, or UTF-16 with a byte order mark. Raises NotText. */
export async function readTextFile(file: File): Promise<Attachment> {
  if (file.size > LARGEST) throw new NotText("file.too_large", file.name);
  const bytes = new Uint8Array(await file.arrayBuffer());
  const encoding =
    bytes[0] === 0xff && bytes[1] === 0xfe ? "utf-16le" : bytes[0] === 0xfe && bytes[1] === 0xff ? "utf-16be" : "utf-8";
  let text: string;
  try {
    text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
  } catch {
    throw new NotText("file.not_text", file.name);
  }
  if (text.includes("\0")) throw new NotText("file.not_text", file.name);
  return { name: file.name, text: text.replace(/\r\n/g, "\n") };
}
