import { defineConfig, type Plugin } from "vitest/config";

/** KaTeX names each font in three formats; every browser that the page is for reads WOFF2. */
function woff2Only(): Plugin {
  return {
    name: "woff2-only",
    enforce: "pre",
    transform(code, id) {
      if (!id.includes("katex") || !id.endsWith(".css")) return null;
      return code.replace(/,\s*url\([^)]*\.(?:woff|ttf)\)\s*format\([^)]*\)/g, "");
    },
  };
}

export default defineConfig({
  base: "./", // the page works below any path
  plugins: [woff2Only()],
  build: {
    license: { fileName: "licenses.md" },
    target: ["chrome123", "firefox128", "safari17.5"],
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0, // a data: URL of a font would want a wider content security policy
    chunkSizeWarningLimit: 700,
    rolldownOptions: {
      // Names without hashes: the built files are in the repository, and a change of one is seen as that.
      output: {
        entryFileNames: "assets/[name].js",
        chunkFileNames: "assets/[name].js",
        assetFileNames: "assets/[name][extname]",
      },
    },
  },
  server: { proxy: Object.fromEntries(["/v1", "/props", "/tokenize"].map((path) => [path, "http://127.0.0.1:8080"])) },
  test: { include: ["tests/**/*.test.ts"], setupFiles: ["fake-indexeddb/auto"] },
});
