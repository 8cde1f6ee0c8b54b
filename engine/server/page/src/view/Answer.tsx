import { showNumber, t } from "../language";
import { regenerate } from "../state/answers";
import { isInterrupted, path, running } from "../state/chats";
import type { Message } from "../data/types";
import { splitThinking } from "../text/thinking";
import { attempt } from "./attempt";
import { Icon } from "./Icon";
import { Markdown } from "./Markdown";
import { Actions } from "./Actions";
import { Calls } from "./Calls";

/** What the model has answered, or is answering. */
export function Answer({ message }: { message: Message }) {
  const parts = splitThinking(message.text);
  const reasoning = [message.reasoning, parts.reasoning].filter(Boolean).join("\n\n");
  const interrupted = isInterrupted(message);
  const isWriting = message.state === "streaming" && !interrupted;
  const hasCalls = Boolean(message.calls?.length);
  const isThinking = isWriting && parts.answer === "";
  return (
    <article
      class="answer"
      aria-label={t("assistant")}
      aria-busy={isWriting}
      data-state={interrupted ? "interrupted" : message.state}
    >
      {reasoning && (
        <details class="reasoning">
          <summary>{isThinking ? t("reasoning.now") : t("reasoning")}</summary>
          <Markdown text={reasoning} />
        </details>
      )}
      {parts.answer && <Markdown text={parts.answer} />}
      {hasCalls && (
        <Calls message={message} isOpen={message.state === "done" && path.value.at(-1)?.id === message.id} />
      )}
      {isThinking && !hasCalls && <Waiting />}
      <Ending message={message} isInterrupted={interrupted} isEmpty={!parts.answer && !hasCalls} />
      {!isWriting && (
        <Actions
          message={message}
          copy={parts.answer}
          foot={<FiguresLine message={message} />}
          again={message.state === "failed" ? undefined : () => void attempt(() => regenerate(message))}
        />
      )}
      {isWriting && running.value.has(message.id) && message.figures.tokensPerSecond !== undefined && (
        <p class="figures live">{t("figures.speed", { speed: showNumber(message.figures.tokensPerSecond, 1) })}</p>
      )}
    </article>
  );
}

function Waiting() {
  return (
    <p class="waiting" role="img" aria-label={t("waiting")}>
      <span />
      <span />
      <span />
    </p>
  );
}

interface EndingProps {
  message: Message;
  isInterrupted: boolean;
  isEmpty: boolean;
}

/** How an answer ended, where it did not end as it should. */
function Ending({ message, isInterrupted, isEmpty }: EndingProps) {
  if (message.state === "failed") {
    return (
      <div class="failure" role="alert">
        <Icon name="warning" />
        <p>{message.error}</p>
        <button type="button" class="button" onClick={() => void attempt(() => regenerate(message))}>
          {t("retry")}
        </button>
      </div>
    );
  }
  if (isInterrupted) return <p class="ending">{t("state.interrupted")}</p>;
  if (message.state === "stopped") return <p class="ending">{t("state.stopped")}</p>;
  if (message.state === "done" && message.finish === "length") return <p class="ending">{t("state.length")}</p>;
  if (message.state === "done" && isEmpty) return <p class="ending">{t("state.empty")}</p>;
  return null;
}

function FiguresLine({ message: { figures, model } }: { message: Message }) {
  const { promptTokens, cachedTokens, promptPerSecond, newTokens, tokensPerSecond } = figures;
  const shown = [
    newTokens !== undefined && t("figures.tokens", { count: newTokens }),
    tokensPerSecond !== undefined && t("figures.speed", { speed: showNumber(tokensPerSecond, 1) }),
    model,
  ].filter(Boolean);
  const prompt =
    promptTokens === undefined
      ? undefined
      : cachedTokens === undefined || promptPerSecond === undefined
        ? t("figures.prompt.plain", { tokens: promptTokens })
        : t("figures.prompt", { tokens: promptTokens, cached: cachedTokens, speed: showNumber(promptPerSecond) });
  return (
    <span class="figures" title={prompt}>
      {shown.join(" · ")}
    </span>
  );
}
