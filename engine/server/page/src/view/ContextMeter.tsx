import { showNumber, t } from "../language";
import { path } from "../state/chats";
import { properties } from "../state/server";

const RADIUS = 7;
const ROUND = 2 * Math.PI * RADIUS;

/** How much of the context the branch that is shown takes, as the server counted at its last answer. */
export function ContextMeter() {
  const all = properties.value.context;
  const last = path.value.findLast((each) => each.figures.promptTokens !== undefined)?.figures;
  if (!all || !last) return null;
  const used = (last.promptTokens ?? 0) + (last.newTokens ?? 0);
  const share = Math.min(1, used / all);
  const label = t("context.used", { used, all });
  return (
    <span class={share > 0.9 ? "context full" : "context"} role="img" aria-label={label} title={label}>
      <svg viewBox="0 0 18 18" width="18" height="18" aria-hidden="true">
        <circle cx="9" cy="9" r={RADIUS} class="context-all" />
        <circle cx="9" cy="9" r={RADIUS} class="context-used" stroke-dasharray={`${share * ROUND} ${ROUND}`} />
      </svg>
      <span class="context-text">
        {showNumber(used)} / {showNumber(all)}
      </span>
    </span>
  );
}
