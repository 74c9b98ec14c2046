// What one may do: repos, arrays, versions; help; neuroglancer.

import { HERE, Server, path } from "./api.js";
import { ask, attempt, button, h, put, show, toast } from "./dom.js";
import { metres } from "./viewer.js";

const TYPES = ["uint8blk", "uint16blk", "uint32blk", "uint64blk", "float32blk", "rgba8blk", "labelblk", "keyvalue", "roi"];
const POST_BYTES = 32e6;

// -- repos ----------------------------------------------------------------------------------

export function newRepo(app) {
  ask(
    "New repo",
    [
      { name: "alias", label: "Name", required: true },
      { name: "description", label: "What it is", type: "textarea" },
    ],
    "Create",
    async (values) => {
      const { root } = await (await app.server.post("repos", values)).json();
      app.repos = new Map(Object.entries(await app.server.json("repos/info")));
      await app.go({ repo: root, node: "", view: "" });
    },
  );
}

export function rename(app) {
  const { repo } = app;
  ask(
    "Rename the repo",
    [
      { name: "alias", label: "Name", value: repo.Alias, required: true },
      { name: "description", label: "What it is", type: "textarea", value: repo.Description },
    ],
    "Store",
    async (values) => {
      await app.server.post(path`repo/${repo.Root}/info`, values);
      await app.reload();
    },
  );
}

/** Deletes a repo, once its name was typed. */
export function removals(app) {
  const { repo, server } = app;
  if (!(app.node.rights && app.node.rights.remove)) return null;
  return button("Delete repo", () => sure(repo.Alias, "the repo", async () => {
    await server.fetch(path`repo/${repo.Root}`, { method: "DELETE", query: { imsure: "true" } });
    app.repos.delete(repo.Root);
    await app.go({ repo: "", node: "", view: "" });
  }), { class: "danger" });
}

function sure(name, what, run) {
  return ask(
    `Delete ${what}`,
    [{ name: "typed", label: `Type its name, ${name}`, required: true }],
    "Delete for good",
    async ({ typed }) => {
      if (typed !== name) throw new Error("This is not its name.");
      await run();
    },
    "It goes from all versions. This cannot be undone.",
  );
}

// -- versions -------------------------------------------------------------------------------

export function forVersion(app, node) {
  const { server } = app;
  const at = (what) => `${path`node/${node.UUID}`}/${what}`;
  const lock = () => ask(
    "Lock this version",
    [{ name: "note", label: "Note", type: "textarea", value: node.Note }],
    "Lock",
    async ({ note }) => {
      await server.post(at("commit"), { note, log: [] });
      await app.reload();
    },
    "Nothing at a locked version can change any more. Children can be made of it.",
  );
  const branch = () => ask(
    "New version",
    [
      { name: "branch", label: "New branch", hint: `Leave it empty to go on with ${node.Branch || "master"}.` },
      { name: "note", label: "Note", type: "textarea" },
    ],
    "Create",
    async (values) => {
      const where = values.branch ? at("branch") : at("newversion");
      const { child } = await (await server.post(where, values.branch ? values : { note: values.note })).json();
      app.state.node = child;
      await app.reload();
      await app.go({ node: child });
    },
  );
  const note = () => ask(
    "Note", [{ name: "note", label: "Note", type: "textarea", value: node.Note }], "Store",
    async (values) => {
      await server.post(at("note"), values);
      await app.reload();
    },
  );
  const log = () => ask(
    "Log",
    [
      { name: "line", label: "Line", required: true },
      { name: "repo", label: "of the whole repo", type: "checkbox", value: node.Locked },
    ],
    "Append",
    async ({ line, repo }) => {
      await server.post(repo ? path`repo/${app.repo.Root}/log` : at("log"), { log: [line] });
      await app.reload();
      await app.go({ tab: "log" });
    },
  );
  const tag = () => ask(
    "Tag",
    [{ name: "tag", label: "Tag", required: true }, { name: "note", label: "Note" }],
    "Tag this version",
    async (values) => {
      await server.post(at("tag"), values);
      await app.reload();
    },
  );
  return h(
    "div", { class: "ends" },
    !node.Locked && button("Lock", lock, { class: "main" }),
    node.Locked && button("New version", branch, { class: "main" }),
    !node.Locked && button("Note", note),
    button("Log", log),
    node.Locked && button("Tag", tag),
  );
}

// -- arrays ---------------------------------------------------------------------------------

export async function newArray(app) {
  const { server, state } = app;
  const found = await server.json("server/compiled-types").catch(() => null);
  const types = found ? Object.keys(found).sort() : TYPES;
  const blocks = ({ typename }) => /blk$|^label/.test(typename);
  await ask(
    "New array",
    [
      { name: "dataname", label: "Name", required: true },
      { name: "typename", label: "Type", type: "select", options: types, value: types.includes("uint8blk") ? "uint8blk" : types[0] },
      { name: "VoxelSize", label: "Voxel size x, y, z", value: "8,8,8", show: blocks },
      { name: "VoxelUnits", label: "Units", value: "nanometers", show: blocks },
      { name: "BlockSize", label: "Block size x, y, z", value: "64,64,64", show: blocks },
      { name: "Compression", label: "Compression", placeholder: "of itself: lz4", show: blocks },
      { name: "more", label: "Further settings", type: "textarea", hint: "One NAME=VALUE a line, as the type's help has them." },
      { name: "unversioned", label: "one content for all versions", type: "checkbox" },
    ],
    "Create",
    async (values) => {
      const fields = { typename: values.typename, dataname: values.dataname, versioned: values.unversioned ? "0" : "1" };
      if (blocks(values)) {
        for (const name of ["VoxelSize", "BlockSize"]) if (values[name].trim()) fields[name] = values[name].replace(/\s/g, "");
        const units = values.VoxelUnits.trim();
        if (units) fields.VoxelUnits = units.includes(",") ? units : [units, units, units].join(",");
        if (values.Compression.trim()) fields.Compression = values.Compression.trim();
      }
      for (const line of values.more.split("\n")) {
        const [, name, value] = /^\s*([^=\s]+)\s*=\s*(.*?)\s*$/.exec(line) || [];
        if (name) fields[name] = value;
        else if (line.trim()) throw new Error(`${line} is not NAME=VALUE`);
      }
      await server.post(path`repo/${state.node}/instance`, fields);
      await app.reload();
    },
  );
}

/** Actions at one array. */
export function forArray(app, array) {
  const { node } = app;
  const may = node.rights && node.rights.write && (!node.locked || !array.versioned);
  const removable = app.admin && node.rights && node.rights.remove && !array.name.startsWith(".");
  return [
    may && array.type === "uint8blk" && array.dims === 3 && button("Load images", () => load(app, array)),
    removable && button("Delete", () => sure(array.name, "the array", async () => {
      await app.server.fetch(path`repo/${app.repo.Root}/${array.name}`, { method: "DELETE", query: { imsure: "true" } });
      await app.reload();
    }), { class: "danger" }),
  ];
}

/** Loads images of grey values into an array, each a slice. */
function load(app, array) {
  const { server, state } = app;
  ask(
    `Load images into ${array.name}`,
    [
      { name: "files", label: "Images, one a slice, in order of name", type: "file", multiple: true, required: true, accept: "image/png,image/jpeg,image/bmp,image/webp" },
      { name: "offset", label: "First voxel x, y, z", value: "0,0,0", required: true },
    ],
    "Load",
    async ({ files, offset }, say) => {
      const at = offset.split(/[\s,_]+/).filter(Boolean).map(Number);
      if (at.length !== 3 || !at.every(Number.isInteger)) throw new Error("The first voxel is three whole numbers.");
      files.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
      let slices = [];
      let size = null;
      let done = 0;
      const send = async () => {
        if (!slices.length) return;
        const body = new Uint8Array(slices.length * size[0] * size[1]);
        slices.forEach((each, i) => body.set(each, i * size[0] * size[1]));
        const where = `${path`node/${state.node}/${array.name}`}/raw/0_1_2/${size[0]}_${size[1]}_${slices.length}/${at[0]}_${at[1]}_${at[2] + done}`;
        await server.post(where, body);
        done += slices.length;
        slices = [];
        say(`${done} of ${files.length} slices`);
      };
      for (const file of files) {
        const { width, height, grey } = await decode(file);
        if (size && (size[0] !== width || size[1] !== height)) {
          throw new Error(`${file.name} is ${width} × ${height}; those before are ${size.join(" × ")}`);
        }
        size = [width, height];
        slices.push(grey);
        if ((slices.length + 1) * width * height > POST_BYTES) await send();
      }
      await send();
      app.viewer.tiles.forget(state.node);
      await app.reload();
      toast(`Loaded ${files.length} slices into ${array.name}.`);
    },
  );
}

async function decode(file) {
  let image;
  try {
    image = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Error(`${file.name} is not an image that this browser reads`);
  }
  const { width, height } = image;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  image.close();
  const { data } = context.getImageData(0, 0, width, height);
  const grey = new Uint8Array(width * height);
  for (let i = 0; i < grey.length; i++) {
    const [r, g, b] = [data[4 * i], data[4 * i + 1], data[4 * i + 2]];
    grey[i] = r === g && g === b ? r : Math.round(0.299 * r + 0.587 * g + 0.114 * b);
  }
  return { width, height, grey };
}

export async function info(app, array) {
  const { server, state } = app;
  const found = await server.json(path`node/${state.node}/${array.name}/info`);
  show(`${array.name} (${array.type})`, h("pre", {}, JSON.stringify(found, null, 2)));
}

// -- help -----------------------------------------------------------------------------------

export async function help(app) {
  const { server } = app;
  const types = Object.keys(await server.json("server/compiled-types")).sort();
  const text = h("pre", {}, "");
  const open = async (type) => {
    text.textContent = await server.text(path`help/${type}`);
    for (const each of picks) each.setAttribute("aria-pressed", each.dataset.type === type ? "true" : "false");
  };
  const picks = types.map((type) => button(type, () => attempt(() => open(type)), { data: { type }, "aria-pressed": "false" }));
  show(
    "HTTP API",
    h("p", {}, "All requests, and what they need: ",
      h("a", { href: `${server.url}/api/help`, target: "_blank", rel: "noreferrer" }, "help"), ", ",
      h("a", { href: `${server.url}/api/openapi.json`, target: "_blank", rel: "noreferrer" }, "openapi.json"),
      ". Per data type:"),
    h("div", { class: "ends types" }, picks), text,
  );
  if (types.length) await open(types.includes("uint8blk") ? "uint8blk" : types[0]);
}

// -- neuroglancer ---------------------------------------------------------------------------

let here = null; // whether this page's own server has neuroglancer

async function viewerAt(app) {
  if (app.server.store.viewer) return app.server.url;
  if (here === null) {
    const own = new Server(HERE);
    await own.greet();
    here = own.store.viewer;
  }
  return here ? HERE : "";
}

/** Returns the state of neuroglancer for an array, and labels over it. */
export function neuroglancerState(app, array, overlay) {
  const { server, state } = app;
  const scale = metres(array);
  const layers = [array, overlay].filter(Boolean).map((each) => ({
    type: each.kind === "label" ? "segmentation" : "image",
    name: each.name,
    source: each.source === "dvid"
      ? `dvid://${server.url}/${state.node}/${each.name}`
      : `precomputed://${server.url}/api/${path`page/node/${state.node}/precomputed/${each.name}`}`,
  }));
  const position = state.view === array.name && state.at
    ? app.viewer.at
    : array.lo.map((lo, axis) => Math.floor((lo + array.hi[axis]) / 2));
  return {
    dimensions: Object.fromEntries(["x", "y", "z"].map((axis, i) => [axis, [scale[i], "m"]])),
    position: position.map((each) => each + 0.5),
    crossSectionScale: state.view && state.zoom ? 1 / state.zoom : 1,
    layers,
    selectedLayer: { layer: array.name, visible: true },
    layout: "4panel",
  };
}

/** A button that opens neuroglancer on an array, where some server has it. */
export function neuroglancer(app, array) {
  if (!array.source || !array.lo) return null;
  const place = h("span", {});
  viewerAt(app).then((base) => {
    if (!base) return;
    put(place, button("Open in neuroglancer", () => {
      const overlay = app.state.view === array.name && app.node.arrays.find((each) => each.name === app.state.overlay);
      const { token } = app.server.access;
      if (base === HERE && token) {
        document.cookie = `diced-viewer=${encodeURIComponent(token)}; path=/view/credentials; samesite=strict`;
      }
      const text = encodeURIComponent(JSON.stringify(neuroglancerState(app, array, overlay)));
      window.open(`${base}/view/v/diced/#!${text}`, "_blank", "noopener");
    }, { data: { neuroglancer: array.name } }));
  }).catch(() => {});
  return place;
}
