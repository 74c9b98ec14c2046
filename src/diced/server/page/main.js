// The page: what is chosen, what the address says of it, and what is shown.

import { HERE, Server, addServer, dropServer, fromDvid, path, servers } from "./api.js";
import * as actions from "./actions.js";
import { Arrays } from "./arrays.js";
import { Graph } from "./dag.js";
import { ask, attempt, button, h, later, put, show, toast, when } from "./dom.js";
import { Keys } from "./keys.js";
import { drawable } from "./tiles.js";
import { Viewer } from "./viewer.js";

const TABS = ["arrays", "keys", "log"];

const app = {
  server: new Server(HERE),
  repos: new Map(), // root UUID -> repo, as the API gives it
  repo: null,
  node: null, // what is known of the chosen version
  state: {},
  admin: new URLSearchParams(location.search).get("admin") === "1",
  filter: "",
};
window.diced = app;

// -- the address ----------------------------------------------------------------------------

function readHash() {
  const found = new URLSearchParams(location.hash.slice(1));
  const text = (name) => found.get(name) || "";
  const at = text("at").split("_").map(Number);
  return {
    server: text("server") || HERE,
    repo: text("repo"),
    node: text("node"),
    tab: TABS.includes(text("tab")) ? text("tab") : TABS[0],
    keys: text("keys"),
    view: text("view"),
    at: at.length === 3 && at.every(Number.isInteger) ? at : null,
    zoom: Number(text("zoom")) || 0,
    plane: text("plane"),
    overlay: text("over"),
    alpha: found.has("alpha") && Number.isFinite(Number(text("alpha"))) ? Number(text("alpha")) : undefined,
  };
}

function writeHash(replace) {
  const { state } = app;
  const found = new URLSearchParams();
  if (app.server.url !== HERE) found.set("server", app.server.url);
  for (const name of ["repo", "node"]) if (state[name]) found.set(name, state[name]);
  if (state.tab && state.tab !== TABS[0]) found.set("tab", state.tab);
  if (state.tab === "keys" && state.keys) found.set("keys", state.keys);
  if (state.view) {
    found.set("view", state.view);
    if (state.at) found.set("at", state.at.join("_"));
    if (state.zoom) found.set("zoom", String(Number(state.zoom.toPrecision(5))));
    if (state.plane && state.plane !== "all") found.set("plane", state.plane);
    if (state.overlay) {
      found.set("over", state.overlay);
      found.set("alpha", String(state.alpha ?? 0.5));
    }
  }
  const hash = `#${found}`;
  if (hash === location.hash || (hash === "#" && !location.hash)) return;
  history[replace ? "replaceState" : "pushState"](null, "", hash);
}

/** Goes somewhere: to another repo, version, tab or view. */
export async function go(change, replace = false) {
  app.state = { ...app.state, ...change };
  writeHash(replace);
  await render();
}
app.go = go;

const settle = later(() => writeHash(true), 250);

window.addEventListener("popstate", () => attempt(arrive));

async function arrive() {
  const state = readHash();
  app.state = state;
  if (state.server !== app.server.url || !app.server.store) await connect(state.server);
  await render();
}

// -- what the server says -------------------------------------------------------------------

async function connect(url) {
  app.server = new Server(url);
  app.repos = new Map();
  app.repo = app.node = null;
  header();
  try {
    await app.server.greet();
    await loadRepos();
  } catch (error) {
    toast(error.message, "error");
    if (error.status === 401 || error.status === 403) signIn();
  }
  header();
}

async function loadRepos() {
  const found = await app.server.json("repos/info");
  app.repos = new Map(Object.entries(found));
}

/** Reads a repo anew, after something was done to it. */
export async function reload() {
  if (!app.state.repo) {
    await loadRepos();
  } else {
    const fresh = await app.server.json(path`repo/${app.state.repo}/info`);
    app.repos.set(app.state.repo, fresh);
    app.repo = null;
  }
  app.node = null;
  await render();
}
app.reload = reload;

async function reloadAll() {
  app.repo = app.node = null;
  if (app.state.node) viewer.tiles.forget(app.state.node);
  await loadRepos();
  await render();
}

/** Finds out what is at the chosen version. */
async function loadNode() {
  const { server, repo, state } = app;
  const node = repo.DAG.Nodes[state.node];
  if (server.ours) return server.json(path`page/node/${state.node}`);
  const instances = Object.values(repo.DataInstances || {});
  const above = ancestors(repo, node);
  const seen = instances.filter((each) => above.has(each.Base.RepoUUID) || each.Base.RepoUUID === repo.Root);
  const arrays = await Promise.all(
    seen.map(async (each) => {
      const points = each.Extended && each.Extended.MinPoint;
      if (points === undefined || seen.length > 64) return fromDvid(each);
      const info = await server.json(path`node/${state.node}/${each.Base.Name}/info`).catch(() => each);
      return fromDvid(info);
    }),
  );
  const tags = {};
  for (const each of Object.values(repo.DAG.Nodes)) {
    if ((each.Branch || "").startsWith("tag-")) tags[each.Branch.slice(4)] = each.UUID;
  }
  return { uuid: state.node, locked: node.Locked, note: node.Note, tags, arrays, rights: server.store.rights };
}

function ancestors(repo, node) {
  const byVersion = new Map(Object.values(repo.DAG.Nodes).map((each) => [each.VersionID, each]));
  const found = new Set();
  const stack = [node];
  while (stack.length) {
    const each = stack.pop();
    if (!each || found.has(each.UUID)) continue;
    found.add(each.UUID);
    stack.push(...(each.Parents || []).map((parent) => byVersion.get(parent)));
  }
  return found;
}

/** The version that a repo opens at: the newest of master. */
function newest(repo) {
  const nodes = Object.values(repo.DAG.Nodes).sort((a, b) => b.VersionID - a.VersionID);
  return (nodes.find((node) => !node.Branch) || nodes[0]).UUID;
}

// -- what is shown --------------------------------------------------------------------------

const top = document.getElementById("top");
const side = document.getElementById("repos");
const main = document.getElementById("main");
const graph = new Graph((uuid) => attempt(() => go({ node: uuid, view: "" })));
const arrays = new Arrays(app);
const keys = new Keys(app);
const viewer = new Viewer((place) => {
  Object.assign(app.state, place);
  settle();
});
app.viewer = viewer;

const parts = {
  head: h("div", { class: "repohead" }),
  details: h("section", { class: "details", "aria-label": "Version" }),
};
parts.split = h("div", { class: "split" },
  h("section", { class: "versions", "aria-label": "Versions" }, h("h2", {}, "Versions"), graph.element), parts.details);

function header() {
  const { server } = app;
  const info = (server.store && server.store.info) || {};
  const title = [info.name, info.organisation, info.organization].find((each) => typeof each === "string" && each);
  const pick = h(
    "select",
    {
      "aria-label": "Server",
      onchange: (event) => {
        if (event.target.value === "+") {
          event.target.value = server.url;
          newServer();
        } else if (event.target.value === "-") {
          dropServer(server.url);
          attempt(() => switchTo(HERE));
        } else attempt(() => switchTo(event.target.value));
      },
    },
    [...new Set([...servers(), server.url])].map((url) =>
      h("option", { value: url, selected: url === server.url }, url === HERE ? `this server (${new URL(url).host})` : url),
    ),
    h("option", { value: "+" }, "add a server…"),
    server.url !== HERE && h("option", { value: "-" }, "forget this server"),
  );
  put(
    top,
    h("a", { class: "brand", href: "#", onclick: home }, h("img", { src: "page/icon.svg", alt: "", width: 24, height: 24 }), "diced"),
    title && h("span", { class: "owner" }, title),
    pick,
    h("span", { class: "gap" }),
    server.store && server.store.mode === "readonly" && h("span", { class: "chip" }, "read only"),
    button("About", () => attempt(() => about())),
    button("API", () => attempt(() => actions.help(app))),
    button("Access", signIn, { title: "Your name and tokens" }),
    button("Refresh", () => attempt(reloadAll), { title: "Read everything anew (r)" }),
    button("Theme", theme, { title: "Light or dark" }),
  );
}

async function switchTo(url) {
  app.state = { ...readHash(), server: url, repo: "", node: "", view: "" };
  await connect(url);
  writeHash(false);
  await render();
}

function home(event) {
  event.preventDefault();
  attempt(() => go({ repo: "", node: "", view: "" }));
}

function newServer() {
  ask(
    "Add a server",
    [{ name: "url", label: "Address", placeholder: "http://host:8000", required: true, hint: "Kept in this browser. The server must allow this page's origin (CORS)." }],
    "Add",
    async ({ url }) => {
      await switchTo(addServer(url));
    },
  );
}

function signIn() {
  const { server } = app;
  const now = server.access;
  ask(
    "Access",
    [
      { name: "user", label: "Your name", value: now.user, hint: "Recorded with what you change." },
      { name: "token", label: "Token", type: "password", value: now.token, hint: "Where the server asks for one." },
      { name: "admin", label: "Admin token", type: "password", value: now.admin },
    ],
    "Use them",
    async (values) => {
      server.access = values;
      await connect(server.url);
      await render();
    },
    "Kept until this tab is closed.",
  );
}

async function about() {
  const { server } = app;
  const found = await server.json("server/info").catch(() => ({}));
  const table = (values) =>
    h("dl", {}, Object.entries(values).map(([name, value]) => [
      h("dt", {}, name), h("dd", {}, typeof value === "string" ? value : JSON.stringify(value)),
    ]));
  const info = server.store.info || {};
  show(
    "About this store",
    Object.keys(info).length ? table(info) : h("p", {}, "The store says nothing of itself. In Python: store.info[\"organisation\"] = ..."),
    h("h3", {}, "Server"), table({ address: server.url, ...(server.store.uuid ? { store: server.store.uuid } : {}), ...found }),
  );
}

function theme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme || (dark ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  localStorage.setItem("diced.theme", next);
  graph.range = null;
  graph.draw();
  viewer.draw();
}

function drawRepos() {
  const { rights } = app.server.store || {};
  const may = rights && rights.create;
  const list = h("ul", { class: "list" });
  const fill = () => {
    const wanted = app.filter.toLowerCase();
    const found = [...app.repos.values()]
      .filter((repo) => !wanted || `${repo.Alias} ${repo.Description} ${repo.Root}`.toLowerCase().includes(wanted))
      .sort((a, b) => String(a.Alias).localeCompare(String(b.Alias)) || (a.Root < b.Root ? -1 : 1));
    put(
      list,
      found.map((repo) =>
        h("li", {}, h(
          "a",
          {
            href: `#repo=${encodeURIComponent(repo.Root)}`, "aria-current": repo.Root === app.state.repo ? "true" : null,
            title: repo.Description || repo.Root,
            onclick: (event) => {
              if (event.ctrlKey || event.metaKey || event.shiftKey) return;
              event.preventDefault();
              attempt(() => go({ repo: repo.Root, node: "", view: "", keys: "" }));
            },
          },
          h("span", { class: "name" }, repo.Alias || repo.Root.slice(0, 12)),
          h("small", {}, contents(repo)),
        )),
      ),
      !found.length && h("li", { class: "none" }, app.repos.size ? "No repo is named like this." : "There are no repos yet."),
    );
  };
  const filter = h("input", {
    type: "search", placeholder: `Find among ${app.repos.size} repos`, "aria-label": "Find a repo", value: app.filter,
    oninput: (event) => {
      app.filter = event.target.value;
      fill();
    },
  });
  fill();
  put(
    side,
    h("div", { class: "head" }, filter, may && (app.admin || !app.repos.size) && button("New repo", () => actions.newRepo(app), { class: "main" })),
    list,
  );
}

let drawn = "";

async function render() {
  const { state } = app;
  const repo = app.repos.get(state.repo) || null;
  if (state.repo && !repo) {
    toast(`There is no repo ${state.repo} here.`, "error");
    state.repo = state.node = "";
  }
  if (repo && !(state.node in repo.DAG.Nodes)) {
    state.node = newest(repo);
    writeHash(true);
  }
  app.repo = repo;
  drawRepos();
  document.title = repo ? `${repo.Alias || repo.Root.slice(0, 8)} · diced` : "diced";
  if (!repo) {
    put(main, welcome());
    drawn = "";
    return;
  }
  if (!app.node || app.node.uuid !== state.node) {
    const wanted = state.node;
    const found = await loadNode();
    if (app.state.node !== wanted) return; // something else was chosen meanwhile
    app.node = found;
  }
  const array = state.view && app.node.arrays.find((each) => each.name === state.view);
  if (state.view && drawable(array)) {
    const key = `${app.server.url}|${state.node}|${state.view}`;
    if (drawn !== key) {
      put(main, viewer.element);
      viewer.open(app.server, state.node, array, app.node.arrays, state, [
        button("← Back", () => attempt(() => go({ view: "" }))),
        h("span", { class: "where" }, repo.Alias || "", " ", h("code", {}, state.node.slice(0, 8))),
        actions.neuroglancer(app, array),
      ]);
      viewer.panes[0].canvas.focus({ preventScroll: true });
    } else if (state.at) {
      Object.assign(viewer, { at: [...state.at], zoom: state.zoom || viewer.zoom });
      viewer.setPlane(state.plane || "all");
    }
    drawn = key;
    return;
  }
  drawn = "";
  // The graph stays in place, with its scrolling and the keyboard's focus.
  const focused = document.activeElement && document.activeElement.id;
  put(parts.head, repoHead(repo));
  put(parts.details, details(repo));
  if (!parts.split.isConnected) put(main, parts.head, parts.split);
  graph.show(repo.DAG.Nodes, app.node.tags, state.node);
  if (focused && document.activeElement === document.body) document.getElementById(focused)?.focus();
}

function contents(repo) {
  const count = (number, name) => `${number} ${name}${number === 1 ? "" : "s"}`;
  const arrays = Object.keys(repo.DataInstances || {}).filter((name) => !name.startsWith("."));
  return `${count(Object.keys(repo.DAG.Nodes).length, "version")} · ${count(arrays.length, "array")}`;
}

function welcome() {
  const { info = {} } = app.server.store || {};
  const said = Object.entries(info).filter(([, value]) => typeof value === "string");
  return h(
    "div", { class: "welcome" },
    h("h1", {}, app.repos.size ? "Choose a repo" : "No repos yet"),
    said.length > 0 && h("dl", {}, said.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    h("p", {}, app.repos.size
      ? "The list is at the left; type to find one."
      : "A repo holds versions of arrays and files. Make the first one here, or in Python with store.create_repo(name)."),
  );
}

function repoHead(repo) {
  const { rights } = app.node;
  return [
    h("div", {}, h("h1", {}, repo.Alias || repo.Root), repo.Description && h("p", {}, repo.Description)),
    h("div", { class: "facts" },
      h("span", {}, `${Object.keys(repo.DAG.Nodes).length} versions`),
      h("span", {}, `since ${when(repo.Created)}`),
      h("code", { title: "Root" }, repo.Root),
      rights && rights.rename && app.admin && button("Rename", () => actions.rename(app)),
      app.admin && actions.removals(app),
    ),
  ];
}

function details(repo) {
  const { state, node } = app;
  const found = repo.DAG.Nodes[state.node];
  const write = node.rights && node.rights.write;
  const tags = Object.entries(node.tags || {}).filter(([, uuid]) => uuid === state.node).map(([name]) => name);
  const tab = (name, text) =>
    h("button", {
      type: "button", role: "tab", id: `tab-${name}`, "aria-selected": state.tab === name ? "true" : "false",
      onclick: () => attempt(() => go({ tab: name })),
    }, text);
  const body = h("div", { class: "body", role: "tabpanel", "aria-labelledby": `tab-${state.tab}` });
  if (state.tab === "keys") keys.fill(body);
  else if (state.tab === "log") put(body, logs(repo, found));
  else arrays.fill(body);
  return [
    h("div", { class: "nodehead" },
      h("div", { class: "line" },
        h("code", { class: "uuid" }, state.node),
        h("span", { class: found.Locked ? "state locked" : "state open" }, found.Locked ? "locked" : "open"),
        h("span", { class: "chip branch" }, found.Branch || "master"),
        tags.map((each) => h("span", { class: "chip tag" }, each)),
        h("time", {}, when(found.Created)),
      ),
      h("p", { class: "note" }, found.Note || h("i", {}, "no note")),
      write && actions.forVersion(app, found),
    ),
    h("div", { class: "tabs", role: "tablist" }, tab("arrays", "Arrays"), tab("keys", "Keys and files"), tab("log", "Log")),
    body,
  ];
}

function logs(repo, node) {
  const lines = (values) =>
    values && values.length
      ? h("ol", { class: "log" }, values.map((line) => {
        const [, time, text] = /^(\S+)\s+([^]*)$/.exec(line) || [null, "", line];
        return h("li", {}, time && h("time", {}, when(time)), h("span", {}, text));
      }))
      : h("p", { class: "none" }, "Nothing was logged.");
  return [h("h3", {}, "This version"), lines(node.Log), h("h3", {}, "The repo"), lines(repo.Log)];
}

// -- keys -----------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if (/INPUT|SELECT|TEXTAREA/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "/") {
    event.preventDefault();
    side.querySelector("input").focus();
  } else if (event.key === "r") {
    attempt(reloadAll);
  } else if (event.key === "Escape" && app.state.view) {
    attempt(() => go({ view: "" }));
  }
});
document.querySelector("[data-skip]").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

const kept = localStorage.getItem("diced.theme");
if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
attempt(arrive);
