import { useSignal } from "@preact/signals";
import { useRef } from "preact/hooks";
import { BadSetting, GROUPS, parseSetting, SETTINGS, showSetting, type Setting } from "../data/settings";
import { BadTools, parseTools } from "../data/tools";
import { LANGUAGES, t, type Key } from "../language";
import { change, conversations, current, newSystem, remove } from "../state/chats";
import { preferences, setPreferences, setTyped, type Preferences } from "../state/preferences";
import { properties } from "../state/server";
import { describeBadSetting } from "./attempt";
import { dialog } from "./dialogs";
import { Icon } from "./Icon";
import { Dialog, IconButton } from "./parts";
import { loadConversations, saveConversations } from "./transfer";

export function SettingsDialog({ onClose }: { onClose: () => void }) {
  return (
    <Dialog title={t("settings")} onClose={onClose} class="settings">
      <div class="settings-body">
        <Look />
        <SystemPrompts />
        <Tools />
        <Sampling />
        <Data />
      </div>
    </Dialog>
  );
}

function Look() {
  const { language, theme } = preferences.value;
  const themes: [Preferences["theme"], Key][] = [
    ["", "theme.auto"],
    ["light", "theme.light"],
    ["dark", "theme.dark"],
  ];
  return (
    <section>
      <h3>{t("look")}</h3>
      <fieldset class="segments">
        <legend>{t("theme")}</legend>
        {themes.map(([value, key]) => (
          <label key={value}>
            <input
              type="radio"
              name="theme"
              checked={theme === value}
              onChange={() => setPreferences({ theme: value })}
            />
            <span>{t(key)}</span>
          </label>
        ))}
      </fieldset>
      <fieldset class="segments">
        <legend>{t("language")}</legend>
        {Object.entries({ "": t("language.auto"), ...LANGUAGES }).map(([value, name]) => (
          <label key={value}>
            <input
              type="radio"
              name="language"
              checked={language === value}
              onChange={() => setPreferences({ language: value as Preferences["language"] })}
            />
            <span lang={value || undefined}>{name}</span>
          </label>
        ))}
      </fieldset>
    </section>
  );
}

function SystemPrompts() {
  const conversation = current.value;
  const here = conversation ? conversation.system : (newSystem.value ?? preferences.value.system);
  return (
    <section>
      <h3>{t("system")}</h3>
      <p class="help">{t("system.explain")}</p>
      <label class="field">
        <span>{t("system.here")}</span>
        <textarea
          key={conversation?.id}
          rows={3}
          defaultValue={here}
          placeholder={t("system.placeholder")}
          onInput={(event) => {
            if (conversation) void change(conversation.id, { system: event.currentTarget.value });
            else newSystem.value = event.currentTarget.value;
          }}
        />
      </label>
      <label class="field">
        <span>{t("system.new")}</span>
        <textarea
          rows={2}
          defaultValue={preferences.value.system}
          placeholder={t("system.placeholder")}
          onInput={(event) => setPreferences({ system: event.currentTarget.value })}
        />
      </label>
    </section>
  );
}

const TOOLS_EXAMPLE = `[{"name": "get_weather", "description": "The weather of a city",
  "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}]`;

function Tools() {
  const typed = preferences.value.tools;
  const problem = problemOfTools(typed);
  return (
    <section>
      <h3>{t("tools")}</h3>
      <p class="help" id="tools-help">
        {t("tools.explain")}
      </p>
      <label class="field">
        <span>{t("tools.list")}</span>
        <textarea
          rows={4}
          class="code"
          value={typed}
          placeholder={TOOLS_EXAMPLE}
          spellcheck={false}
          aria-describedby="tools-help"
          aria-invalid={problem !== ""}
          onInput={(event) => setPreferences({ tools: event.currentTarget.value })}
        />
      </label>
      {problem && (
        <p class="problem" role="alert">
          {problem}
        </p>
      )}
    </section>
  );
}

function problemOfTools(typed: string): string {
  try {
    parseTools(typed);
    return "";
  } catch (error) {
    if (!(error instanceof BadTools)) throw error;
    return t("tools.bad", { reason: error.message });
  }
}

function Sampling() {
  const hasChanges = Object.keys(preferences.value.settings).length > 0;
  return (
    <section>
      <div class="section-head">
        <h3>{t("sampling")}</h3>
        {hasChanges && (
          <button type="button" class="text-button" onClick={() => setPreferences({ settings: {} })}>
            {t("sampling.reset")}
          </button>
        )}
      </div>
      <p class="help">{t("sampling.explain")}</p>
      {GROUPS.map((group, index) => (
        <details key={group} class="group" open={index === 0}>
          <summary>{t(`group.${group}` as Key)}</summary>
          {SETTINGS.filter((each) => each.group === group).map((each) => (
            <SettingField key={each.name} setting={each} />
          ))}
        </details>
      ))}
    </section>
  );
}

function SettingField({ setting }: { setting: Setting }) {
  const typed = preferences.value.settings[setting.name];
  const name = t(`setting.${setting.name}` as Key);
  const place = `setting-${setting.name}`;
  const problem = typed === undefined ? "" : problemOf(setting, typed);
  return (
    <div class="setting">
      <label for={place}>{name}</label>
      <div class="setting-value">
        <Control setting={setting} typed={typed} place={place} isBad={problem !== ""} />
        {typed !== undefined && (
          <IconButton
            icon="reset"
            size={15}
            label={t("reset", { name })}
            onClick={() => setTyped(setting.name, undefined)}
          />
        )}
      </div>
      <p class="help" id={`${place}-help`}>
        {t(`setting.${setting.name}.help` as Key)}
      </p>
      {problem && (
        <p class="problem" role="alert">
          {problem}
        </p>
      )}
    </div>
  );
}

interface ControlProps {
  setting: Setting;
  typed: string | undefined;
  place: string;
  isBad: boolean;
}

function Control({ setting, typed, place, isBad }: ControlProps) {
  const usual = showSetting(setting, properties.value.defaults[setting.name]);
  const shared = { id: place, "aria-describedby": `${place}-help`, "aria-invalid": isBad };
  const set = (text: string) => setTyped(setting.name, text === "" ? undefined : text);
  if (setting.kind === "flag") {
    return (
      <select {...shared} value={typed ?? ""} onChange={(event) => set(event.currentTarget.value)}>
        <option value="">{usual ? `${t("default")} (${t(usual as "on" | "off")})` : t("default")}</option>
        <option value="on">{t("on")}</option>
        <option value="off">{t("off")}</option>
      </select>
    );
  }
  if (setting.kind === "texts" || setting.kind === "steps") {
    return (
      <textarea
        {...shared}
        rows={setting.kind === "steps" ? 3 : 2}
        value={typed ?? ""}
        placeholder={usual}
        spellcheck={false}
        onInput={(event) => set(event.currentTarget.value)}
      />
    );
  }
  const slider = setting.slider;
  return (
    <>
      {slider && (
        <input
          type="range"
          min={slider[0]}
          max={slider[1]}
          step={slider[2]}
          value={typed ?? usual}
          aria-label={t(`setting.${setting.name}` as Key)}
          onInput={(event) => set(event.currentTarget.value)}
        />
      )}
      <input
        {...shared}
        type="text"
        inputMode={setting.kind === "biases" ? "text" : "decimal"}
        value={typed ?? ""}
        placeholder={usual}
        autocomplete="off"
        class={slider ? "short" : ""}
        onInput={(event) => set(event.currentTarget.value)}
      />
    </>
  );
}

function problemOf(setting: Setting, typed: string): string {
  try {
    parseSetting(setting, typed);
    return "";
  } catch (error) {
    if (!(error instanceof BadSetting)) throw error;
    return describeBadSetting(error);
  }
}

function Data() {
  const chooser = useRef<HTMLInputElement>(null);
  const isBusy = useSignal(false);
  const count = conversations.value.length;
  async function load(file: File | undefined) {
    if (!file) return;
    isBusy.value = true;
    await loadConversations(file).finally(() => (isBusy.value = false));
  }
  return (
    <section>
      <h3>{t("data")}</h3>
      <p class="help">{t("data.explain")}</p>
      <div class="buttons">
        <button type="button" class="button" disabled={count === 0} onClick={() => void saveConversations()}>
          <Icon name="export" size={16} /> {t("export.all")}
        </button>
        <button type="button" class="button" disabled={isBusy.value} onClick={() => chooser.current?.click()}>
          <Icon name="import" size={16} /> {t("import")}
        </button>
        <input
          ref={chooser}
          type="file"
          accept=".json,application/json"
          hidden
          tabIndex={-1}
          aria-hidden="true"
          onChange={(event) => {
            void load(event.currentTarget.files?.[0]);
            event.currentTarget.value = "";
          }}
        />
        <button
          type="button"
          class="button danger"
          disabled={count === 0}
          onClick={() =>
            (dialog.value = {
              kind: "question",
              text: t("delete.all.sure", { count }),
              yes: t("delete.all"),
              onYes: () => void remove(conversations.value.map((each) => each.id)),
            })
          }
        >
          <Icon name="delete" size={16} /> {t("delete.all")}
        </button>
      </div>
    </section>
  );
}
