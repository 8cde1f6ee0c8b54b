/** Sending messages and receiving answers. */
import { effect } from "@preact/signals";
import { chat, ServerError, type Part } from "../api/client";
import { requestSettings } from "../data/settings";
import { addCalls, parseTools, type Result } from "../data/tools";
import { pathTo } from "../data/tree";
import { newMessage, type Attachment, type Figures, type Message } from "../data/types";
import * as database from "../data/database";
import { t } from "../language";
import { requestMessages, titleOf } from "../text/request";
import * as chats from "./chats";
import { announce, tell } from "./notices";
import { preferences } from "./preferences";
import { apiKey, connect, describeFailure, isReady, model, properties, wantsKey } from "./server";

const SHOW_EVERY = 50; // milliseconds
const SAVE_EVERY = 400;
const BEAT_EVERY = 1_000;

const stops = new Map<string, AbortController>();

/** Sends a message after `parent`. Raises BadSetting and BadTools before anything is stored. */
export async function send(text: string, attachments: Attachment[], parent: string | null): Promise<void> {
  const settings = requestSettings(preferences.value.settings);
  parseTools(preferences.value.tools);
  const conversation = await chats.ensureConversation();
  const message = { ...newMessage(conversation.id, parent, "user", text), attachments };
  if (!conversation.named && !conversation.title) {
    await chats.change(conversation.id, { title: titleOf(text) || attachments[0]?.name || "" });
  }
  if (!(await chats.add(message))) return;
  chats.sentCount.value++;
  await answer(message, settings);
}

/** Sends what the calls of an answer gave. Raises BadSetting and BadTools. */
export async function answerCalls(message: Message, results: Result[]): Promise<void> {
  const settings = requestSettings(preferences.value.settings);
  parseTools(preferences.value.tools);
  const given = { ...newMessage(message.conversation, message.id, "user", ""), results };
  if (!(await chats.add(given))) return;
  chats.sentCount.value++;
  await answer(given, settings);
}

/** Another answer to the same message, in place of one of which nothing came. Raises BadSetting. */
export async function regenerate(message: Message): Promise<void> {
  const settings = requestSettings(preferences.value.settings);
  const asked = chats.messages.value.find((each) => each.id === message.parent);
  if (!asked) return;
  if (message.state === "failed" && !message.text && !message.reasoning) await chats.drop(message);
  await answer(asked, settings);
}

/** Another version of a user's message, with an answer: a new branch. Raises BadSetting. */
export function edit(message: Message, text: string): Promise<void> {
  return send(text, message.attachments, message.parent);
}

/** Stops the answer that is shown, also where another tab receives it. */
export function stop(): void {
  const last = chats.path.value.at(-1);
  if (!last || last.state !== "streaming") return;
  if (stops.has(last.id)) stops.get(last.id)?.abort();
  else chats.tellOtherTabs({ kind: "stop", message: last.id });
}

effect(() => stops.get(chats.stopRequested.value)?.abort());

async function answer(asked: Message, settings: Record<string, unknown>): Promise<void> {
  const conversation = await database.conversation(asked.conversation);
  if (!conversation) return;
  const history = pathTo(await database.messagesOf(conversation.id), asked.id);
  const request = {
    ...settings,
    model: model.value || undefined,
    messages: requestMessages(conversation.system, history),
    tools: parseTools(preferences.value.tools),
  };
  const message: Message = {
    ...newMessage(conversation.id, asked.id, "assistant", ""),
    state: "streaming",
    model: model.value,
    owner: chats.tab,
    beat: Date.now(),
  };
  const stopper = new AbortController();
  stops.set(message.id, stopper);
  setRunning(message);
  try {
    if (!(await chats.add(message))) return;
    announce(t("say.answering"));
    await new Receiver(message, stopper).receive(chat(request, apiKey.value, stopper.signal));
  } finally {
    stops.delete(message.id);
  }
}

function setRunning(message: Message, isOver = false): void {
  const next = new Map(chats.running.value);
  if (isOver) next.delete(message.id);
  else next.set(message.id, message);
  chats.running.value = next;
}

/** Takes an answer as it comes: shows it some times a second, and stores it so that a reload loses next to nothing. */
class Receiver {
  private first = 0;
  private parts = 0;
  private shown = 0;
  private showTimer = 0;
  private isDirty = false;
  private saved = Date.now();
  private saving: Promise<unknown> = Promise.resolve();

  constructor(
    private message: Message,
    private readonly stopper: AbortController,
  ) {}

  async receive(parts: AsyncGenerator<Part>): Promise<void> {
    const saver = setInterval(() => this.save(), SAVE_EVERY);
    const leave = () => this.save(true);
    addEventListener("pagehide", leave);
    let end: Partial<Message>;
    try {
      for await (const part of parts) this.take(part);
      end = { state: "done" };
    } catch (error) {
      end = this.endOf(error);
    } finally {
      clearInterval(saver);
      clearTimeout(this.showTimer);
      removeEventListener("pagehide", leave);
    }
    this.message = { ...this.message, ...end };
    setRunning(this.message, true);
    chats.show(this.message);
    await this.saving;
    await chats.store(this.message).catch(tellStorage);
    announce(
      t(this.message.state === "done" ? "say.done" : this.message.state === "stopped" ? "say.stopped" : "say.failed"),
    );
    if (!isReady.value || !properties.value.context) void connect(); // the model may have been loaded for this answer
  }

  private take(part: Part): void {
    if (part.text || part.reasoning || part.calls.length) {
      this.first ||= Date.now();
      this.parts++;
      this.message.figures = this.estimate();
    }
    this.message = {
      ...this.message,
      text: this.message.text + part.text,
      reasoning: this.message.reasoning + part.reasoning,
      ...(part.calls.length ? { calls: addCalls(this.message.calls ?? [], part.calls) } : {}),
      finish: part.finish || this.message.finish,
      model: part.model || this.message.model,
      figures: { ...this.message.figures, ...figuresOf(part) },
    };
    this.isDirty = true;
    const wait = SHOW_EVERY - (Date.now() - this.shown);
    if (!this.showTimer) this.showTimer = window.setTimeout(() => this.show(), Math.max(0, wait));
  }

  /** Most servers send an event for each token; their own figures come with the last one. */
  private estimate(): Figures {
    const seconds = (Date.now() - this.first) / 1000;
    const tokensPerSecond = this.first && seconds > 0.5 ? (this.parts - 1) / seconds : undefined;
    return { ...this.message.figures, newTokens: this.parts, tokensPerSecond };
  }

  private show(): void {
    this.showTimer = 0;
    this.shown = Date.now();
    setRunning(this.message);
    chats.show(this.message);
  }

  private save(isForced = false): void {
    const now = Date.now();
    if (!isForced && !this.isDirty && now - this.saved < BEAT_EVERY) return;
    this.isDirty = false;
    this.saved = now;
    this.message = { ...this.message, beat: now };
    this.saving = chats.store(this.message).then((isKept) => isKept || this.stopper.abort(), tellStorage);
  }

  private endOf(error: unknown): Partial<Message> {
    if (this.stopper.signal.aborted) return { state: "stopped" };
    if (!(error instanceof ServerError))
      return { state: "failed", error: t("error.unexpected", { reason: String(error) }) };
    if (error.failure === "key") wantsKey.value = true;
    return { state: "failed", error: describeFailure(error) };
  }
}

function tellStorage(error: unknown): void {
  tell(t("error.storage", { reason: String(error) }), true);
}

function figuresOf({ usage, timings }: Part): Figures {
  const found: Figures = {
    promptTokens:
      usage?.prompt_tokens ?? (timings?.prompt_n !== undefined ? timings.prompt_n + (timings.cache_n ?? 0) : undefined),
    cachedTokens: usage?.prompt_tokens_details?.cached_tokens ?? timings?.cache_n,
    newTokens: usage?.completion_tokens ?? timings?.predicted_n,
    tokensPerSecond: timings?.predicted_per_second,
    promptPerSecond: timings?.prompt_per_second,
  };
  return Object.fromEntries(Object.entries(found).filter(([, value]) => value !== undefined));
}
