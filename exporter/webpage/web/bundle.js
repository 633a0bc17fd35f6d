// The bundle beside the page: its manifest, tokenizer, graphs and reference.
import { LiteRTBackend } from "./backend.js";
import { RunError } from "./errors.js";
import { readModels } from "./litertlm.js";
import { readManifest } from "./manifest.js";
import { readReference } from "./reference.js";
import { Session } from "./speculative.js";
import { renderChat, Tokenizer } from "./tokenizer.js";

const MAX_TOKEN_LENGTH = 256; // more than any token of Gemma stands for
const LIBRARY = "@litertjs/core"; // index.html says where it lies

/**
 * Load the bundle in a folder.
 *
 * @param {string} folder its URL.
 * @param {(line: string) => void} progress what is being done.
 * @throws {RunError} one line: what is missing or wrong and what to do.
 */
export async function openBundle(folder, progress = () => {}) {
  const manifest = readManifest(await download(folder, "manifest.json"));
  const { litert } = manifest.runtimes;
  if (!litert) throw new RunError("this bundle has no LiteRT graphs; export with --runtime litert");
  const read = (name) => {
    const { size_bytes } = manifest.files[name];
    const show = (done) => progress(`${name}: ${megabytes(done)} of ${megabytes(size_bytes)} MB`);
    return download(folder, name, size_bytes, show);
  };
  progress("loading the runtime");
  const library = await loadLibrary(folder);
  const tokenizer = new Tokenizer(parse("tokenizer.json", await read(manifest.tokens.tokenizer)));
  const models = readModels(await read(litert.model));
  progress("preparing the graphs");
  const backend = await LiteRTBackend.load(library, models);
  const session = new Session(backend, manifest.model.context_length);
  return new Bundle(manifest, tokenizer, backend, session, read);
}

class Bundle {
  #read;

  constructor(manifest, tokenizer, backend, session, read) {
    Object.assign(this, { manifest, tokenizer, backend, session });
    this.#read = read;
  }

  get hasChat() {
    return this.manifest.tokens.chat_template !== null;
  }

  /** The ids of the tokens between which the model thinks; null if it does not. */
  get thought() {
    const { soc_token, eoc_token } = this.manifest.tokens.special_tokens ?? {};
    const ids = [soc_token, eoc_token].map((text) => this.tokenizer.tokenId(text));
    return ids.includes(undefined) ? null : ids;
  }

  /** The tokens of plain text, begun with the beginning-of-sequence token. */
  encode(text) {
    const bos = this.manifest.tokens.bos_token_id;
    const ids = this.#encode(text);
    return bos === null || ids[0] === bos ? ids : [bos, ...ids];
  }

  /** The tokens of one turn of the user, up to where the model's begins. */
  encodeChat(text) {
    const bos = this.manifest.tokens.bos_token_id;
    const begin = bos === null ? "" : this.tokenizer.text(bos);
    return this.#encode(renderChat([{ fromUser: true, text }], begin));
  }

  /** What can't fit the context is refused before it is tokenized. */
  #encode(text) {
    const { context_length: length } = this.manifest.model;
    if (text.length > MAX_TOKEN_LENGTH * length) {
      throw new RunError(
        `the prompt has ${text.length} characters, more than a context of ${length} tokens can hold; shorten it`,
      );
    }
    return this.tokenizer.encode(text);
  }

  async reference() {
    const bytes = await this.#read(this.manifest.reference);
    return readReference(bytes, this.manifest.model.vocab_size);
  }

  /** How many recorded prompts become the tokens that were recorded, as text or as a chat's turn. */
  numPromptsEqual({ prompts, promptIds }) {
    const same = (ids, wanted) => ids.join() === wanted.join();
    return prompts.filter((text, index) =>
      [this.encode(text), this.encodeChat(text)].some((ids) => same(ids, promptIds[index])),
    ).length;
  }
}

async function loadLibrary(folder) {
  try {
    const library = await import(LIBRARY);
    await library.loadLiteRt(new URL(`node_modules/${LIBRARY}/wasm/`, folder).href);
    return library;
  } catch (error) {
    throw new RunError(
      `${LIBRARY} does not load (${error.message ?? error}); in the bundle's folder run: ` +
        "npm install --no-save --prefix . @litertjs/core@2.5.3",
    );
  }
}

function parse(name, bytes) {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch (error) {
    throw new RunError(`${name}: not valid JSON (${error.message}); copy it again`);
  }
}

/** A file's bytes; of `size` bytes, where that is known. */
async function download(folder, name, size, progress = () => {}) {
  // Without this, "data:,x" and "%2e%2e" in a file's name would lead out of the bundle.
  const path = name.split("/").map(encodeURIComponent).join("/");
  const response = await fetch(new URL(path, folder));
  if (!response.ok) throw new RunError(`${name}: the server says ${response.status}; copy it again`);
  if (size === undefined) return new Uint8Array(await response.arrayBuffer());
  const bytes = new Uint8Array(size);
  let done = 0;
  for (let reader = response.body.getReader(); ; progress(done)) {
    const { value } = await reader.read();
    if (!value) break;
    if (done + value.length <= size) bytes.set(value, done);
    done += value.length;
  }
  if (done !== size) {
    throw new RunError(`${name}: ${done} bytes, the manifest says ${size}; copy it again`);
  }
  return bytes;
}

function megabytes(bytes) {
  return (bytes / 1e6).toFixed(1);
}
