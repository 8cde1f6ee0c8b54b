import { memo } from "preact/compat";
import { useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { t } from "../language";
import { blocksOf, renderMarkdown } from "../text/markdown";
import { drawMath } from "../text/math";
import { copyText } from "./clipboard";

/** A text in Markdown, drawn block by block, so that a growing answer redraws only its end. */
export function Markdown({ text }: { text: string }) {
  const blocks = useMemo(() => blocksOf(text), [text]);
  return (
    <div class="prose">
      {blocks.map((source, index) => (
        <Block key={index} source={source} copyLabel={t("copy.code")} />
      ))}
    </div>
  );
}

const Block = memo(({ source, copyLabel }: { source: string; copyLabel: string }) => {
  const element = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    const fragment = renderMarkdown(source);
    fragment.querySelectorAll<HTMLElement>(".code").forEach((each) => addHead(each, copyLabel));
    element.current!.replaceChildren(fragment);
    void drawMath(element.current!);
  }, [source, copyLabel]);
  return <div ref={element} class="block" />;
});

/** The language's name and a button above a block of code. */
function addHead(block: HTMLElement, label: string): void {
  const head = document.createElement("div");
  const name = document.createElement("span");
  const button = document.createElement("button");
  head.className = "code-head";
  name.textContent = block.dataset.language || "";
  button.type = "button";
  button.className = "text-button";
  button.textContent = label;
  button.addEventListener("click", async () => {
    const code = block.querySelector("code")?.textContent ?? "";
    if (!(await copyText(code))) return;
    button.textContent = t("copied");
    setTimeout(() => (button.textContent = label), 1_500);
  });
  head.append(name, button);
  block.prepend(head);
}
