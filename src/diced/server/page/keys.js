// Keys and files of a version: listed some at a time, looked at, stored, deleted.

import { path } from "./api.js";
import { ask, attempt, button, bytes, h, later, put, save, toast } from "./dom.js";

const PAGE = 200;
const PREVIEW = 256 * 1024;

export class Keys {
  constructor(app) {
    this.app = app;
    this.prefix = "";
    this.picture = "";
  }

  /** The keyvalue arrays: files first. */
  get arrays() {
    return this.app.node.arrays
      .filter((each) => each.kind === "keyvalue")
      .sort((a, b) => (a.name === ".files" ? -1 : b.name === ".files" ? 1 : a.name < b.name ? -1 : 1));
  }

  fill(body) {
    const { app } = this;
    const { arrays } = this;
    if (!arrays.length) {
      put(body, h("p", { class: "none" }, "No keys at this version."));
      return;
    }
    const chosen = arrays.find((each) => each.name === app.state.keys) || arrays[0];
    this.array = chosen;
    this.may = app.node.rights && app.node.rights.write && (!app.node.locked || !chosen.versioned);
    this.list = h("ul", { class: "list keys", "aria-label": "Keys" });
    this.content = h("div", { class: "content" }, h("p", { class: "none" }, "Choose a key to see its value."));
    const find = later((text) => {
      this.prefix = text;
      attempt(() => this.load());
    }, 200);
    const drop = h(
      "div",
      {
        class: "keysplit",
        ondragover: (event) => this.may && event.preventDefault(),
        ondrop: (event) => {
          if (!this.may || !event.dataTransfer.files.length) return;
          event.preventDefault();
          attempt(() => this.upload([...event.dataTransfer.files], ""));
        },
      },
      h("div", { class: "left" }, this.list), this.content,
    );
    put(
      body,
      h("div", { class: "tools" },
        h("select", { "aria-label": "Keys of", onchange: (event) => attempt(() => app.go({ keys: event.target.value })) },
          arrays.map((each) => h("option", { value: each.name, selected: each === chosen }, each.name === ".files" ? "files (.files)" : each.name))),
        h("input", { type: "search", placeholder: "Begins with…", "aria-label": "Keys that begin with", value: this.prefix, oninput: (event) => find(event.target.value) }),
        this.may && [button("Upload", () => this.askUpload()), button("New text", () => this.write("", ""))],
      ),
      drop,
    );
    attempt(() => this.load());
  }

  where(key) {
    const base = path`node/${this.app.state.node}/${this.array.name}`;
    return key === undefined ? base : `${base}/key/${encodeURIComponent(key)}`;
  }

  /** Lists keys from the first on, or behind `after`. */
  async load(after = "") {
    const { server, state } = this.app;
    const wanted = (this.asked = {});
    let found;
    if (server.ours) {
      found = await server.json(path`page/node/${state.node}/keys/${this.array.name}`, { query: { prefix: this.prefix, after, limit: PAGE } });
    } else {
      const all = (await server.json(`${this.where()}/keys`)).filter((key) => key.startsWith(this.prefix) && key > after);
      found = { keys: all.slice(0, PAGE), more: all.length > PAGE };
    }
    if (wanted !== this.asked) return;
    if (!after) put(this.list);
    const last = this.list.querySelector(".more");
    if (last) last.remove();
    for (const key of found.keys) {
      this.list.append(h("li", {}, h("button", { type: "button", class: "key", data: { key }, onclick: (event) => attempt(() => this.open(key, event.currentTarget)) }, key)));
    }
    if (found.more) this.list.append(h("li", { class: "more" }, button("More", () => attempt(() => this.load(found.keys.at(-1))))));
    if (!this.list.children.length) put(this.list, h("li", { class: "none" }, this.prefix ? "No key begins so." : "No keys."));
  }

  async open(key, row) {
    for (const each of this.list.querySelectorAll("[aria-current]")) each.removeAttribute("aria-current");
    if (row) row.setAttribute("aria-current", "true");
    const answer = await this.app.server.fetch(this.where(key));
    const length = Number(answer.headers.get("content-length") || 0);
    const tools = (value) => [
      button("Download", () => attempt(() => this.download(key, value))),
      this.may && value && isText(value) && button("Edit", () => this.write(key, new TextDecoder().decode(value))),
      this.may && button("Delete", () => this.remove(key), { class: "danger" }),
    ];
    if (length > 16 * PREVIEW && !/\.(png|jpe?g|gif|webp)$/i.test(key)) {
      await answer.body.cancel();
      put(this.content, h("h3", {}, key), h("p", {}, `${bytes(length)}, too large to show.`), h("div", { class: "ends" }, tools(null)));
      return;
    }
    const value = new Uint8Array(await answer.arrayBuffer());
    put(this.content, h("h3", {}, key), h("p", {}, bytes(value.length)), h("div", { class: "ends" }, tools(value)), this.preview(value));
  }

  preview(value) {
    if (this.picture) URL.revokeObjectURL(this.picture);
    this.picture = "";
    const type = pictureType(value);
    if (type) {
      this.picture = URL.createObjectURL(new Blob([value], { type }));
      return h("img", { class: "whole", src: this.picture, alt: "The file as a picture" });
    }
    const part = value.subarray(0, PREVIEW);
    const cut = part.length < value.length ? h("p", { class: "none" }, `The first ${bytes(PREVIEW)}.`) : null;
    if (!isText(value)) return [cut, h("pre", { tabindex: "0" }, dump(part.subarray(0, 4096)))];
    let text = new TextDecoder().decode(part);
    if (!cut && /^\s*[[{]/.test(text)) {
      try {
        text = JSON.stringify(JSON.parse(text), null, 2);
      } catch {
        // It only begins like JSON.
      }
    }
    return [cut, h("pre", { tabindex: "0" }, text)];
  }

  async download(key, value) {
    save(key, value || (await this.app.server.buffer(this.where(key))));
  }

  askUpload() {
    ask(
      `Upload to ${this.array.name}`,
      [
        { name: "files", label: "Files", type: "file", multiple: true, required: true },
        { name: "name", label: "Name", hint: "Of one file; several keep their own." },
      ],
      "Upload",
      ({ files, name }) => this.upload(files, name),
    );
  }

  async upload(files, name) {
    for (const file of files) {
      await this.app.server.post(this.where(files.length === 1 && name ? name : file.name), file);
    }
    toast(files.length === 1 ? `Stored ${name || files[0].name}.` : `Stored ${files.length} files.`);
    await this.load();
  }

  write(key, text) {
    ask(
      key ? `Edit ${key}` : "New text",
      [
        { name: "key", label: "Key", value: key, required: true },
        { name: "text", label: "Value", type: "textarea", value: text },
      ],
      "Store",
      async (values) => {
        await this.app.server.post(this.where(values.key), new TextEncoder().encode(values.text));
        await this.load();
        await this.open(values.key);
      },
    );
  }

  remove(key) {
    ask(
      "Delete a key", [], "Delete",
      async () => {
        await this.app.server.fetch(this.where(key), { method: "DELETE" });
        put(this.content, h("p", { class: "none" }, "Deleted."));
        await this.load();
      },
      `${key} goes from this version and those behind it; older versions keep it.`,
    );
  }
}

function pictureType(value) {
  const begins = (...octets) => octets.every((each, i) => value[i] === each);
  if (begins(0x89, 0x50, 0x4e, 0x47)) return "image/png";
  if (begins(0xff, 0xd8, 0xff)) return "image/jpeg";
  if (begins(0x47, 0x49, 0x46, 0x38)) return "image/gif";
  return "";
}

function isText(value) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(value.subarray(0, PREVIEW), { stream: true });
    return !/[\0-\x08\x0e-\x1a\x1c-\x1f]/.test(text);
  } catch {
    return false;
  }
}

function dump(value) {
  const lines = [];
  for (let at = 0; at < value.length; at += 16) {
    const row = [...value.subarray(at, at + 16)];
    const hex = row.map((each) => each.toString(16).padStart(2, "0")).join(" ");
    const text = row.map((each) => (each >= 32 && each < 127 ? String.fromCharCode(each) : ".")).join("");
    lines.push(`${at.toString(16).padStart(6, "0")}  ${hex.padEnd(47)}  ${text}`);
  }
  return lines.join("\n");
}
