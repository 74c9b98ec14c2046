// The version graph: newest on top, a column per line of descent, only the visible rows in the page.

import { h, hue, put, s, when } from "./dom.js";

const ROW = 34;
const MARGIN = 20; // rows drawn beyond what is visible

/** Orders nodes and gives each a column: {rows, edges, columns}. */
export function arrange(nodes) {
  const rows = [...nodes].sort((a, b) => b.VersionID - a.VersionID);
  const place = new Map(rows.map((node, i) => [node.VersionID, i]));
  const columns = []; // the version that each column leads down to
  const edges = [];
  const at = new Array(rows.length);
  let width = 1;
  rows.forEach((node, i) => {
    let mine = columns.indexOf(node.VersionID);
    if (mine < 0) {
      mine = columns.indexOf(null);
      if (mine < 0) mine = columns.length;
    }
    for (let k = 0; k < columns.length; k++) if (columns[k] === node.VersionID) columns[k] = null;
    at[i] = mine;
    columns[mine] = null;
    for (const parent of node.Parents || []) {
      if (!place.has(parent)) continue;
      let column = columns.indexOf(parent);
      if (column < 0) {
        column = columns[mine] === null || columns[mine] === undefined ? mine : columns.indexOf(null);
        if (column < 0) column = columns.length;
        columns[column] = parent;
      }
      edges.push({ top: i, bottom: place.get(parent), column });
    }
    while (columns.length && columns[columns.length - 1] === null) columns.pop();
    width = Math.max(width, columns.length, mine + 1);
  });
  for (const edge of edges) {
    edge.from = at[edge.top];
    edge.to = at[edge.bottom];
  }
  return { rows, edges, at, width };
}

export class Graph {
  constructor(onselect) {
    this.onselect = onselect;
    this.lines = s("svg", { class: "lines", "aria-hidden": "true" });
    this.list = h("div", { class: "rows", role: "listbox", tabindex: "0", "aria-label": "Versions, newest first" });
    this.inner = h("div", { class: "inner" }, this.lines, this.list);
    this.element = h("div", { class: "dag" }, this.inner);
    this.data = arrange([]);
    this.tags = new Map();
    this.byVersion = new Map();
    this.step = 18;
    this.left = 34;
    this.selected = "";
    this.element.addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.draw()).observe(this.element);
    this.list.addEventListener("keydown", (event) => this.key(event));
  }

  /** Shows a repo's nodes, by UUID; `tags` maps names to UUIDs. */
  show(nodes, tags, selected) {
    const known = JSON.stringify(tags || {});
    if (this.nodes === nodes && this.known === known) {
      this.select(selected, false);
      return;
    }
    [this.nodes, this.known] = [nodes, known];
    this.data = arrange(Object.values(nodes));
    this.tags = new Map();
    for (const [name, uuid] of Object.entries(tags || {})) {
      this.tags.set(uuid, [...(this.tags.get(uuid) || []), name]);
    }
    this.step = Math.max(3, Math.min(18, 300 / this.data.width));
    this.left = Math.min(300, this.step * this.data.width) + 16;
    this.inner.style.height = `${this.data.rows.length * ROW + 8}px`;
    this.byVersion = new Map(this.data.rows.map((node) => [node.VersionID, node]));
    this.range = null;
    this.select(selected, false);
  }

  select(uuid, tell = true) {
    this.selected = uuid;
    this.range = null;
    const index = this.data.rows.findIndex((node) => node.UUID === uuid);
    if (index >= 0) {
      const top = index * ROW;
      const { scrollTop, clientHeight } = this.element;
      if (top < scrollTop || top + ROW > scrollTop + clientHeight) {
        this.element.scrollTop = Math.max(0, top - clientHeight / 2);
      }
    }
    this.draw();
    if (tell && index >= 0) this.onselect(uuid);
  }

  key(event) {
    const rows = this.data.rows;
    const index = rows.findIndex((node) => node.UUID === this.selected);
    const page = Math.max(1, Math.floor(this.element.clientHeight / ROW) - 1);
    const node = rows[index];
    const parent = node && this.byVersion.get((node.Parents || [])[0]);
    const child = node && this.byVersion.get((node.Children || [])[0]);
    const moves = {
      ArrowDown: index + 1, ArrowUp: index - 1, PageDown: index + page, PageUp: index - page,
      Home: 0, End: rows.length - 1,
      ArrowLeft: parent ? rows.indexOf(parent) : index, ArrowRight: child ? rows.indexOf(child) : index,
    };
    if (!(event.key in moves) || !rows.length) return;
    event.preventDefault();
    this.select(rows[Math.max(0, Math.min(rows.length - 1, moves[event.key]))].UUID);
  }

  x(column) {
    return 12 + column * this.step;
  }

  draw() {
    const { rows, edges } = this.data;
    const first = Math.max(0, Math.floor(this.element.scrollTop / ROW) - MARGIN);
    const last = Math.min(rows.length, Math.ceil((this.element.scrollTop + this.element.clientHeight) / ROW) + MARGIN);
    if (this.range && this.range[0] === first && this.range[1] === last) return;
    this.range = [first, last];
    const top = first * ROW;
    const height = Math.max(0, (last - first) * ROW);
    this.lines.setAttribute("width", this.left);
    this.lines.setAttribute("height", height);
    this.lines.setAttribute("viewBox", `0 ${top} ${this.left} ${height}`);
    this.lines.style.top = `${top}px`;
    const y = (row) => row * ROW + ROW / 2;
    const paths = [];
    for (const edge of edges) {
      if (edge.bottom < first || edge.top > last) continue;
      const [a, c, b] = [this.x(edge.from), this.x(edge.column), this.x(edge.to)];
      const under = Math.min(edge.top + 1, edge.bottom);
      // Far ends are cut off: a line of a million pixels is drawn no better.
      const to = Math.min(edge.bottom, last + 2);
      let d = edge.top < first - 2
        ? `M${c} ${y(first - 1)}`
        : a === c
          ? `M${a} ${y(edge.top)}`
          : `M${a} ${y(edge.top)} C${a} ${y(edge.top) + ROW / 2} ${c} ${y(under) - ROW / 2} ${c} ${y(under)}`;
      if (to < edge.bottom || c === b) d += `L${c} ${y(to)}`;
      else d += `L${c} ${y(Math.max(under, to - 1))} C${c} ${y(to) - ROW / 2} ${b} ${y(to) - ROW / 2} ${b} ${y(to)}`;
      paths.push(s("path", { d, stroke: this.colour(rows[edge.top]), fill: "none" }));
    }
    const dots = [];
    const shown = [];
    for (let i = first; i < last; i++) {
      const node = rows[i];
      dots.push(s("circle", {
        cx: this.x(this.data.at[i]), cy: y(i), r: Math.min(6, this.step / 2.4),
        stroke: this.colour(node), fill: node.Locked ? this.colour(node) : "var(--ground)",
        class: node.UUID === this.selected ? "chosen" : null,
      }));
      shown.push(this.row(node, i));
    }
    put(this.lines, paths, dots);
    put(this.list, shown);
    this.list.setAttribute("aria-activedescendant", `v${rows.findIndex((node) => node.UUID === this.selected)}`);
  }

  colour(node) {
    const branch = node.Branch || "";
    return branch ? `hsl(${hue(branch)} 60% 50%)` : "var(--accent)";
  }

  row(node, i) {
    const parent = this.byVersion.get((node.Parents || [])[0]);
    const branch = node.Branch || "master";
    const fresh = !parent || (parent.Branch || "master") !== branch;
    const chosen = node.UUID === this.selected;
    const row = h(
      "div",
      {
        class: "row", role: "option", id: `v${i}`, "aria-selected": chosen ? "true" : "false",
        title: `${node.UUID}\n${node.Note || ""}`, data: { uuid: node.UUID },
        onclick: () => {
          this.list.focus({ preventScroll: true });
          this.select(node.UUID);
        },
      },
      h("code", {}, node.UUID.slice(0, 8)),
      h("span", { class: node.Locked ? "state locked" : "state open" }, node.Locked ? "locked" : "open"),
      (fresh || chosen || !(node.Children || []).length) && h("span", { class: "chip branch" }, branch),
      (this.tags.get(node.UUID) || []).map((tag) => h("span", { class: "chip tag" }, tag)),
      h("span", { class: "note" }, node.Note || ""),
      h("time", {}, when(node.Created).slice(0, 10)),
    );
    row.style.top = `${i * ROW}px`;
    row.style.height = `${ROW}px`;
    row.style.paddingLeft = `${this.left}px`;
    return row;
  }
}
