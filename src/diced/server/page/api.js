// Servers: this one and others, their requests and what they answer.

const SERVERS = "diced.servers";
const ACCESS = "diced.access";
export const HERE = new URL(".", document.baseURI).href.replace(/\/$/, "");

export class ApiError extends Error {
  constructor(status, text) {
    super(text.trim() || `the server answered ${status}`);
    this.name = "ApiError";
    this.status = status;
  }
}

/** Puts values into a path, each as one piece. */
export function path(texts, ...values) {
  return String.raw({ raw: texts }, ...values.map((each) => encodeURIComponent(each)));
}

function load(storage, key, fallback) {
  try {
    return JSON.parse(storage.getItem(key)) ?? fallback;
  } catch {
    return fallback;
  }
}

/** Returns the URLs of all servers known, this one first. */
export function servers() {
  const others = load(localStorage, SERVERS, []).filter((each) => typeof each === "string" && each !== HERE);
  return [HERE, ...others];
}

export function addServer(text) {
  let url;
  try {
    url = new URL(/^[a-z]+:\/\//i.test(text.trim()) ? text.trim() : `http://${text.trim()}`);
  } catch {
    throw new Error(`${text} is not the address of a server`);
  }
  if (!["http:", "https:"].includes(url.protocol)) throw new Error("servers are reached by http or https");
  const address = (url.origin + url.pathname).replace(/\/+$/, "").replace(/\/api$/, "");
  localStorage.setItem(SERVERS, JSON.stringify([...new Set([...servers().slice(1), address])]));
  return address;
}

export function dropServer(url) {
  localStorage.setItem(SERVERS, JSON.stringify(servers().slice(1).filter((each) => each !== url)));
}

export class Server {
  constructor(url) {
    this.url = url;
    this.ours = false; // it answers below /api/page
    this.store = null;
  }

  get access() {
    return load(sessionStorage, ACCESS, {})[this.url] || {};
  }

  set access(value) {
    sessionStorage.setItem(ACCESS, JSON.stringify({ ...load(sessionStorage, ACCESS, {}), [this.url]: value }));
  }

  /** Finds out what server this is. */
  async greet() {
    try {
      this.store = await this.json("page/store");
      this.ours = true;
    } catch (error) {
      if (error.status === 401 || error.status === 403 || !error.status) throw error;
      // A server that speaks DVID's API and no more; what it refuses it will say.
      this.store = { info: {}, viewer: false, rights: { create: true, admin: true, write: true, rename: true, remove: true } };
      this.ours = false;
    }
  }

  async fetch(where, { method = "GET", body = null, query = {}, signal = null, headers = {} } = {}) {
    const url = new URL(`${this.url}/api/${where}`);
    const access = this.access;
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
    if (access.user) url.searchParams.set("u", access.user);
    if (access.admin) url.searchParams.set("admintoken", access.admin);
    if (access.token) headers = { ...headers, Authorization: `Bearer ${access.token}` };
    let answer;
    try {
      answer = await fetch(url, { method, body, signal, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error(`${this.url} does not answer`);
    }
    if (!answer.ok) throw new ApiError(answer.status, await answer.text());
    return answer;
  }

  async json(where, options) {
    return (await this.fetch(where, options)).json();
  }

  async text(where, options) {
    return (await this.fetch(where, options)).text();
  }

  async buffer(where, options) {
    return (await this.fetch(where, options)).arrayBuffer();
  }

  post(where, value, options = {}) {
    const body = value instanceof Blob || value instanceof ArrayBuffer || ArrayBuffer.isView(value);
    return this.fetch(where, { ...options, method: "POST", body: body ? value : JSON.stringify(value) });
  }
}

/** Describes an array as our server does, from an instance of a DVID server. */
export function fromDvid(instance) {
  const { Base: base, Extended: extended } = instance;
  const found = { name: base.Name, type: base.TypeName, kind: "other", versioned: base.Versioned !== false };
  if (base.TypeName === "keyvalue") return { ...found, kind: "keyvalue" };
  const values = extended && extended.Values;
  if (!values || !values.length || !extended.BlockSize) return found;
  const max = extended.MaxPoint;
  return {
    ...found,
    kind: base.TypeName.startsWith("label") ? "label" : "image",
    dtype: values[0].DataType,
    dims: extended.BlockSize.length,
    channels: values.length > 1 ? values.length : null,
    lo: extended.MinPoint || null,
    hi: max ? max.map((each) => each + 1) : null,
    block: extended.BlockSize,
    voxel: extended.VoxelSize || [1, 1, 1],
    units: extended.VoxelUnits || ["", "", ""],
    codec: base.Compression || "",
    source: /^(uint8blk|labelblk|labelarray|labelmap)$/.test(base.TypeName) ? "dvid" : "",
  };
}
