// The viewer: three planes through one point, each on a canvas.

import { button, h, put } from "./dom.js";
import { Layer, SIDE, Tiles, axes, drawable, labels, probe } from "./tiles.js";

const UNITS = {
  nanometers: 1e-9, nanometer: 1e-9, nm: 1e-9, micrometers: 1e-6, micrometer: 1e-6, um: 1e-6, microns: 1e-6,
  millimeters: 1e-3, millimeter: 1e-3, mm: 1e-3, meters: 1, meter: 1, m: 1, angstroms: 1e-10, angstrom: 1e-10,
};
const PLANES = ["xy", "xz", "yz"];
const NAMES = ["x", "y", "z"];

export function metres(array) {
  return array.voxel.map((size, axis) => (size > 0 ? size : 1) * (UNITS[String(array.units[axis]).toLowerCase()] || 1e-9));
}

/** Returns a length as people write it. */
export function length(value) {
  const units = [[1, "m"], [1e-3, "mm"], [1e-6, "µm"], [1e-9, "nm"], [1e-12, "pm"]];
  const [size, name] = units.find(([each]) => value >= each * 0.9999) || units.at(-1);
  return `${Number((value / size).toPrecision(3))} ${name}`;
}

export class Viewer {
  /** `moved` is called when the place, zoom, plane, overlay or opacity change. */
  constructor(moved) {
    this.moved = moved;
    this.tiles = new Tiles(() => this.draw());
    this.at = [0, 0, 0];
    this.zoom = 1; // CSS pixels per voxel of the finest axis
    this.plane = "all";
    this.alpha = 0.5;
    this.layer = null;
    this.overlay = null;
    this.cross = true;
    this.pending = false;
    this.panes = PLANES.map((plane) => new Pane(this, plane));
    this.readout = h("output", { class: "readout", "aria-live": "off" });
    this.tools = h("div", { class: "tools", role: "toolbar", "aria-label": "Viewer" });
    this.stage = h("div", { class: "stage" }, this.panes.map((pane) => pane.element));
    this.element = h("section", { class: "viewer", "aria-label": "Viewer" }, this.tools, this.stage, this.readout);
    this.element.addEventListener("keydown", (event) => this.key(event));
  }

  /** Shows an array; `arrays` are those that may lie over it. */
  open(server, node, array, arrays, state, actions) {
    this.layer = new Layer(server, node, array);
    this.arrays = arrays.filter((each) => each !== array && drawable(each) && labels(each));
    this.scale = metres(array);
    const finest = Math.min(...this.scale);
    this.ratio = this.scale.map((each) => each / finest);
    this.finest = finest;
    this.tiles.problem = (error) => this.say(error.message);
    if (state.at && state.at.length === 3) this.at = [...state.at];
    else this.at = array.lo.map((lo, axis) => Math.floor((lo + array.hi[axis]) / 2));
    this.plane = ["all", ...PLANES].includes(state.plane) ? state.plane : "all";
    this.alpha = state.alpha ?? this.alpha;
    this.setOverlay(state.overlay || "", false);
    this.fill(actions);
    this.layout();
    if (state.zoom > 0) this.zoom = state.zoom;
    else this.fit();
    this.draw();
  }

  setOverlay(name, tell = true) {
    const found = this.arrays.find((each) => each.name === name);
    this.overlay = found ? new Layer(this.layer.server, this.layer.node, found) : null;
    if (tell) this.change();
  }

  fill(actions) {
    const option = (value, text, chosen) => h("option", { value, selected: value === chosen }, text);
    this.planeSelect = h(
      "select", { "aria-label": "Planes", onchange: (event) => this.setPlane(event.target.value) },
      option("all", "xy + xz + yz", this.plane), PLANES.map((each) => option(each, each, this.plane)),
    );
    this.place = h("input", {
      class: "place", "aria-label": "Position x, y, z", size: 18, spellcheck: "false",
      onchange: (event) => {
        const found = event.target.value.split(/[\s,;_]+/).filter(Boolean).map(Number);
        if (found.length === 3 && found.every(Number.isFinite)) this.go(found.map(Math.floor));
        else this.change();
      },
    });
    const overlays = h(
      "select", { "aria-label": "Labels over it", onchange: (event) => this.setOverlay(event.target.value) },
      option("", "no labels over it", ""),
      this.arrays.map((each) => option(each.name, each.name, this.overlay ? this.overlay.array.name : "")),
    );
    const opacity = h("input", {
      type: "range", min: 0, max: 1, step: 0.05, value: this.alpha, "aria-label": "Opacity of the labels",
      oninput: (event) => {
        this.alpha = Number(event.target.value);
        this.change();
      },
    });
    this.opacity = opacity;
    const limits = this.layer.labels || (this.layer.array.channels || 1) >= 3 ? null : this.contrast();
    put(
      this.tools, actions, h("strong", {}, this.layer.array.name), this.planeSelect, this.place,
      button("−", () => this.setZoom(this.zoom / 2), { "aria-label": "Zoom out", title: "Zoom out (-)" }),
      button("+", () => this.setZoom(this.zoom * 2), { "aria-label": "Zoom in", title: "Zoom in (+)" }),
      button("Fit", () => this.fit(true), { title: "All of it (Home)" }),
      button("1:1", () => this.setZoom(1), { title: "One pixel per voxel (0)" }),
      this.arrays.length > 0 && [overlays, opacity], limits,
    );
  }

  contrast() {
    const field = (index, name) =>
      h("input", {
        class: "limit", "aria-label": name, title: name, placeholder: ["black", "white"][index], size: 6,
        value: this.layer.window ? this.layer.window[index] : "",
        onchange: (event) => {
          const found = [...(this.layer.window || [0, 255])];
          const value = Number(event.target.value);
          if (event.target.value.trim() && Number.isFinite(value)) found[index] = value;
          this.layer.setWindow(...found);
          this.draw();
        },
      });
    return h("span", { class: "limits" }, field(0, "Value shown black"), field(1, "Value shown white"));
  }

  setPlane(plane) {
    this.plane = plane;
    this.layout();
    this.change();
  }

  layout() {
    this.stage.className = `stage ${this.plane}`;
    for (const pane of this.panes) pane.element.hidden = this.plane !== "all" && this.plane !== pane.plane;
    if (this.planeSelect) this.planeSelect.value = this.plane;
  }

  get visible() {
    return this.panes.filter((pane) => !pane.element.hidden);
  }

  go(at) {
    const limit = 2 ** 31 - 2;
    this.at = at.map((each) => Math.max(-limit, Math.min(limit, each)));
    this.change();
  }

  setZoom(zoom) {
    this.zoom = Math.max(2 ** -16, Math.min(64, zoom));
    this.change();
  }

  /** Goes to where all of the array can be seen. */
  fit(tell = false) {
    const { lo, hi } = this.layer.array;
    this.at = lo.map((each, axis) => Math.floor((each + hi[axis]) / 2));
    let zoom = 8;
    for (const pane of this.visible) {
      const [right, down] = axes(pane.plane);
      const { clientWidth, clientHeight } = pane.element;
      zoom = Math.min(
        zoom,
        (0.9 * (clientWidth || 400)) / ((hi[right] - lo[right]) * this.ratio[right]),
        (0.9 * (clientHeight || 400)) / ((hi[down] - lo[down]) * this.ratio[down]),
      );
    }
    this.zoom = Math.max(zoom, 2 ** -16);
    if (tell) this.change();
  }

  change() {
    this.draw();
    this.moved({
      at: this.at, zoom: this.zoom, plane: this.plane, alpha: this.alpha,
      overlay: this.overlay ? this.overlay.array.name : "",
    });
  }

  draw() {
    if (this.pending || !this.layer) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      if (!this.element.isConnected) return;
      this.tiles.begin();
      let missing = 0;
      for (const pane of this.visible) missing += pane.draw();
      this.tiles.end();
      this.element.dataset.ready = missing ? "no" : "yes";
      if (document.activeElement !== this.place) this.place.value = this.at.join(", ");
      if (!missing) this.ahead();
    });
  }

  /** Fetches the next planes while there is nothing else to do. */
  ahead() {
    if (!this.tiles.idle || !this.heading) return;
    const { pane, by } = this.heading;
    const into = axes(pane.plane)[2];
    for (let i = 1; i <= 2; i++) pane.each(this.layer, this.at[into] + by * i, () => 0);
    this.tiles.pump();
  }

  say(text) {
    this.readout.textContent = text;
  }

  pointAt(pane, voxel) {
    if (!voxel) return;
    const parts = [voxel.join(", ")];
    for (const layer of [this.layer, this.overlay]) {
      const value = layer && pane.probe(layer, voxel);
      if (value !== null && value !== undefined) parts.push(`${layer.array.name} = ${value}`);
    }
    parts.push(voxel.map((each, axis) => length(Math.abs(each * this.scale[axis])).replace(/^/, each < 0 ? "−" : "")).join(", "));
    this.say(parts.join("   ·   "));
  }

  key(event) {
    if (["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
    const pane = this.panes.find((each) => each.element.contains(event.target)) || this.visible[0];
    const [right, down, into] = axes(pane.plane);
    const by = (axis, sign) => {
      const step = event.shiftKey ? Math.max(1, Math.round(100 / this.zoom)) : Math.max(1, Math.round(10 / this.zoom));
      this.go(this.at.map((each, i) => (i === axis ? each + sign * step : each)));
    };
    const slice = (count) => pane.slice(count);
    const keys = {
      ArrowLeft: () => by(right, -1), ArrowRight: () => by(right, 1), ArrowUp: () => by(down, -1), ArrowDown: () => by(down, 1),
      ",": () => slice(-1), ".": () => slice(1), "<": () => slice(-10), ">": () => slice(10),
      PageUp: () => slice(-10), PageDown: () => slice(10),
      "+": () => this.setZoom(this.zoom * 2), "=": () => this.setZoom(this.zoom * 2), "-": () => this.setZoom(this.zoom / 2),
      0: () => this.setZoom(1), Home: () => this.fit(true),
      1: () => this.setPlane("xy"), 2: () => this.setPlane("xz"), 3: () => this.setPlane("yz"), 4: () => this.setPlane("all"),
      c: () => {
        this.cross = !this.cross;
        this.draw();
      },
      "[": () => this.fade(-0.1), "]": () => this.fade(0.1),
    };
    const run = keys[event.key];
    if (!run || (into === undefined)) return;
    event.preventDefault();
    run();
  }

  fade(by) {
    this.alpha = Math.max(0, Math.min(1, Math.round(20 * (this.alpha + by)) / 20));
    this.opacity.value = this.alpha;
    this.change();
  }
}

class Pane {
  constructor(viewer, plane) {
    this.viewer = viewer;
    this.plane = plane;
    this.canvas = h("canvas", {
      tabindex: "0", role: "img", data: { plane },
      "aria-label": `${plane} plane. Arrows move, comma and full stop change the slice, plus and minus zoom.`,
    });
    this.element = h("div", { class: `pane ${plane}` }, this.canvas);
    this.stale = new Map();
    new ResizeObserver(() => viewer.draw()).observe(this.element);
    this.listen();
  }

  /** Where voxel 0 is, in pixels of the canvas, and the pixels of a voxel: [[x, y], [sx, sy]]. */
  view() {
    const { at, zoom, ratio } = this.viewer;
    const [right, down] = axes(this.plane);
    const dense = window.devicePixelRatio || 1;
    const scale = [zoom * ratio[right] * dense, zoom * ratio[down] * dense];
    const middle = [this.canvas.width / 2, this.canvas.height / 2];
    const origin = [right, down].map((axis, i) => Math.round(middle[i] - (at[axis] + 0.5) * scale[i]));
    return [origin, scale];
  }

  steps(scale) {
    // On a server that has no coarse tiles every voxel is read, within reason.
    return scale.map((each) => 2 ** Math.max(0, Math.min(24, Math.floor(Math.log2(1 / each) + 1e-9))));
  }

  /** Calls `use` with each tile in sight, and where it lies; returns the sum of what that returns. */
  each(layer, depth, use) {
    const [origin, scale] = this.view();
    let steps = this.steps(scale);
    const { server } = layer;
    if (!server.ours && Math.max(...steps) > 1) {
      if (Math.max(...steps) > 4) {
        this.viewer.say("This server has no coarse tiles: zoom in.");
        return 0;
      }
      steps = [1, 1];
    }
    const extent = [this.canvas.width, this.canvas.height];
    const range = [0, 1].map((i) => {
      const tile = SIDE * steps[i] * scale[i];
      return [Math.floor(-origin[i] / tile), Math.floor((extent[i] - origin[i]) / tile)];
    });
    let total = 0;
    for (let row = range[1][0]; row <= range[1][1]; row++) {
      for (let column = range[0][0]; column <= range[0][1]; column++) {
        const tile = this.viewer.tiles.get(layer, this.plane, steps, [column, row], depth);
        total += use(tile, `${layer.key}|${steps}|${column}|${row}`);
      }
    }
    return total;
  }

  draw() {
    const { viewer } = this;
    const dense = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.element;
    const size = [Math.max(1, Math.round(clientWidth * dense)), Math.max(1, Math.round(clientHeight * dense))];
    if (this.canvas.width !== size[0] || this.canvas.height !== size[1]) [this.canvas.width, this.canvas.height] = size;
    const context = this.canvas.getContext("2d");
    context.fillStyle = getComputedStyle(this.element).backgroundColor;
    context.fillRect(0, 0, ...size);
    const [origin, scale] = this.view();
    let missing = this.paint(context, viewer.layer, 1, origin, scale);
    if (viewer.overlay && viewer.alpha > 0) missing += this.paint(context, viewer.overlay, viewer.alpha, origin, scale);
    Object.assign(this.canvas.dataset, { origin: origin.join(","), scale: scale.join(",") });
    this.marks(context, origin, scale, dense);
    return missing;
  }

  paint(context, layer, alpha, origin, scale) {
    const [right, down, into] = axes(this.plane);
    context.globalAlpha = alpha;
    const fresh = new Map();
    const missing = this.each(layer, this.viewer.at[into], (tile, key) => {
      // Until it is there, what was last seen at this place.
      const shown = tile.state === "done" ? tile : this.stale.get(key);
      if (shown && shown.canvas && tile.state !== "empty") {
        const { lo, count, steps } = shown.part;
        // Whole pixels at the edges, or the ground shines through between tiles.
        const box = [right, down].map((axis, i) => {
          const from = Math.round(origin[i] + lo[axis] * scale[i]);
          return [from, Math.round(origin[i] + (lo[axis] + count[i] * steps[i]) * scale[i]) - from];
        });
        context.imageSmoothingEnabled = scale[0] < 0.75 && !layer.labels;
        context.drawImage(shown.canvas, box[0][0], box[1][0], box[0][1], box[1][1]);
        fresh.set(key, shown);
      }
      return tile.state === "wanted" || tile.state === "loading" ? 1 : 0;
    });
    for (const [key, tile] of this.stale) if (!key.startsWith(`${layer.key}|`)) fresh.set(key, tile);
    this.stale = fresh.size > 400 ? new Map() : fresh;
    context.globalAlpha = 1;
    return missing;
  }

  marks(context, origin, scale, dense) {
    const { viewer } = this;
    const [right, down, into] = axes(this.plane);
    const { width, height } = this.canvas;
    const lines = [[right, 0], [down, 1]].map(([axis, i]) => Math.round(origin[i] + (viewer.at[axis] + 0.5) * scale[i]));
    if (viewer.cross) {
      context.globalAlpha = 0.6;
      const colours = ["#ff5a5a", "#3ecf5a", "#5a8cff"];
      context.fillStyle = colours[down];
      context.fillRect(0, lines[1], width, 1);
      context.fillStyle = colours[right];
      context.fillRect(lines[0], 0, 1, height);
      context.globalAlpha = 1;
    }
    // The longest of 1, 2, 5, 10, ... that is no more than a third of the width.
    const perPixel = (viewer.finest * viewer.ratio[right]) / scale[0];
    const most = Math.min(160 * dense, width / 3) * perPixel;
    const power = 10 ** Math.floor(Math.log10(most));
    const bar = [5, 2, 1].map((each) => each * power).find((each) => each <= most) || power;
    const pixels = bar / perPixel;
    const text = (words, x, y, align = "left") => {
      context.font = `${12 * dense}px system-ui, sans-serif`;
      context.textAlign = align;
      context.lineWidth = 3 * dense;
      context.strokeStyle = "rgb(0 0 0 / 75%)";
      context.strokeText(words, x, y);
      context.fillStyle = "#fff";
      context.fillText(words, x, y);
    };
    const [x, y] = [12 * dense, height - 14 * dense];
    context.fillStyle = "rgb(0 0 0 / 75%)";
    context.fillRect(x - 2, y - 2, pixels + 4, 4 * dense + 4);
    context.fillStyle = "#fff";
    context.fillRect(x, y, pixels, 4 * dense);
    this.canvas.dataset.bar = length(bar);
    text(length(bar), x, y - 6 * dense);
    text(`${NAMES[right]} →  ${NAMES[down]} ↓   ${NAMES[into]} = ${viewer.at[into]}`, 10 * dense, 18 * dense);
  }

  voxel(event) {
    if (!this.viewer.layer) return null;
    const [right, down, into] = axes(this.plane);
    const box = this.canvas.getBoundingClientRect();
    const dense = this.canvas.width / (box.width || 1);
    const [origin, scale] = this.view();
    const found = [0, 0, 0];
    found[right] = Math.floor(((event.clientX - box.left) * dense - origin[0]) / scale[0]);
    found[down] = Math.floor(((event.clientY - box.top) * dense - origin[1]) / scale[1]);
    found[into] = this.viewer.at[into];
    return found;
  }

  probe(layer, voxel) {
    const into = axes(this.plane)[2];
    let found = null;
    const { clock } = this.viewer.tiles;
    for (const tile of this.viewer.tiles.tiles.values()) {
      if (tile.used === clock && tile.part && tile.part.lo[into] === voxel[into] && found === null) {
        if (tile.owner === `${layer.key}|${this.plane}`) found = probe(tile, layer, this.plane, voxel);
      }
    }
    return found;
  }

  slice(count) {
    const into = axes(this.plane)[2];
    const { viewer } = this;
    viewer.heading = { pane: this, by: Math.sign(count) };
    viewer.go(viewer.at.map((each, axis) => (axis === into ? each + count : each)));
  }

  listen() {
    const { canvas, viewer } = this;
    let drag = null;
    let turned = 0;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !viewer.layer) return;
      canvas.setPointerCapture(event.pointerId);
      drag = { x: event.clientX, y: event.clientY, at: [...viewer.at], far: false };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!drag) {
        viewer.pointAt(this, this.voxel(event));
        return;
      }
      const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
      drag.far = drag.far || Math.hypot(dx, dy) > 4;
      if (!drag.far) return;
      const [right, down] = axes(this.plane);
      const at = [...drag.at];
      at[right] -= Math.round(dx / (viewer.zoom * viewer.ratio[right]));
      at[down] -= Math.round(dy / (viewer.zoom * viewer.ratio[down]));
      viewer.go(at);
    });
    canvas.addEventListener("pointerup", (event) => {
      if (drag && !drag.far) viewer.go(this.voxel(event));
      drag = null;
    });
    canvas.addEventListener("pointercancel", () => (drag = null));
    canvas.addEventListener(
      "wheel",
      (event) => {
        if (!viewer.layer) return;
        event.preventDefault();
        if (event.ctrlKey || event.metaKey) {
          this.zoomAt(event, 2 ** (-event.deltaY / (event.deltaMode ? 6 : 200)));
          return;
        }
        turned += event.deltaMode ? 60 * event.deltaY : event.deltaY;
        const count = Math.trunc(turned / 50) || (Math.abs(event.deltaY) >= 50 ? Math.sign(turned) : 0);
        if (!count) return;
        turned = 0;
        this.slice(Math.sign(count) * (event.shiftKey ? 10 : 1));
      },
      { passive: false },
    );
  }

  /** Zooms so that what is under the pointer stays there. */
  zoomAt(event, factor) {
    const { viewer } = this;
    const before = this.voxel(event);
    const zoom = Math.max(2 ** -16, Math.min(64, viewer.zoom * factor));
    const ratio = viewer.zoom / zoom;
    viewer.at = viewer.at.map((each, axis) => Math.round(before[axis] + (each - before[axis]) * ratio));
    viewer.setZoom(zoom);
  }
}
