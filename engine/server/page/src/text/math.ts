/** Formulas. KaTeX is loaded with the first one. It sets styles by script, so that no inline style is in the HTML. */
import type { KatexOptions } from "katex";

const OPTIONS: KatexOptions = { throwOnError: true, trust: false, strict: false, maxExpand: 500, maxSize: 30 };

/** Draws the formulas below an element; each is shown as its source until then. */
export async function drawMath(root: ParentNode): Promise<void> {
  const places = [...root.querySelectorAll<HTMLElement>(".math[data-tex]")];
  if (places.length === 0) return;
  const [{ default: katex }] = await Promise.all([import("katex"), import("katex/dist/katex.min.css")]);
  for (const place of places) {
    const source = place.dataset.tex ?? "";
    place.removeAttribute("data-tex");
    try {
      katex.render(source, place, { ...OPTIONS, displayMode: place.classList.contains("display") });
    } catch (error) {
      if (!(error instanceof katex.ParseError)) throw error;
      place.textContent = source; // KaTeX's own display of an error has an inline style
      place.classList.add("math-error");
      place.title = error.message;
    }
  }
}
