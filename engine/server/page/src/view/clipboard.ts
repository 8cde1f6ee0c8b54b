import { t } from "../language";
import { announce, tell } from "../state/notices";

/** Copies a text, also where the page comes over plain HTTP from another machine and has no clipboard interface. */
export async function copyText(text: string): Promise<boolean> {
  const isCopied = navigator.clipboard ? await copyNew(text) : copyOld(text);
  if (isCopied) announce(t("copied"));
  else tell(t("copy.failed"), true);
  return isCopied;
}

async function copyNew(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyOld(text);
  }
}

function copyOld(text: string): boolean {
  const field = document.createElement("textarea");
  field.value = text;
  field.className = "unseen";
  document.body.append(field);
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  return isCopied;
}
