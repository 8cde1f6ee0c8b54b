import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { Conversation } from "../data/types";
import { t, type Key } from "../language";
import { change, conversations, current, open, remove } from "../state/chats";
import { findConversations, type Found } from "../state/search";
import { saveConversations } from "./transfer";
import { dialog, isListOpen, isNarrow } from "./dialogs";
import { Icon } from "./Icon";
import { IconButton } from "./parts";

const DAY = 24 * 60 * 60 * 1000;

export async function startChat(): Promise<void> {
  await open(null);
  if (isNarrow.value) isListOpen.value = false;
  document.querySelector<HTMLTextAreaElement>(".composer textarea")?.focus();
}

export function Sidebar() {
  const words = useSignal("");
  const found = useSignal<Found[] | null>(null);
  useEffect(() => {
    if (!words.value.trim()) {
      found.value = null;
      return;
    }
    const timer = setTimeout(async () => (found.value = await findConversations(words.peek())), 150);
    return () => clearTimeout(timer);
  }, [words.value, conversations.value]);
  return (
    <nav class="sidebar" aria-label={t("conversations")}>
      <div class="sidebar-head">
        <img src="./icon.svg" alt="" width="24" height="24" />
        <strong>lltool</strong>
        <span class="gap" />
        <IconButton icon="panel" label={t("sidebar.close")} onClick={() => (isListOpen.value = false)} />
      </div>
      <button type="button" class="new-chat" onClick={() => void startChat()}>
        <Icon name="new" /> {t("new_chat")}
      </button>
      <label class="search">
        <Icon name="search" size={16} />
        <input
          type="search"
          placeholder={t("search")}
          aria-label={t("search.label")}
          value={words.value}
          onInput={(event) => (words.value = event.currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key !== "Escape" || !words.value) return;
            event.stopPropagation();
            words.value = "";
          }}
        />
      </label>
      <div class="list">{found.value ? <FoundList found={found.value} /> : <DayList />}</div>
      <div class="sidebar-foot">
        <button type="button" class="row-button" onClick={() => (dialog.value = { kind: "settings" })}>
          <Icon name="settings" /> {t("settings")}
        </button>
        <IconButton icon="keyboard" label={t("shortcuts")} onClick={() => (dialog.value = { kind: "shortcuts" })} />
      </div>
    </nav>
  );
}

function FoundList({ found }: { found: Found[] }) {
  if (found.length === 0)
    return (
      <p class="list-note" role="status">
        {t("search.none")}
      </p>
    );
  return (
    <ul>
      {found.map(({ conversation, excerpt }) => (
        <Item key={conversation.id} conversation={conversation} excerpt={excerpt} />
      ))}
    </ul>
  );
}

function DayList() {
  if (conversations.value.length === 0) return <p class="list-note">{t("list.none")}</p>;
  const groups = Map.groupBy(conversations.value, (each) => dayOf(each.updated));
  return (
    <>
      {[...groups].map(([day, members]) => (
        <section key={day}>
          <h2>{t(day)}</h2>
          <ul>
            {members.map((each) => (
              <Item key={each.id} conversation={each} />
            ))}
          </ul>
        </section>
      ))}
    </>
  );
}

function dayOf(time: number): Key {
  const today = new Date().setHours(0, 0, 0, 0);
  if (time >= today) return "day.today";
  if (time >= today - DAY) return "day.yesterday";
  return time >= today - 6 * DAY ? "day.week" : "day.older";
}

function Item({ conversation, excerpt }: { conversation: Conversation; excerpt?: string }) {
  const title = conversation.title || t("untitled");
  const isRenamed = useSignal(false);
  const isCurrent = current.value?.id === conversation.id;
  if (isRenamed.value) return <Renamer conversation={conversation} onClose={() => (isRenamed.value = false)} />;
  const actions: [Key, () => void][] = [
    ["rename", () => (isRenamed.value = true)],
    ["export", () => void saveConversations([conversation])],
    [
      "delete",
      () =>
        (dialog.value = {
          kind: "question",
          text: t("delete.sure", { title }),
          yes: t("delete"),
          onYes: () => void remove([conversation.id]),
        }),
    ],
  ];
  return (
    <li class={isCurrent ? "item current" : "item"}>
      <a
        href={`#/c/${conversation.id}`}
        aria-current={isCurrent ? "page" : undefined}
        title={title}
        onClick={(event) => {
          if (event.ctrlKey || event.metaKey || event.shiftKey) return;
          event.preventDefault();
          void open(conversation.id);
          if (isNarrow.value) isListOpen.value = false;
        }}
      >
        <span class="item-title">{title}</span>
        {excerpt && <span class="item-excerpt">{excerpt}</span>}
      </a>
      <Menu label={t("menu", { title })} actions={actions} />
    </li>
  );
}

/** A menu as WAI-ARIA describes it: arrows move, Escape and Tab close. */
function Menu({ label, actions }: { label: string; actions: [Key, () => void][] }) {
  const isOpen = useSignal(false);
  const place = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (!isOpen.value) return;
    place.current?.querySelector<HTMLElement>("[role=menuitem]")?.focus();
    const leave = (event: Event) => {
      if (!place.current?.contains(event.target as Node)) isOpen.value = false;
    };
    document.addEventListener("pointerdown", leave);
    return () => document.removeEventListener("pointerdown", leave);
  }, [isOpen.value]);
  function onKey(event: KeyboardEvent) {
    const items = [...(place.current?.querySelectorAll<HTMLElement>("[role=menuitem]") ?? [])];
    const at = items.indexOf(document.activeElement as HTMLElement);
    if (event.key === "Escape" || event.key === "Tab") {
      isOpen.value = false;
      if (event.key === "Escape") place.current?.querySelector<HTMLElement>("button")?.focus();
      event.stopPropagation();
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      items[(at + (event.key === "ArrowDown" ? 1 : items.length - 1)) % items.length]?.focus();
    }
  }
  return (
    <div class="menu-place" ref={place} onKeyDown={onKey}>
      <button
        type="button"
        class="icon-button"
        aria-label={label}
        title={label}
        aria-haspopup="menu"
        aria-expanded={isOpen.value}
        onClick={() => (isOpen.value = !isOpen.value)}
      >
        <Icon name="more" size={16} />
      </button>
      {isOpen.value && (
        <div class="menu" role="menu" aria-label={label}>
          {actions.map(([key, action]) => (
            <button
              key={key}
              type="button"
              role="menuitem"
              class={key === "delete" ? "danger" : ""}
              onClick={() => {
                isOpen.value = false;
                action();
              }}
            >
              <Icon name={key === "rename" ? "edit" : key === "export" ? "export" : "delete"} size={16} />
              {t(key)}
            </button>
          ))}
        </div>
      )}
    </div>
  );
}

function Renamer({ conversation, onClose }: { conversation: Conversation; onClose: () => void }) {
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => field.current?.select(), []);
  function save(text: string) {
    onClose();
    if (text.trim() && text.trim() !== conversation.title)
      void change(conversation.id, { title: text.trim(), named: true });
  }
  return (
    <li class="item">
      <input
        ref={field}
        class="renamer"
        aria-label={t("rename")}
        defaultValue={conversation.title}
        onBlur={(event) => save(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.isComposing) return;
          if (event.key === "Enter") event.currentTarget.blur();
          if (event.key === "Escape") {
            event.stopPropagation();
            event.currentTarget.value = conversation.title;
            event.currentTarget.blur();
          }
        }}
      />
    </li>
  );
}
