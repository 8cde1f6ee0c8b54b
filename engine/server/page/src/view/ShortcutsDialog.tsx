import { t, type Key } from "../language";
import { Dialog } from "./parts";

const isMac = navigator.platform.startsWith("Mac");
const CTRL = isMac ? "⌘" : "Ctrl";

const SHORTCUTS: [string[], Key][] = [
  [["Enter"], "keys.send"],
  [["Shift", "Enter"], "keys.newline"],
  [["Esc"], "keys.stop"],
  [["↑"], "keys.edit"],
  [["/"], "keys.focus"],
  [[CTRL, "Shift", "O"], "keys.new"],
  [[CTRL, "K"], "keys.search"],
  [[CTRL, "B"], "keys.sidebar"],
  [[CTRL, ","], "keys.settings"],
  [[CTRL, "/"], "keys.list"],
];

export function ShortcutsDialog({ onClose }: { onClose: () => void }) {
  return (
    <Dialog title={t("shortcuts")} onClose={onClose} class="small">
      <dl class="shortcuts">
        {SHORTCUTS.map(([keys, what]) => (
          <div key={what}>
            <dt>
              {keys.map((key) => (
                <kbd key={key}>{key}</kbd>
              ))}
            </dt>
            <dd>{t(what)}</dd>
          </div>
        ))}
      </dl>
    </Dialog>
  );
}
