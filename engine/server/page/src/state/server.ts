/** The server: its models, its defaults, and whether it wants a key. */
import { computed, signal } from "@preact/signals";
import { listModels, readProperties, ServerError, type ServedModel, type ServerProperties } from "../api/client";
import { t } from "../language";
import { preferences, setPreferences } from "./preferences";

const KEY_PLACE = "lltool.key";

const UNKNOWN: ServerProperties = { context: 0, defaults: {} };

export const models = signal<ServedModel[]>([]);
/** What is known of the chosen model; nothing while it is not loaded, as asking would load it. */
export const properties = signal<ServerProperties>(UNKNOWN);
/** Why the server cannot be used now. */
export const trouble = signal<ServerError | null>(null);
export const isReady = signal(false);
export const wantsKey = signal(false);
const key = signal(sessionStorage.getItem(KEY_PLACE) ?? localStorage.getItem(KEY_PLACE) ?? "");
export const apiKey = computed(() => key.value);

/** The chosen model, or the first if that one is not there. */
export const model = computed(() => {
  const chosen = preferences.value.model;
  return models.value.some((each) => each.name === chosen) ? chosen : (models.value[0]?.name ?? "");
});

/** Keeps the key until the tab is closed, or in this browser. */
export function setKey(value: string, isKept: boolean): void {
  key.value = value;
  localStorage.removeItem(KEY_PLACE);
  sessionStorage.removeItem(KEY_PLACE);
  if (value) (isKept ? localStorage : sessionStorage).setItem(KEY_PLACE, value);
  wantsKey.value = false;
  void connect();
}

export async function connect(): Promise<void> {
  try {
    models.value = await listModels(key.value);
    const isLoaded = models.value.find((each) => each.name === model.value)?.isLoaded;
    properties.value = isLoaded ? await readProperties(key.value, models.value.length > 1 ? model.value : "") : UNKNOWN;
    trouble.value = null;
    isReady.value = true;
  } catch (error) {
    note(error);
  }
}

export async function chooseModel(name: string): Promise<void> {
  setPreferences({ model: name });
  try {
    properties.value = await readProperties(key.value, name);
  } catch (error) {
    note(error);
  }
}

function note(error: unknown): void {
  if (!(error instanceof ServerError)) throw error;
  trouble.value = error;
  if (error.failure === "key") wantsKey.value = true;
}

/** A failure in words, with the server's own sentence where there is one. */
export function describeFailure(error: ServerError): string {
  switch (error.failure) {
    case "busy":
      return error.retryAfter ? t("error.busy_for", { seconds: error.retryAfter }) : t("error.busy");
    case "key":
      return t("error.key");
    case "unreachable":
      return t("error.unreachable");
    case "cut":
      return t("error.cut");
    default:
      return error.message
        ? t("error.refused", { reason: error.message })
        : t("error.server", { status: error.status });
  }
}
