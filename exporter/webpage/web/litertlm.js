// The .litertlm container: which model lies where; runtime_py/formats/litertlm.py is its twin.
import { RunError } from "./errors.js";

const HEADER_START = 32; // magic, three uint32 of version, padding, uint64 end of the header
const FORMAT_VERSION = 1;
const TFLITE_MODEL = 3;
const MAX_ITEMS = 1024;

/**
 * The .tflite sections of a .litertlm file, by model type ("tf_lite_prefill_decode" …); views, no
 * copies.
 *
 * @param {Uint8Array} bytes the whole file; every offset in it is checked before it is followed.
 * @returns {Map<string, Uint8Array>}
 */
export function readModels(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const magic = new TextDecoder().decode(bytes.subarray(0, 8));
  if (magic !== "LITERTLM" || bytes.length < HEADER_START) {
    throw new RunError("not a .litertlm file; copy it again");
  }
  const major = view.getUint32(8, true);
  if (major !== FORMAT_VERSION) {
    throw new RunError(`.litertlm version ${major}, this page reads ${FORMAT_VERSION}; export again`);
  }
  const headerEnd = Number(view.getBigUint64(24, true));
  try {
    const header = bytes.subarray(HEADER_START, headerEnd);
    return new Map(sections(header, headerEnd, bytes));
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // DataView's, or ours below
    throw new RunError(`damaged .litertlm header (${error.message}); copy the file again`);
  }
}

function* sections(header, headerEnd, bytes) {
  const view = new DataView(header.buffer, header.byteOffset, header.byteLength);
  const list = Table.root(view).table(1);
  for (const entry of list?.tables(0) ?? []) {
    if (entry.byte(3) !== TFLITE_MODEL) continue;
    const [begin, end] = [entry.long(1), entry.long(2)];
    if (!(headerEnd <= begin && begin <= end && end <= bytes.length)) {
      throw new RangeError(`a section at bytes ${begin} to ${end} of ${bytes.length}`);
    }
    yield [modelType(entry), bytes.subarray(begin, end)];
  }
}

function modelType(entry) {
  for (const item of entry.tables(0)) {
    if (item.string(0) === "model_type") return item.table(2)?.string(0).toLowerCase() ?? "";
  }
  return "";
}

/** A flatbuffer table, its fields numbered as in the schema. DataView refuses what leads out. */
class Table {
  constructor(view, position) {
    this.view = view;
    this.position = position;
    this.vtable = position - view.getInt32(position, true);
    this.vtableBytes = view.getUint16(this.vtable, true);
  }

  static root(view) {
    return new Table(view, view.getUint32(0, true));
  }

  byte(field) {
    const at = this.#at(field);
    return at === null ? 0 : this.view.getUint8(at);
  }

  long(field) {
    const at = this.#at(field);
    return at === null ? 0 : Number(this.view.getBigUint64(at, true));
  }

  table(field) {
    const at = this.#at(field);
    return at === null ? null : new Table(this.view, this.#follow(at));
  }

  tables(field) {
    const [start, length] = this.#vector(field);
    const places = Array.from({ length }, (_, index) => start + 4 * index);
    return places.map((at) => new Table(this.view, this.#follow(at)));
  }

  string(field) {
    const [start, length] = this.#vector(field);
    const bytes = Uint8Array.from({ length }, (_, index) => this.view.getUint8(start + index));
    return new TextDecoder().decode(bytes);
  }

  #vector(field) {
    const at = this.#at(field);
    if (at === null) return [0, 0];
    const start = this.#follow(at);
    const length = this.view.getUint32(start, true);
    if (length > MAX_ITEMS) throw new RangeError(`${length} items`);
    return [start + 4, length];
  }

  #at(field) {
    const entry = 4 + 2 * field;
    if (entry + 2 > this.vtableBytes) return null;
    const offset = this.view.getUint16(this.vtable + entry, true);
    return offset ? this.position + offset : null;
  }

  #follow(at) {
    return at + this.view.getUint32(at, true);
  }
}
