// The arrays of a version: what they are, how large, and what they look like.

import { path } from "./api.js";
import * as actions from "./actions.js";
import { attempt, button, bytes, h, put } from "./dom.js";
import { drawable } from "./tiles.js";
import { length, metres } from "./viewer.js";

const AT_ONCE = 3;

/** Runs jobs for elements once they are seen, a few at a time. */
class Seen {
  constructor() {
    this.jobs = new Map();
    this.waiting = [];
    this.running = 0;
    this.watch = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        this.watch.unobserve(target);
        this.waiting.push(this.jobs.get(target));
        this.jobs.delete(target);
      }
      this.pump();
    }, { rootMargin: "200px" });
  }

  add(element, job) {
    this.jobs.set(element, job);
    this.watch.observe(element);
  }

  clear() {
    this.watch.disconnect();
    this.jobs.clear();
    this.waiting = [];
  }

  pump() {
    while (this.running < AT_ONCE && this.waiting.length) {
      this.running += 1;
      const job = this.waiting.shift();
      job().catch(() => {}).finally(() => {
        this.running -= 1;
        this.pump();
      });
    }
  }
}

export class Arrays {
  constructor(app) {
    this.app = app;
    this.seen = new Seen();
    this.pictures = new Map(); // URL of a thumbnail -> of what was fetched
    this.filter = "";
    this.hidden = false;
  }

  fill(body) {
    const { app } = this;
    this.seen.clear();
    const { arrays, rights, locked } = app.node;
    const list = h("div", { class: "cards" });
    const draw = () => {
      this.seen.clear();
      const wanted = this.filter.toLowerCase();
      const shown = arrays.filter((each) =>
        (this.hidden || !each.name.startsWith(".")) && (!wanted || each.name.toLowerCase().includes(wanted)));
      put(list, shown.map((each) => this.card(each)), !shown.length && h("p", { class: "none" }, "No arrays."));
    };
    const hidden = arrays.filter((each) => each.name.startsWith(".")).length;
    put(
      body,
      h("div", { class: "tools" },
        h("input", {
          type: "search", placeholder: `Find among ${arrays.length} arrays`, "aria-label": "Find an array", value: this.filter,
          oninput: (event) => {
            this.filter = event.target.value;
            draw();
          },
        }),
        hidden > 0 && h("label", { class: "check" }, h("input", {
          type: "checkbox", checked: this.hidden,
          onchange: (event) => {
            this.hidden = event.target.checked;
            draw();
          },
        }), h("span", {}, "hidden")),
        rights && rights.write && !locked && button("New array", () => actions.newArray(app)),
      ),
      list,
    );
    draw();
  }

  card(array) {
    const { app } = this;
    const { server, state } = app;
    const voxels = !!array.dtype;
    const size = h("span", { class: "size" }, "");
    const facts = [];
    if (voxels) {
      facts.push(["extents", array.lo ? extents(array) : "empty"]);
      if (array.lo && array.dims === 3) {
        const scale = metres(array);
        facts.push(["size", array.hi.map((hi, i) => length((hi - array.lo[i]) * scale[i])).join(" × ")]);
      }
      facts.push(["voxel", `${array.voxel.join(" × ")} ${[...new Set(array.units)].join(", ")}`]);
      facts.push(["blocks", `${array.block.join(" × ")}, ${array.codec}`]);
    }
    facts.push(["on disk", size]);
    const picture = h("div", { class: "picture" });
    const open = () => attempt(() => app.go({ view: array.name, at: null, zoom: 0, plane: "", overlay: "" }));
    if (voxels && array.lo && array.dims >= 2 && server.ours) {
      this.seen.add(picture, () => this.thumbnail(picture, array));
    }
    if (server.ours) this.seen.add(size, () => this.size(size, array));
    else size.textContent = "not told";
    return h(
      "article", { class: "card", data: { array: array.name } },
      drawable(array) ? h("button", { type: "button", class: "picturebutton", onclick: open, "aria-label": `Look at ${array.name}` }, picture) : picture,
      h("div", { class: "about" },
        h("h3", {}, array.name),
        h("p", {}, h("span", { class: "chip" }, array.type),
          array.dtype && h("span", { class: "chip" }, `${array.dtype}${array.channels ? ` × ${array.channels}` : ""}`),
          !array.versioned && h("span", { class: "chip" }, "unversioned")),
        h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
        h("div", { class: "ends" },
          drawable(array) && button("View", open, { class: "main" }),
          voxels && actions.neuroglancer(app, array),
          array.kind === "keyvalue" && button("Keys", () => attempt(() => app.go({ tab: "keys", keys: array.name }))),
          actions.forArray(app, array),
          button("Info", () => attempt(() => actions.info(app, array)), { "aria-label": `Info of ${array.name}` }),
        ),
      ),
    );
  }

  async thumbnail(picture, array) {
    const { server, state } = this.app;
    const where = `${path`page/node/${state.node}/thumbnail/${array.name}`}?side=160`;
    const answer = await server.fetch(where).catch((error) => {
      picture.title = error.message;
      throw error;
    });
    // Of other servers the tag is not told; then nothing can be known to be the same.
    const tag = `${server.url}|${answer.headers.get("etag") || Math.random()}`;
    let url = this.pictures.get(tag);
    if (!url) {
      url = URL.createObjectURL(await answer.blob());
      this.pictures.set(tag, url);
      if (this.pictures.size > 500) {
        const [oldest] = this.pictures;
        URL.revokeObjectURL(oldest[1]);
        this.pictures.delete(oldest[0]);
      }
    }
    put(picture, h("img", { src: url, alt: "" }));
  }

  async size(element, array) {
    const { server, state } = this.app;
    const found = await server.json(path`page/node/${state.node}/size/${array.name}`).catch(() => null);
    if (!found) element.textContent = "not known";
    else if (found.bytes === null) element.textContent = "with its array";
    else element.textContent = `${found.complete ? "" : "over "}${bytes(found.bytes)} in ${found.entries} ${array.dtype ? "blocks" : "entries"}`;
  }
}

function extents(array) {
  const size = array.hi.map((hi, i) => hi - array.lo[i]).join(" × ");
  return `${size} at ${array.lo.join(", ")}`;
}
