// The requests of test_clients_rival.py with OpenAI's SDK for JavaScript: prints what came back as JSON.

import { createRequire } from "node:module";

const OpenAI = createRequire(import.meta.url)("openai");
const [url, question, begun] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const messages = [{ role: "user", content: question }];
const common = { model: "smol", temperature: 0 };

const chat = await client.chat.completions.create({ ...common, messages, max_tokens: 8, logprobs: true, top_logprobs: 2 });
let streamed = "";
let usage = null;
const stream = await client.chat.completions.create({
  ...common, messages, max_tokens: 8, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
const completion = await client.completions.create({ ...common, prompt: begun, max_tokens: 8 });
const response = await client.responses.create({ ...common, input: question, max_output_tokens: 8 });
let events = "";
for await (const event of await client.responses.create({ ...common, input: question, max_output_tokens: 8, stream: true })) {
  if (event.type === "response.output_text.delta") events += event.delta;
}
const embedding = await client.embeddings.create({ model: "smol", input: question });
let status = 0;
try {
  await client.chat.completions.create({ ...common, messages: [] });
} catch (error) {
  status = error instanceof OpenAI.BadRequestError ? error.status : -1;
}
console.log(JSON.stringify({
  chat: chat.choices[0].message.content,
  logprob: chat.choices[0].logprobs.content[0].logprob,
  top: chat.choices[0].logprobs.content[0].top_logprobs.length,
  streamed,
  generated: usage.completion_tokens,
  completion: completion.choices[0].text,
  response: response.output_text,
  events,
  embedding: embedding.data[0].embedding.slice(0, 4),
  models: (await client.models.list()).data.map((model) => model.id),
  status,
}));
