import path from "node:path";
import { defineConfig } from "vite";

/** react-router-dom-v5-compat wants version 5, which @grafana/ui brings. */
const routerOfVersion5 = {
  name: "router-of-version-5",
  enforce: "pre",
  resolveId(source, importer) {
    if (source === "react-router-dom" && importer?.includes("react-router-dom-v5-compat")) {
      return this.resolve(path.resolve("node_modules/@grafana/ui/node_modules/react-router-dom/esm/react-router-dom.js"), importer, { skipSelf: true });
    }
    return null;
  },
};

export default defineConfig({
  plugins: [routerOfVersion5],
  define: { "process.env.NODE_ENV": '"production"', "process.env.NODE_DEBUG": "undefined", global: "window" },
  build: { minify: false, chunkSizeWarningLimit: 50_000 },
});
