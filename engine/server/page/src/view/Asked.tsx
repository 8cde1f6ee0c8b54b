import { signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import type { Message } from "../data/types";
import { t } from "../language";
import { edit } from "../state/answers";
import { Actions } from "./Actions";
import { attempt } from "./attempt";
import { Icon } from "./Icon";

/** The message that is being edited. */
export const edited = signal<string | null>(null);

/** What the user has written. */
export function Asked({ message }: { message: Message }) {
  const isEdited = edited.value === message.id;
  return (
    <article class="asked" aria-label={t("you")}>
      {message.attachments.map((each, index) => (
        <details key={index} class="attached">
          <summary>
            <Icon name="file" size={15} /> {each.name}
          </summary>
          <pre tabIndex={0}>{each.text}</pre>
        </details>
      ))}
      {message.results?.map((each) => (
        <details key={each.id} class="attached">
          <summary>
            <Icon name="tool" size={15} /> {t("call.result", { name: each.name })}
          </summary>
          <pre tabIndex={0}>{each.text}</pre>
        </details>
      ))}
      {isEdited ? <Editor message={message} /> : message.text && <div class="bubble">{message.text}</div>}
      {!isEdited && !message.results && (
        <Actions message={message} copy={message.text} edit={() => (edited.value = message.id)} />
      )}
    </article>
  );
}

function Editor({ message }: { message: Message }) {
  const [text, setText] = useState(message.text);
  const field = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    field.current?.focus();
    field.current?.setSelectionRange(message.text.length, message.text.length);
  }, []);
  async function save() {
    if (!text.trim() && message.attachments.length === 0) return;
    edited.value = null;
    if (!(await attempt(() => edit(message, text.trim())))) edited.value = message.id;
  }
  return (
    <form
      class="editor"
      onSubmit={(event) => {
        event.preventDefault();
        void save();
      }}
    >
      <textarea
        aria-label={t("edit.label")}
        value={text}
        rows={3}
        ref={field}
        onInput={(event) => setText(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.isComposing) return;
          if (event.key === "Escape") {
            event.stopPropagation();
            edited.value = null;
          } else if (event.key === "Enter" && !event.shiftKey) {
            event.preventDefault();
            void save();
          }
        }}
      />
      <div class="editor-foot">
        <span class="note">{t("edit.note")}</span>
        <button type="button" class="button" onClick={() => (edited.value = null)}>
          {t("cancel")}
        </button>
        <button type="submit" class="button primary">
          {t("send")}
        </button>
      </div>
    </form>
  );
}
