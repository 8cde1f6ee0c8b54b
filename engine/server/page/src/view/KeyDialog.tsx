import { t } from "../language";
import { setKey, wantsKey } from "../state/server";
import { Dialog } from "./parts";

export function KeyDialog() {
  return (
    <Dialog title={t("key.title")} onClose={() => (wantsKey.value = false)} class="small">
      <form
        class="key-form"
        onSubmit={(event) => {
          event.preventDefault();
          const data = new FormData(event.currentTarget);
          setKey(String(data.get("key")).trim(), data.has("keep"));
        }}
      >
        <p class="help">{t("key.explain")}</p>
        <label class="field">
          <span>{t("key.label")}</span>
          <input name="key" type="password" autocomplete="off" required autofocus />
        </label>
        <label class="check">
          <input name="keep" type="checkbox" /> {t("key.keep")}
        </label>
        <div class="dialog-foot">
          <button type="submit" class="button primary">
            {t("key.use")}
          </button>
        </div>
      </form>
    </Dialog>
  );
}
