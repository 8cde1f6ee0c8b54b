/** Small parts that several views are made of. */
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { t } from "../language";
import { Icon, type IconName } from "./Icon";

interface IconButtonProps {
  icon: IconName;
  label: string;
  onClick: () => void;
  disabled?: boolean;
  class?: string;
  size?: number;
  expanded?: boolean;
}

/** A button of an icon alone, whose name shows on hovering and is read out. */
export function IconButton({ icon, label, onClick, disabled, class: extra = "", size, expanded }: IconButtonProps) {
  return (
    <button
      type="button"
      class={`icon-button ${extra}`}
      aria-label={label}
      title={label}
      onClick={onClick}
      disabled={disabled}
      aria-expanded={expanded}
    >
      <Icon name={icon} size={size} />
    </button>
  );
}

interface DialogProps {
  title: string;
  onClose: () => void;
  class?: string;
  children: ComponentChildren;
}

/** A window above the page. The browser keeps the focus in it, and closes it on Escape. */
export function Dialog({ title, onClose, class: extra = "", children }: DialogProps) {
  const element = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const before = document.activeElement;
    element.current?.showModal();
    return () => {
      if (before instanceof HTMLElement) before.focus();
    };
  }, []);
  return (
    <dialog
      ref={element}
      class={`dialog ${extra}`}
      aria-label={title}
      onClose={onClose}
      onPointerDown={(event) => event.target === element.current && onClose()}
    >
      <div class="dialog-inside">
        <header class="dialog-head">
          <h2>{title}</h2>
          <IconButton icon="close" label={t("close")} onClick={onClose} />
        </header>
        {children}
      </div>
    </dialog>
  );
}

interface QuestionProps {
  text: string;
  yes: string;
  onYes: () => void;
  onClose: () => void;
}

export function Question({ text, yes, onYes, onClose }: QuestionProps) {
  return (
    <Dialog title={yes} onClose={onClose} class="small">
      <p class="question">{text}</p>
      <div class="dialog-foot">
        <button type="button" class="button" onClick={onClose} autofocus>
          {t("cancel")}
        </button>
        <button
          type="button"
          class="button danger"
          onClick={() => {
            onYes();
            onClose();
          }}
        >
          {yes}
        </button>
      </div>
    </Dialog>
  );
}
