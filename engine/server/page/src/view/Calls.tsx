import { useState } from "preact/hooks";
import { showArguments, type Call } from "../data/tools";
import type { Message } from "../data/types";
import { t } from "../language";
import { answerCalls } from "../state/answers";
import { attempt } from "./attempt";
import { Icon } from "./Icon";

/** The calls of an answer. While it is the last message, the user can write what they gave. */
export function Calls({ message, isOpen }: { message: Message; isOpen: boolean }) {
  const calls = message.calls ?? [];
  return (
    <div class="calls">
      {calls.map((call) => (
        <CallView key={call.id} call={call} />
      ))}
      {isOpen && <Results message={message} calls={calls} />}
    </div>
  );
}

function CallView({ call }: { call: Call }) {
  return (
    <figure class="call">
      <figcaption>
        <Icon name="tool" size={15} /> {t("call", { name: call.name })}
      </figcaption>
      <pre tabIndex={0}>{showArguments(call.arguments)}</pre>
    </figure>
  );
}

function Results({ message, calls }: { message: Message; calls: readonly Call[] }) {
  const [texts, setTexts] = useState<Record<string, string>>({});
  const [isSending, setSending] = useState(false);
  async function send() {
    setSending(true);
    const results = calls.map(({ id, name }) => ({ id, name, text: texts[id] ?? "" }));
    if (!(await attempt(() => answerCalls(message, results)))) setSending(false);
  }
  return (
    <form
      class="results"
      onSubmit={(event) => {
        event.preventDefault();
        void send();
      }}
    >
      {calls.map((call) => (
        <label class="field" key={call.id}>
          <span>{t("call.result", { name: call.name })}</span>
          <textarea
            rows={2}
            value={texts[call.id] ?? ""}
            onInput={(event) => setTexts({ ...texts, [call.id]: event.currentTarget.value })}
          />
        </label>
      ))}
      <button type="submit" class="button primary" disabled={isSending}>
        {t("call.send")}
      </button>
    </form>
  );
}
