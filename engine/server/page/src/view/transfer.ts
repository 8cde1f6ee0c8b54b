/** Conversations to and from files. */
import * as database from "../data/database";
import { exportText, ImportError, importText } from "../data/transfer";
import type { Conversation } from "../data/types";
import { t } from "../language";
import { conversations, loadList, openFromAddress, tellOtherTabs } from "../state/chats";
import { tell } from "../state/notices";

export async function saveConversations(chosen: readonly Conversation[] = conversations.value): Promise<void> {
  const text = exportText(chosen, await database.allMessages());
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `lltool-${new Date().toISOString().slice(0, 10)}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export async function loadConversations(file: File): Promise<void> {
  try {
    const read = importText(await file.text());
    const added = await database.mergeIn(read.conversations, read.messages);
    tell(t("import.done", { conversations: read.conversations.length, messages: added }));
  } catch (error) {
    if (!(error instanceof ImportError)) throw error;
    tell(t(error.key, { where: error.where }), true);
    return;
  }
  await loadList();
  await openFromAddress();
  tellOtherTabs({ kind: "list" });
}
