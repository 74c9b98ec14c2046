// Elements, messages and dialogs. Text is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (["value", "checked", "disabled", "selected"].includes(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  append(element, children);
  return element;
}

export function append(element, children) {
  for (const child of children.flat(9)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/** Makes an HTML element. */
export function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** Makes an SVG element. */
export function s(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

/** Replaces what an element holds. */
export function put(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

export function button(text, run, props = {}) {
  return h("button", { type: "button", onclick: run, ...props }, text);
}

/** Shows a message for a while; errors stay until they are closed. */
export function toast(text, kind = "info") {
  const box = h("div", { class: `toast ${kind}`, role: kind === "error" ? "alert" : null }, h("span", {}, text));
  box.append(button("×", () => box.remove(), { class: "plain", "aria-label": "Close" }));
  document.getElementById("toasts").append(box);
  if (kind !== "error") setTimeout(() => box.remove(), 6000);
}

/** Runs something that may fail, and says so if it does. */
export async function attempt(run) {
  try {
    return await run();
  } catch (error) {
    if (error.name !== "AbortError") toast(error.message || String(error), "error");
    return undefined;
  }
}

/**
 * Asks for values in a dialog.
 *
 * Each field has a name, a label, and optionally: type, value, hint, options, required, show (a
 * function of the values: whether it is shown). `run` gets the values; what it throws is shown and
 * leaves the dialog open. Returns what `run` returned, or undefined if it was cancelled.
 */
export function ask(title, fields, action, run, about = null) {
  return new Promise((resolve) => {
    const inputs = new Map();
    const rows = fields.map((field) => {
      const input = makeInput(field);
      inputs.set(field.name, input);
      const row = h("label", { class: field.type === "checkbox" ? "check" : "field" }, h("span", {}, field.label), input);
      if (field.hint) row.append(h("small", {}, field.hint));
      return row;
    });
    const values = () =>
      Object.fromEntries(
        fields.map(({ name, type }) => {
          const input = inputs.get(name);
          return [name, type === "checkbox" ? input.checked : type === "file" ? [...input.files] : input.value];
        }),
      );
    const refresh = () => {
      const now = values();
      fields.forEach((field, i) => {
        rows[i].hidden = field.show ? !field.show(now) : false;
      });
    };
    const problem = h("p", { class: "problem", role: "alert" });
    const send = h("button", { type: "submit", class: "main" }, action);
    const form = h(
      "form",
      {
        onsubmit: async (event) => {
          event.preventDefault();
          send.disabled = true;
          problem.textContent = "";
          try {
            const result = await run(values(), (text) => (problem.textContent = text));
            close(result === undefined ? true : result);
          } catch (error) {
            problem.textContent = error.message || String(error);
          }
          send.disabled = false;
        },
        oninput: refresh,
      },
      h("h2", {}, title), about && h("p", {}, about), rows, problem,
      h("div", { class: "ends" }, button("Cancel", () => close()), send),
    );
    const box = h("dialog", { onclose: () => close(), "aria-label": title }, form);
    let done = false;
    const close = (result) => {
      if (done) return;
      done = true;
      box.remove();
      resolve(result);
    };
    refresh();
    document.body.append(box);
    box.showModal();
  });
}

function makeInput(field) {
  const common = { name: field.name, required: field.required, placeholder: field.placeholder };
  if (field.type === "select") {
    return h("select", common, field.options.map((each) => {
      const [value, text] = Array.isArray(each) ? each : [each, each];
      return h("option", { value, selected: value === field.value }, text);
    }));
  }
  if (field.type === "textarea") return h("textarea", { ...common, rows: 3, value: field.value || "" });
  if (field.type === "checkbox") return h("input", { ...common, type: "checkbox", checked: !!field.value });
  if (field.type === "file") {
    return h("input", { ...common, type: "file", multiple: field.multiple, accept: field.accept });
  }
  return h("input", {
    ...common, type: field.type || "text", value: field.value ?? "", autocomplete: "off", spellcheck: "false",
  });
}

/** Shows something long in a dialog. */
export function show(title, ...content) {
  const box = h(
    "dialog", { class: "wide", "aria-label": title, onclose: () => box.remove() },
    h("div", { class: "ends top" }, h("h2", {}, title), button("Close", () => box.close())),
    h("div", { class: "scroll", tabindex: "0" }, content),
  );
  document.body.append(box);
  box.showModal();
  return box;
}

// -- words ----------------------------------------------------------------------------------

export function bytes(count) {
  if (count < 1000) return `${count} B`;
  const units = ["kB", "MB", "GB", "TB", "PB", "EB"];
  let at = -1;
  while (count >= 999.5 && at < units.length - 1) {
    count /= 1000;
    at += 1;
  }
  return `${count < 9.95 ? count.toFixed(1) : Math.round(count)} ${units[at]}`;
}

export function when(text) {
  const date = new Date(text);
  if (Number.isNaN(date.getTime())) return String(text || "");
  const pad = (n) => String(n).padStart(2, "0");
  return `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())} ${pad(date.getHours())}:${pad(date.getMinutes())}`;
}

/** Returns a function that runs `run` once calls have ceased for a while. */
export function later(run, delay = 150) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...args), delay);
  };
}

/** Hands a file to the browser's downloads. */
export function save(name, data) {
  const url = URL.createObjectURL(new Blob([data]));
  const link = h("a", { href: url, download: name.split("/").pop() || "file" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** A hue for a name: the same everywhere. */
export function hue(name) {
  let found = 7;
  for (const each of String(name)) found = (Math.imul(found, 31) + each.codePointAt(0)) >>> 0;
  return (found * 137) % 360;
}
