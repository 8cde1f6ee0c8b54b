import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { siblingsOf } from "../data/tree";
import type { Message } from "../data/types";
import { t } from "../language";
import { messages, switchTo } from "../state/chats";
import { copyText } from "./clipboard";
import { IconButton } from "./parts";

interface ActionsProps {
  message: Message;
  copy: string;
  foot?: ComponentChildren;
  again?: () => void;
  edit?: () => void;
}

/** What can be done with a message, and a switch between its versions. */
export function Actions({ message, copy, foot, again, edit }: ActionsProps) {
  const [isCopied, setCopied] = useState(false);
  const versions = siblingsOf(messages.value, message);
  const at = versions.findIndex((each) => each.id === message.id);
  async function doCopy() {
    if (!(await copyText(copy))) return;
    setCopied(true);
    setTimeout(() => setCopied(false), 1_500);
  }
  return (
    <div class="actions">
      {versions.length > 1 && (
        <span class="versions" role="group" aria-label={t("branch", { at: at + 1, count: versions.length })}>
          <IconButton
            icon="previous"
            size={16}
            label={t("branch.previous")}
            disabled={at === 0}
            onClick={() => void switchTo(versions[at - 1]!)}
          />
          <span aria-hidden="true">
            {at + 1} / {versions.length}
          </span>
          <IconButton
            icon="next"
            size={16}
            label={t("branch.next")}
            disabled={at === versions.length - 1}
            onClick={() => void switchTo(versions[at + 1]!)}
          />
        </span>
      )}
      {copy && (
        <IconButton
          icon={isCopied ? "check" : "copy"}
          size={16}
          label={isCopied ? t("copied") : t("copy")}
          onClick={() => void doCopy()}
        />
      )}
      {edit && <IconButton icon="edit" size={16} label={t("edit")} onClick={edit} />}
      {again && <IconButton icon="regenerate" size={16} label={t("regenerate")} onClick={again} />}
      {foot}
    </div>
  );
}
