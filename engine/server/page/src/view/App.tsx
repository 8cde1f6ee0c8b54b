import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { language, t, type Key } from "../language";
import { stop } from "../state/answers";
import { current, isAnswering, isLoaded, path } from "../state/chats";
import { announcement, notice } from "../state/notices";
import { preferences } from "../state/preferences";
import { connect, describeFailure, isReady, model, trouble, wantsKey } from "../state/server";
import { edited } from "./Asked";
import { attachFiles, Composer, focusComposer, setDraft } from "./Composer";
import { dialog, isListOpen, isNarrow } from "./dialogs";
import { Icon } from "./Icon";
import { KeyDialog } from "./KeyDialog";
import { IconButton, Question } from "./parts";
import { SettingsDialog } from "./SettingsDialog";
import { ShortcutsDialog } from "./ShortcutsDialog";
import { Sidebar, startChat } from "./Sidebar";
import { Thread } from "./Thread";

export function App() {
  useEffect(() => {
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  const title = current.value?.title || (current.value ? t("untitled") : "");
  useEffect(() => {
    document.documentElement.lang = language.value;
    document.documentElement.dataset.theme = preferences.value.theme;
    document.title = title ? `${title} – lltool` : "lltool";
  }, [language.value, preferences.value.theme, title]);
  const isDropping = useSignal(false);
  const isOpen = isListOpen.value;
  return (
    <div
      class={isOpen ? "app with-list" : "app"}
      onDragOver={(event) => {
        if (!event.dataTransfer?.types.includes("Files")) return;
        event.preventDefault();
        isDropping.value = true;
      }}
      onDragLeave={(event) => event.relatedTarget === null && (isDropping.value = false)}
      onDrop={(event) => {
        isDropping.value = false;
        if (!event.dataTransfer?.files.length) return;
        event.preventDefault();
        void attachFiles([...event.dataTransfer.files]);
      }}
    >
      {isOpen && <Sidebar />}
      {isOpen && isNarrow.value && <div class="shade" onClick={() => (isListOpen.value = false)} />}
      <main class="main">
        <header class="top">
          {!isOpen && <IconButton icon="panel" label={t("sidebar.open")} onClick={() => (isListOpen.value = true)} />}
          {(!isOpen || isNarrow.value) && (
            <IconButton icon="new" label={t("new_chat")} onClick={() => void startChat()} />
          )}
          <h1>{title || t("untitled")}</h1>
          {!isOpen && (
            <IconButton icon="settings" label={t("settings")} onClick={() => (dialog.value = { kind: "settings" })} />
          )}
        </header>
        <Trouble />
        {isLoaded.value && (path.value.length > 0 ? <Thread /> : <Welcome />)}
        <footer class="bottom">
          <Composer onEditLast={editLast} />
        </footer>
      </main>
      {isDropping.value && <div class="dropping">{t("attach.drop")}</div>}
      <Windows />
      <div class={notice.value?.isError ? "notice error" : "notice"} role={notice.value?.isError ? "alert" : "status"}>
        {notice.value?.text}
      </div>
      <div class="unseen" role="status" aria-live="polite">
        {announcement.value}
      </div>
    </div>
  );
}

function Windows() {
  const close = () => (dialog.value = null);
  const open = dialog.value;
  if (wantsKey.value) return <KeyDialog />;
  switch (open?.kind) {
    case "settings":
      return <SettingsDialog onClose={close} />;
    case "shortcuts":
      return <ShortcutsDialog onClose={close} />;
    case "question":
      return <Question key={open.text} text={open.text} yes={open.yes} onYes={open.onYes} onClose={close} />;
    default:
      return null;
  }
}

/** What keeps the page from working, until it is over. */
function Trouble() {
  if (!trouble.value || wantsKey.value) return null;
  const needsKey = trouble.value.failure === "key";
  return (
    <div class="failure trouble" role="alert">
      <Icon name="warning" />
      <p>{describeFailure(trouble.value)}</p>
      <button type="button" class="button" onClick={() => (needsKey ? (wantsKey.value = true) : void connect())}>
        {needsKey ? t("key.label") : t("retry")}
      </button>
    </div>
  );
}

function Welcome() {
  const hints: Key[] = ["hint.explain", "hint.write", "hint.table"];
  return (
    <div class="welcome">
      <h2>{t("hello")}</h2>
      <p>{isReady.value && model.value ? t("hello.local", { model: model.value }) : t("hello.local.plain")}</p>
      <div class="hints">
        {hints.map((key) => (
          <button
            key={key}
            type="button"
            onClick={() => {
              setDraft(t(key));
              focusComposer();
            }}
          >
            {t(key)}
          </button>
        ))}
      </div>
    </div>
  );
}

function editLast(): void {
  const last = path.value.findLast((each) => each.role === "user");
  if (last && !isAnswering.value) edited.value = last.id;
}

function onKey(event: KeyboardEvent): void {
  if (event.isComposing) return;
  const isField =
    event.target instanceof Element && event.target.closest("input, textarea, select, [role=menu]") !== null;
  const hasCtrl = event.ctrlKey || event.metaKey;
  const does = shortcutOf(event, hasCtrl, isField);
  if (!does) return;
  event.preventDefault();
  does();
}

function shortcutOf(event: KeyboardEvent, hasCtrl: boolean, isField: boolean): (() => void) | undefined {
  const key = event.key.toLowerCase();
  if (dialog.value || wantsKey.value) return undefined; // Escape closes it, which the browser does
  if (key === "escape") return isAnswering.value ? stop : isNarrow.value && isListOpen.value ? closeList : undefined;
  if (key === "/" && !hasCtrl && !isField) return focusComposer;
  if (!hasCtrl || event.altKey) return undefined;
  if (event.shiftKey) return key === "o" ? () => void startChat() : undefined;
  switch (key) {
    case "k":
      return searchList;
    case "b":
      return () => (isListOpen.value = !isListOpen.value);
    case ",":
      return () => (dialog.value = { kind: "settings" });
    case "/":
      return () => (dialog.value = { kind: "shortcuts" });
    default:
      return undefined;
  }
}

function closeList(): void {
  isListOpen.value = false;
}

function searchList(): void {
  isListOpen.value = true;
  requestAnimationFrame(() => document.querySelector<HTMLInputElement>(".search input")?.focus());
}
