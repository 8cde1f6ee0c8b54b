import { signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { Attachment } from "../data/types";
import { t } from "../language";
import { send, stop } from "../state/answers";
import { current, isAnswering, path } from "../state/chats";
import { tell } from "../state/notices";
import { chooseModel, model, models } from "../state/server";
import { NotText, readTextFile } from "../text/files";
import { attempt } from "./attempt";
import { ContextMeter } from "./ContextMeter";
import { Icon } from "./Icon";
import { IconButton } from "./parts";

const DRAFT_PLACE = "lltool.draft";
const draft = signal(sessionStorage.getItem(DRAFT_PLACE) ?? "");
const attachments = signal<Attachment[]>([]);
const field = { current: null as HTMLTextAreaElement | null };

export function focusComposer(): void {
  field.current?.focus();
}

export function setDraft(text: string): void {
  draft.value = text;
  sessionStorage.setItem(DRAFT_PLACE, text); // it outlasts a reload
}

export async function attachFiles(files: Iterable<File>): Promise<void> {
  for (const file of files) {
    try {
      const read = await readTextFile(file);
      attachments.value = [...attachments.value, read];
    } catch (error) {
      if (!(error instanceof NotText)) throw error;
      tell(t(error.key, { name: error.file }), true);
    }
  }
  focusComposer();
}

async function submit(): Promise<void> {
  const text = draft.value.trim();
  const files = attachments.value;
  if (isAnswering.value || (!text && files.length === 0)) return;
  setDraft("");
  attachments.value = [];
  const isDone = await attempt(() => send(text, files, path.value.at(-1)?.id ?? null));
  if (isDone || draft.value) return;
  setDraft(text);
  attachments.value = files;
}

/** On a phone Enter starts a new line, as its keyboard has no Shift+Enter. */
function isSend(event: KeyboardEvent): boolean {
  const isPhone = matchMedia("(hover: none) and (pointer: coarse)").matches;
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && (!isPhone || event.ctrlKey || event.metaKey);
}

interface ComposerProps {
  onEditLast: () => void;
}

export function Composer({ onEditLast }: ComposerProps) {
  const chooser = useRef<HTMLInputElement>(null);
  const isEmpty = !draft.value.trim() && attachments.value.length === 0;
  useEffect(() => focusUnlessPhone(), [current.value?.id]);
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        void submit();
      }}
    >
      {attachments.value.length > 0 && (
        <ul class="chips">
          {attachments.value.map((each, index) => (
            <li key={index} class="chip">
              <Icon name="file" size={15} />
              <span>{each.name}</span>
              <IconButton
                icon="close"
                size={14}
                label={t("attach.remove", { name: each.name })}
                onClick={() => (attachments.value = attachments.value.filter((_, at) => at !== index))}
              />
            </li>
          ))}
        </ul>
      )}
      <textarea
        ref={(element) => {
          field.current = element;
        }}
        value={draft.value}
        rows={1}
        aria-label={t("message")}
        placeholder={t("message.placeholder")}
        enterkeyhint="send"
        onInput={(event) => setDraft(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (isSend(event)) {
            event.preventDefault();
            void submit();
          } else if (event.key === "ArrowUp" && draft.value === "") {
            event.preventDefault();
            onEditLast();
          }
        }}
        onPaste={(event) => {
          const files = [...(event.clipboardData?.files ?? [])];
          if (files.length === 0) return;
          event.preventDefault();
          void attachFiles(files);
        }}
      />
      <div class="composer-foot">
        <input
          ref={chooser}
          type="file"
          multiple
          hidden
          tabIndex={-1}
          aria-hidden="true"
          onChange={(event) => {
            void attachFiles([...(event.currentTarget.files ?? [])]);
            event.currentTarget.value = "";
          }}
        />
        <IconButton icon="attach" label={t("attach")} onClick={() => chooser.current?.click()} />
        <ModelChoice />
        <span class="gap" />
        <ContextMeter />
        {isAnswering.value ? (
          <IconButton icon="stop" size={16} class="send stop" label={t("stop")} onClick={stop} />
        ) : (
          <button type="submit" class="icon-button send" aria-label={t("send")} title={t("send")} disabled={isEmpty}>
            <Icon name="send" />
          </button>
        )}
      </div>
    </form>
  );
}

function focusUnlessPhone(): void {
  if (!matchMedia("(hover: none) and (pointer: coarse)").matches) focusComposer();
}

function ModelChoice() {
  if (models.value.length === 0) return null;
  if (models.value.length === 1)
    return (
      <span class="model-name" title={t("model")}>
        {model.value}
      </span>
    );
  return (
    <select
      class="model-choice"
      aria-label={t("model")}
      value={model.value}
      onChange={(event) => void chooseModel(event.currentTarget.value)}
    >
      {models.value.map(({ name }) => (
        <option key={name} value={name}>
          {name}
        </option>
      ))}
    </select>
  );
}
