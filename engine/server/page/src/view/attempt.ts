import { BadSetting } from "../data/settings";
import { BadTools } from "../data/tools";
import { t, type Key } from "../language";
import { tell } from "../state/notices";
import { dialog } from "./dialogs";

/** Does what the user asked, or says what is wrong. Gives whether it was done. */
export async function attempt(what: () => Promise<void>): Promise<boolean> {
  try {
    await what();
    return true;
  } catch (error) {
    if (error instanceof BadSetting || error instanceof BadTools) {
      tell(error instanceof BadTools ? t("tools.bad", { reason: error.message }) : describeBadSetting(error), true);
      dialog.value = { kind: "settings" };
    } else {
      tell(t("error.unexpected", { reason: String(error) }), true);
    }
    return false;
  }
}

export function describeBadSetting({ key, setting }: BadSetting): string {
  const name = t(`setting.${setting.name}` as Key);
  return t(key, { name, low: setting.low ?? "", high: setting.high ?? "" });
}
