/** Markdown as safe HTML. HTML in the source is shown as text, and what comes out is sanitized besides. */
import { tex } from "@mdit/plugin-tex";
import DOMPurify from "dompurify";
import MarkdownIt, { type Token } from "markdown-it";
import { highlight } from "./highlight";

const markdown = new MarkdownIt({ html: false, linkify: true, typographer: false });
markdown.use(tex, {
  delimiters: "all",
  render: (source, isDisplay) => {
    const text = escapeHtml(source);
    return `<span class="${isDisplay ? "math display" : "math"}" data-tex="${text}">${text}</span>`;
  },
});
markdown.linkify.set({ fuzzyLink: false, fuzzyEmail: false });

const { rules } = markdown.renderer;
const { escapeHtml } = markdown.utils;

// The page loads nothing from other hosts: an image is a link to it.
rules.image = (tokens, index) => {
  const token = tokens[index]!;
  const source = escapeHtml(String(token.attrGet("src") ?? ""));
  return `<a href="${source}">${escapeHtml(token.content || "image")}</a>`;
};
rules.fence = (tokens, index) => codeBlock(tokens[index]!, tokens[index]!.info.trim().split(/\s+/)[0] ?? "");
rules.code_block = (tokens, index) => codeBlock(tokens[index]!, "");
rules.th_open = (tokens, index) => cell("th", tokens[index]!);
rules.td_open = (tokens, index) => cell("td", tokens[index]!);
rules.table_open = () => '<div class="table" tabindex="0"><table>';
rules.table_close = () => "</table></div>";

/** The policy of the page has no inline styles, so that a column's alignment is an attribute. */
function cell(tag: string, token: Token): string {
  const align = /text-align:(left|right|center)/.exec(String(token.attrGet("style") ?? ""))?.[1];
  return align ? `<${tag} data-align="${align}">` : `<${tag}>`;
}

function codeBlock(token: Token, language: string): string {
  const source = token.content.replace(/\n$/, "");
  const code = `<code>${highlight(source, language) ?? escapeHtml(source)}</code>`;
  return `<div class="code" data-language="${escapeHtml(language)}"><pre tabindex="0">${code}</pre></div>\n`;
}

const ALLOWED = {
  ALLOWED_TAGS: [
    "a",
    "blockquote",
    "br",
    "code",
    "del",
    "div",
    "em",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "li",
    "ol",
    "p",
    "pre",
    "s",
    "span",
    "strong",
    "table",
    "tbody",
    "td",
    "th",
    "thead",
    "tr",
    "ul",
  ],
  ALLOWED_ATTR: ["class", "href", "start", "tabindex", "title", "data-align", "data-tex", "data-language"],
  ADD_URI_SAFE_ATTR: ["data-align", "data-tex", "data-language"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  RETURN_DOM_FRAGMENT: true as const,
};

/** The top-level blocks of a text, each with its own source: while a text grows, only the last ones change. */
export function blocksOf(source: string): string[] {
  const lines = source.split("\n");
  const tokens = markdown.parse(source, {});
  const starts = tokens
    .filter((token) => token.level === 0 && token.nesting >= 0 && token.map)
    .map((token) => token.map![0]);
  if (hasReferences(source) || starts.length === 0) return [source];
  return starts.map((start, index) => lines.slice(index === 0 ? 0 : start, starts[index + 1]).join("\n"));
}

/** Definitions of links count for the whole text. */
function hasReferences(source: string): boolean {
  return /^ {0,3}\[[^\]]+\]:/m.test(source);
}

export function renderMarkdown(source: string): DocumentFragment {
  const fragment = DOMPurify.sanitize(markdown.render(source), ALLOWED);
  for (const link of fragment.querySelectorAll("a")) {
    link.setAttribute("target", "_blank");
    link.setAttribute("rel", "noopener noreferrer nofollow");
  }
  return fragment;
}
