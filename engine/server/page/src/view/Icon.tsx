import {
  ArrowDown,
  ArrowUp,
  Check,
  ChevronLeft,
  ChevronRight,
  Copy,
  Download,
  Ellipsis,
  FileText,
  Keyboard,
  PanelLeft,
  Paperclip,
  Pencil,
  RefreshCw,
  RotateCcw,
  Search,
  Settings,
  Square,
  SquarePen,
  Trash2,
  TriangleAlert,
  Upload,
  Wrench,
  X,
  type IconNode,
} from "lucide";
import { h } from "preact";

const ICONS = {
  attach: Paperclip,
  check: Check,
  close: X,
  copy: Copy,
  delete: Trash2,
  down: ArrowDown,
  edit: Pencil,
  export: Download,
  file: FileText,
  import: Upload,
  keyboard: Keyboard,
  more: Ellipsis,
  new: SquarePen,
  next: ChevronRight,
  panel: PanelLeft,
  previous: ChevronLeft,
  regenerate: RefreshCw,
  reset: RotateCcw,
  search: Search,
  send: ArrowUp,
  settings: Settings,
  stop: Square,
  tool: Wrench,
  warning: TriangleAlert,
} satisfies Record<string, IconNode>;

export type IconName = keyof typeof ICONS;

/** A drawing beside a text or a label; screen readers pass over it. */
export function Icon({ name, size = 18 }: { name: IconName; size?: number }) {
  return (
    <svg class="icon" viewBox="0 0 24 24" width={size} height={size} aria-hidden="true">
      {ICONS[name].map(([tag, attributes]) => h(tag, attributes))}
    </svg>
  );
}
