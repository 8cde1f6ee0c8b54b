/** Server-sent events, as the HTML standard defines their lines. */

/** The data of each event. Bytes may be cut anywhere, also within a character. */
export async function* eventsOf(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data: string[] = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += decoder.decode(value, { stream: !done });
      // A "\r" at the end may be half of "\r\n".
      const lines = rest.split(/\r\n|\n|\r(?=[^])/);
      rest = lines.pop() ?? "";
      if (done && rest) {
        lines.push(rest.replace(/\r$/, ""), "");
        rest = "";
      }
      for (const line of lines) {
        if (line === "") {
          if (data.length > 0) yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
      if (done) {
        if (data.length > 0) yield data.join("\n");
        return;
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}
