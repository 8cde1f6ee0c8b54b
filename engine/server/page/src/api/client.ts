/** The server's interface, as far as the page uses it. Every address is below the page's own. */
import type { CallPart } from "../data/tools";
import { eventsOf } from "./sse";

export type Failure = "unreachable" | "key" | "busy" | "refused" | "cut" | "server";

/** What went wrong; `message` is the server's own sentence, where it gave one. */
export class ServerError extends Error {
  constructor(
    readonly failure: Failure,
    message = "",
    readonly status = 0,
    readonly retryAfter = 0,
  ) {
    super(message);
  }
}

export interface ChatMessage {
  role: "system" | "user" | "assistant" | "tool";
  content: string;
  tool_calls?: { id: string; type: "function"; function: { name: string; arguments: string } }[];
  tool_call_id?: string;
}

export interface ChatRequest {
  model?: string;
  messages: ChatMessage[];
  [setting: string]: unknown;
}

export interface Usage {
  prompt_tokens?: number;
  completion_tokens?: number;
  prompt_tokens_details?: { cached_tokens?: number } | null;
}

export interface Timings {
  prompt_n?: number;
  cache_n?: number;
  prompt_per_second?: number;
  predicted_n?: number;
  predicted_per_second?: number;
}

/** What one event of an answer adds. */
export interface Part {
  text: string;
  reasoning: string;
  calls: CallPart[];
  finish: string;
  model: string;
  usage?: Usage;
  timings?: Timings;
}

export interface ServerProperties {
  /** The most tokens of a conversation; 0: not known. */
  context: number;
  /** The server's defaults of the settings that a request may give. */
  defaults: Record<string, unknown>;
}

export interface ServedModel {
  name: string;
  /** A server of several models loads one when it is first used. */
  isLoaded: boolean;
}

export async function listModels(key: string): Promise<ServedModel[]> {
  const answer = (await getJson("v1/models", key)) as { data?: { id?: unknown; status?: { value?: unknown } }[] };
  return (answer.data ?? []).map(({ id, status }) => ({ name: String(id), isLoaded: status?.value !== "unloaded" }));
}

export async function readProperties(key: string, model: string): Promise<ServerProperties> {
  const path = model ? `props?model=${encodeURIComponent(model)}` : "props";
  const answer = (await getJson(path, key)) as {
    default_generation_settings?: { n_ctx?: unknown; params?: Record<string, unknown> };
    n_ctx?: unknown;
  };
  const settings = answer.default_generation_settings;
  const context = settings?.n_ctx ?? answer.n_ctx;
  return { context: typeof context === "number" ? context : 0, defaults: settings?.params ?? {} };
}

/** Streams an answer. It ends with the server's last event; an answer that breaks off before raises ServerError. */
export async function* chat(request: ChatRequest, key: string, signal: AbortSignal): AsyncGenerator<Part> {
  const response = await ask("v1/chat/completions", key, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.body) throw new ServerError("cut");
  let hasFinished = false;
  try {
    for await (const data of eventsOf(response.body)) {
      if (data === "[DONE]") return;
      const part = readPart(data);
      hasFinished ||= part.finish !== "";
      yield part;
    }
  } catch (error) {
    if (error instanceof ServerError || signal.aborted) throw error;
    throw new ServerError("cut"); // the connection broke
  }
  if (!hasFinished) throw new ServerError("cut");
}

export function readPart(data: string): Part {
  let event: {
    model?: string;
    choices?: {
      delta?: {
        content?: string | null;
        reasoning_content?: string | null;
        tool_calls?: { index?: number; id?: string; function?: { name?: string; arguments?: string } }[] | null;
      };
      finish_reason?: string | null;
    }[];
    usage?: Usage | null;
    timings?: Timings | null;
    error?: { message?: string; code?: unknown } | string;
  };
  try {
    event = JSON.parse(data);
  } catch {
    throw new ServerError("server", data.slice(0, 200));
  }
  if (event.error) {
    throw new ServerError("server", typeof event.error === "string" ? event.error : (event.error.message ?? ""));
  }
  const choice = event.choices?.[0];
  return {
    text: choice?.delta?.content ?? "",
    reasoning: choice?.delta?.reasoning_content ?? "",
    calls: (choice?.delta?.tool_calls ?? []).map(({ index, id, function: called }) => ({
      index: index ?? 0,
      id: id ?? "",
      name: called?.name ?? "",
      arguments: called?.arguments ?? "",
    })),
    finish: choice?.finish_reason ?? "",
    model: event.model ?? "",
    usage: event.usage ?? undefined,
    timings: event.timings ?? undefined,
  };
}

async function getJson(path: string, key: string): Promise<unknown> {
  const response = await ask(path, key, {});
  try {
    return await response.json();
  } catch {
    throw new ServerError("server", path, response.status);
  }
}

async function ask(path: string, key: string, options: RequestInit): Promise<Response> {
  const headers = new Headers(options.headers);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  let response: Response;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      ...options,
      headers,
      credentials: "omit",
      cache: "no-store",
    });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ServerError("unreachable");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response: Response): Promise<ServerError> {
  const { status } = response;
  const message = messageOf(await response.text().catch(() => "")) || response.statusText;
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  if (status === 401) return new ServerError("key", message, status);
  if (status === 503 || status === 429) return new ServerError("busy", message, status, retryAfter);
  return new ServerError(status < 500 ? "refused" : "server", message, status);
}

/** The sentence of an error in OpenAI's form, or of Starlette's. */
function messageOf(body: string): string {
  try {
    const { error, detail } = JSON.parse(body);
    const message = error?.message ?? error ?? detail;
    return typeof message === "string" ? message : "";
  } catch {
    return body.length <= 300 && !body.trimStart().startsWith("<") ? body : "";
  }
}
