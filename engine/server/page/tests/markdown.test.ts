// @vitest-environment jsdom
import { expect, test } from "vitest";
import { blocksOf, renderMarkdown } from "../src/text/markdown";

function htmlOf(source: string): string {
  const place = document.createElement("div");
  place.append(renderMarkdown(source));
  return place.innerHTML;
}

test.each([
  "<script>alert(1)</script>",
  "<img src=x onerror=alert(1)>",
  "[a](javascript:alert(1))",
  "[a](data:text/html;base64,PHNjcmlwdD4=)",
  "[a](vbscript:x)",
  "![a](https://example.org/a.png)",
  "<svg><style><img src=x onerror=alert(1)></style></svg>",
  "<iframe src=//example.org></iframe>",
  '```"><img src=x onerror=alert(1)>\ncode\n```',
  '$"><img src=x onerror=alert(1)>$',
  '[a](https://example.org/"onmouseover="alert(1))',
  "<a href='javascript:alert(1)'>a</a>",
  "<div style='background:url(//example.org)'>a</div>",
  "| a |\n|---|\n| <img src=x onerror=alert(1)> |",
])("nothing in %j can run or load", (source) => {
  const place = document.createElement("div");
  place.append(renderMarkdown(source));
  expect(place.querySelector("script, img, svg, style, iframe, object, form, input, link, meta")).toBeNull();
  for (const element of place.querySelectorAll("*")) {
    for (const { name, value } of element.attributes) {
      expect(name).not.toMatch(/^on|^style$|^src$|^id$/);
      if (name === "href") expect(value).toMatch(/^(https?:|mailto:)/);
    }
  }
});

test("an image is a link, which opens apart and tells the other page nothing", () => {
  expect(htmlOf("![a cat](https://example.org/cat.png)")).toBe(
    '<p><a href="https://example.org/cat.png" target="_blank" rel="noopener noreferrer nofollow">a cat</a></p>\n',
  );
});

test("code has its language and its colours", () => {
  const html = htmlOf("```python\nx = 1 < 2\n```");
  expect(html).toContain('<div class="code" data-language="python">');
  expect(html).toContain('<span class="hljs-number">1</span> &lt; <span class="hljs-number">2</span>');
  expect(htmlOf("```nolanguage\n<b>\n```")).toContain("<code>&lt;b&gt;</code>");
});

test.each(["$a<b$", "\\(a<b\\)"])("a formula %j keeps its source", (source) => {
  expect(htmlOf(source)).toContain('<span class="math" data-tex="a<b">a&lt;b</span>');
});

test.each(["$$\na\n$$", "\\[\na\n\\]"])("a displayed formula %j keeps its source", (source) => {
  expect(htmlOf(source)).toContain('class="math display"');
});

test("prices are no formulas", () => {
  expect(htmlOf("It costs $5 or $6.")).not.toContain("math");
});

test("columns of tables are aligned without inline styles", () => {
  const html = htmlOf("| a | b |\n|---|--:|\n| 1 | 2 |");
  expect(html).toContain('<th>a</th>\n<th data-align="right">b</th>');
  expect(html).toContain('<td data-align="right">2</td>');
});

test("blocks put together are the text, and rendered apart they are the whole", () => {
  const source = "# A\n\ntext\nmore\n\n- a\n\n- b\n  ```\n  c\n  ```\n\n```js\n\n1\n```\n\n> q\n\n| a |\n|---|\n| 1 |";
  const blocks = blocksOf(source);
  expect(blocks.join("\n")).toBe(source);
  expect(blocks.length).toBe(6);
  expect(blocks.map(htmlOf).join("")).toBe(htmlOf(source));
});

test("a text that grows changes only its last block", () => {
  const source = "a\n\n```js\nlet x\n\nlet y";
  expect(blocksOf(`${source}\nlet z`)[0]).toBe(blocksOf(source)[0]);
});

test("a text with definitions of links stays one block", () => {
  expect(blocksOf("[a]\n\nb\n\n[a]: https://example.org")).toHaveLength(1);
});
