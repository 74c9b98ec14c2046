// Tiles of planes: what they hold, how they are fetched, what colours they get.

import { path } from "./api.js";

export const SIDE = 256;
const AT_ONCE = 6;
const MOST_BYTES = 192e6;
const AXES = { xy: [0, 1, 2], xz: [0, 2, 1], yz: [2, 1, 0] }; // right, down, into the screen

export function axes(plane) {
  return AXES[plane];
}

const TYPES = {
  bool: Uint8Array, uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array,
  uint32: Uint32Array, int32: Int32Array, float32: Float32Array, float64: Float64Array,
  uint64: BigUint64Array, int64: BigInt64Array, float16: Uint16Array,
};
const SIZES = { bool: 1, uint8: 1, int8: 1, uint16: 2, int16: 2, float16: 2, uint32: 4, int32: 4, float32: 4 };

export function itemsize(dtype) {
  return SIZES[dtype] || 8;
}

/** Tells whether an array can be looked at. */
export function drawable(array) {
  return !!array && array.dims === 3 && array.dtype in TYPES && !!array.lo;
}

export function labels(array) {
  return array.kind === "label" || array.dtype === "uint64";
}

/** Decompresses an LZ4 block whose size is known. */
export function unlz4(source, size) {
  const out = new Uint8Array(size);
  let from = 0;
  let to = 0;
  const more = (start) => {
    let total = start;
    if (start === 15) {
      let byte;
      do {
        if (from >= source.length) throw new Error("a tile is cut short");
        byte = source[from++];
        total += byte;
      } while (byte === 255);
    }
    return total;
  };
  while (from < source.length) {
    const token = source[from++];
    const plain = more(token >> 4);
    if (from + plain > source.length || to + plain > size) throw new Error("a tile is damaged");
    out.set(source.subarray(from, from + plain), to);
    from += plain;
    to += plain;
    if (from >= source.length) break;
    const back = source[from] | (source[from + 1] << 8);
    from += 2;
    const length = more(token & 15) + 4;
    if (!back || back > to || to + length > size) throw new Error("a tile is damaged");
    if (back >= length) {
      out.copyWithin(to, to - back, to - back + length);
      to += length;
    } else {
      for (const end = to + length; to < end; to++) out[to] = out[to - back];
    }
  }
  if (to !== size) throw new Error("a tile is cut short");
  return out;
}

function half(bits) {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const sign = bits & 0x8000 ? -1 : 1;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** The colour of a label, given as two halves: 0xBBGGRR. The server's thumbnails have the same. */
export function colour(low, high) {
  if (low === 0 && high === 0) return 0;
  let hash = (low + Math.imul(high, 0x85ebca6b)) | 0;
  hash = Math.imul(hash ^ (hash >>> 16), 0x9e3779b1);
  hash = (hash ^ (hash >>> 15)) >>> 0;
  const turn = hash % 1536;
  const white = (hash >>> 11) & 127;
  const dark = 256 - ((hash >>> 18) & 63);
  let found = 0;
  for (let channel = 2; channel >= 0; channel--) {
    const turned = (turn + 512 * (2 - channel) + 512) % 1536;
    const pure = Math.max(0, Math.min(255, 512 - Math.abs(turned - 768)));
    found = (found << 8) | (((pure + (((255 - pure) * white) >> 8)) * dark) >> 8);
  }
  return found;
}

/** One array at one version, as the viewer draws it. */
export class Layer {
  constructor(server, node, array) {
    this.server = server;
    this.node = node;
    this.array = array;
    this.labels = labels(array) && !array.channels;
    this.key = `${server.url}|${node}|${array.name}`;
    this.size = itemsize(array.dtype) * (array.channels || 1);
    // DVID's own way to read a plane, for the types that DVID has.
    this.plain = !server.ours || /^((uint(8|16|32|64)|float32|rgba8)blk|label(blk|array|map))$/.test(array.type);
    this.window = array.dtype === "uint8" || array.dtype === "bool" ? [0, array.dtype === "bool" ? 1 : 255] : null;
    this.chosen = null; // the label under the pointer
    this.generation = 0;
  }

  setWindow(low, high) {
    this.window = [low, high];
    this.generation += 1;
  }
}

class Tile {
  constructor() {
    this.state = "wanted"; // wanted, loading, done, empty, failed
    this.canvas = null;
    this.values = null;
    this.used = 0;
    this.generation = -1;
    this.bytes = 0;
  }
}

/** Fetches tiles, some at a time, the newest wishes first, and keeps them. */
export class Tiles {
  constructor(changed) {
    this.changed = changed;
    this.tiles = new Map();
    this.queue = [];
    this.running = new Set();
    this.bytes = 0;
    this.clock = 0;
    this.problem = () => {};
  }

  /** Begins a drawing: what is not asked for in it is not fetched any more. */
  begin() {
    this.clock += 1;
    this.queue = [];
  }

  /**
   * Returns a tile, there or not.
   *
   * `at` is [column, row] of the tile, `depth` the coordinate into the screen.
   */
  get(layer, plane, steps, at, depth) {
    const key = `${layer.key}|${plane}|${steps}|${at}|${depth}`;
    let tile = this.tiles.get(key);
    if (!tile) {
      tile = new Tile();
      tile.part = part(layer.array, plane, steps, at, depth);
      tile.owner = `${layer.key}|${plane}`;
      if (!tile.part) tile.state = "empty";
      this.tiles.set(key, tile);
    }
    tile.used = this.clock;
    if (tile.state === "wanted") this.queue.push([tile, layer, plane]);
    if (tile.state === "done" && tile.generation !== layer.generation) paint(tile, layer);
    return tile;
  }

  /** Ends a drawing: fetches what is missing. */
  end() {
    for (const job of this.running) {
      if (job.tile.used < this.clock - 2) job.abort.abort();
    }
    this.pump();
    if (this.bytes > MOST_BYTES || this.tiles.size > 20000) this.trim();
  }

  get idle() {
    return !this.queue.length && !this.running.size;
  }

  pump() {
    while (this.running.size < AT_ONCE && this.queue.length) {
      const [tile, layer, plane] = this.queue.shift();
      if (tile.state === "wanted") this.load(tile, layer, plane);
    }
  }

  async load(tile, layer, plane) {
    const job = { tile, abort: new AbortController() };
    tile.state = "loading";
    this.running.add(job);
    try {
      tile.values = await fetchPart(layer, plane, tile.part, job.abort.signal);
      if (!layer.window) layer.window = guess(tile.values, layer.array.dtype);
      paint(tile, layer);
      tile.state = "done";
      tile.bytes = tile.values.byteLength + 4 * tile.canvas.width * tile.canvas.height;
      this.bytes += tile.bytes;
    } catch (error) {
      tile.state = error.name === "AbortError" ? "wanted" : "failed";
      if (tile.state === "failed") this.problem(error);
    }
    this.running.delete(job);
    this.pump();
    this.changed();
  }

  trim() {
    const old = [...this.tiles].filter(([, tile]) => tile.used < this.clock).sort((a, b) => a[1].used - b[1].used);
    for (const [key, tile] of old) {
      if (this.bytes < MOST_BYTES * 0.7 && this.tiles.size < 15000) break;
      if (tile.state === "loading") continue;
      this.bytes -= tile.bytes;
      this.tiles.delete(key);
    }
  }

  /** Forgets everything that was read at a version. */
  forget(node) {
    for (const [key, tile] of this.tiles) {
      if (key.includes(`|${node}|`) && tile.state !== "loading") {
        this.bytes -= tile.bytes;
        this.tiles.delete(key);
      }
    }
  }
}

/** Returns the part of a tile that is inside the array: {lo, count, shift}, or null. */
function part(array, plane, steps, at, depth) {
  const [right, down, into] = axes(plane);
  if (depth < array.lo[into] || depth >= array.hi[into]) return null;
  const found = { lo: [0, 0, 0], count: [0, 0], steps };
  found.lo[into] = depth;
  for (const [i, axis] of [right, down].entries()) {
    const step = steps[i];
    const start = at[i] * SIDE * step;
    const lo = Math.max(start, Math.ceil(array.lo[axis] / step) * step);
    const hi = Math.min(start + SIDE * step, array.hi[axis]);
    if (lo >= hi) return null;
    found.lo[axis] = lo;
    found.count[i] = Math.ceil((hi - lo) / step);
  }
  return found;
}

async function fetchPart(layer, plane, found, signal) {
  const { server, node, array } = layer;
  const [right, down] = axes(plane);
  const { lo, count, steps } = found;
  const size = count[0] * count[1] * layer.size;
  const query = {};
  if (layer.labels) query.compression = "lz4";
  let buffer;
  if (layer.plain && steps[0] === 1 && steps[1] === 1) {
    const shape = [1, 1, 1];
    shape[right] = count[0];
    shape[down] = count[1];
    const where = `${path`node/${node}/${array.name}`}/raw/0_1_2/${shape.join("_")}/${lo.join("_")}`;
    buffer = await server.buffer(where, { signal, query });
  } else {
    // The server's rows and columns: of yz it has y across.
    const turned = plane === "yz";
    const [u, v] = turned ? [1, 0] : [0, 1];
    const where = `${path`page/node/${node}/tile/${array.name}`}/${plane}/${steps[u]}_${steps[v]}/${count[u]}_${count[v]}/${lo.join("_")}`;
    buffer = await server.buffer(where, { signal, query });
  }
  let octets = new Uint8Array(buffer);
  if (octets.length !== size) {
    if (!layer.labels) throw new Error(`${array.name}: ${octets.length} bytes came instead of ${size}`);
    octets = unlz4(octets, size);
  }
  const values = new TYPES[array.dtype](octets.buffer, octets.byteOffset, size / itemsize(array.dtype));
  return plane === "yz" ? turn(values, count, array.channels || 1) : values;
}

/** Turns rows of z that hold y into rows of y that hold z. */
function turn(values, [columns, rows], channels) {
  const out = new values.constructor(values.length);
  for (let z = 0; z < columns; z++) {
    for (let y = 0; y < rows; y++) {
      for (let c = 0; c < channels; c++) {
        out[(y * columns + z) * channels + c] = values[(z * rows + y) * channels + c];
      }
    }
  }
  return out;
}

/** Guesses which values are black and white. */
function guess(values, dtype) {
  const every = Math.max(1, Math.floor(values.length / 4096));
  const some = [];
  for (let i = 0; i < values.length; i += every) {
    const value = dtype === "float16" ? half(values[i]) : Number(values[i]);
    if (Number.isFinite(value)) some.push(value);
  }
  some.sort((a, b) => a - b);
  if (!some.length) return [0, 1];
  const [low, high] = [some[Math.floor(some.length * 0.01)], some[Math.ceil((some.length - 1) * 0.99)]];
  return high > low ? [low, high] : [low, low + 1];
}

function paint(tile, layer) {
  const [columns, rows] = tile.part.count;
  const canvas = tile.canvas || document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const out = new Uint32Array(image.data.buffer);
  const { values } = tile;
  const channels = layer.array.channels || 1;
  if (layer.labels && values instanceof BigUint64Array) {
    const halves = new Uint32Array(values.buffer, values.byteOffset, 2 * values.length);
    let [low, high, last] = [0, 0, 0];
    for (let i = 0; i < out.length; i++) {
      if (halves[2 * i] !== low || halves[2 * i + 1] !== high) {
        low = halves[2 * i];
        high = halves[2 * i + 1];
        const found = colour(low, high);
        last = low || high ? (found | 0xff000000) >>> 0 : 0;
      }
      out[i] = last;
    }
  } else if (layer.labels) {
    for (let i = 0; i < out.length; i++) {
      const value = Number(values[i]) >>> 0;
      out[i] = value ? (colour(value, 0) | 0xff000000) >>> 0 : 0;
    }
  } else if (channels >= 3 && layer.array.dtype === "uint8") {
    for (let i = 0; i < out.length; i++) {
      const j = i * channels;
      out[i] = ((255 << 24) | (values[j + 2] << 16) | (values[j + 1] << 8) | values[j]) >>> 0;
    }
  } else {
    const [low, high] = layer.window;
    const scale = 255 / (high - low || 1);
    const read = layer.array.dtype === "float16" ? half : Number;
    for (let i = 0; i < out.length; i++) {
      const grey = Math.max(0, Math.min(255, Math.round((read(values[i * channels]) - low) * scale))) || 0;
      out[i] = ((255 << 24) | (grey << 16) | (grey << 8) | grey) >>> 0;
    }
  }
  context.putImageData(image, 0, 0);
  tile.canvas = canvas;
  tile.generation = layer.generation;
}

/** Returns the value of a voxel of a tile as text, or null. */
export function probe(tile, layer, plane, voxel) {
  if (tile.state !== "done") return null;
  const [right, down] = axes(plane);
  const { lo, count, steps } = tile.part;
  const column = Math.floor((voxel[right] - lo[right]) / steps[0]);
  const row = Math.floor((voxel[down] - lo[down]) / steps[1]);
  if (column < 0 || row < 0 || column >= count[0] || row >= count[1]) return null;
  const channels = layer.array.channels || 1;
  const first = (row * count[0] + column) * channels;
  const read = layer.array.dtype === "float16" ? half : (each) => each;
  return Array.from({ length: channels }, (_, c) => String(read(tile.values[first + c]))).join(", ");
}
