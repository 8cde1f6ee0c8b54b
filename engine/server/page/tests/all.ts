/** `Array.fromAsync`, which Node.js has from version 22 on. */
export async function all<Each>(items: AsyncIterable<Each>): Promise<Each[]> {
  const found: Each[] = [];
  for await (const each of items) found.push(each);
  return found;
}
