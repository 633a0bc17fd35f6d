// A bundle's tokenizer.json: byte-pair encoding as Gemma has it (spaces become ▁, unknown characters
// become bytes) or as GPT-2 has it (everything is bytes).
//
// What it does not know in the file is refused by name, so that it never tokenizes otherwise than the
// library that wrote the file. Ids of text are proved against that library by golden traces.
import { RunError } from "./errors.js";

const GONE = -1;
const REPLACEMENT = "\ufffd";
const BYTE_LEVEL = {
  normalizer: ["none"],
  pre_tokenizer: ["ByteLevel"],
  decoder: ["ByteLevel"],
};
const SPACES = {
  normalizer: ["Replace"],
  // Splits at spaces, of which the normalizer has left none.
  pre_tokenizer: ["none", "Split"],
  decoder: ["Replace+ByteFallback+Fuse"],
};
const S = "\\p{White_Space}";
const WORDS = new RegExp(
  `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${S}\\p{L}\\p{N}]+|${S}+(?!\\P{White_Space})|${S}+`,
  "gu",
);
/** GPT-2's sign for each byte: itself where it is visible, else one past 255. */
const SIGN_OF = [];
for (let byte = 0, numHidden = 0; byte < 256; byte++) {
  const visible = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  SIGN_OF.push(String.fromCodePoint(visible ? byte : 256 + numHidden++));
}
const BYTE_OF = new Map(SIGN_OF.map((sign, byte) => [sign, byte]));
const BYTE_TOKEN = /^<0x[0-9A-Fa-f]{2}>$/;
const utf8 = new TextEncoder();

export class Tokenizer {
  #ids = new Map();
  #texts = [];
  #merges = new Map(); // "left right" -> {rank, id}, left and right being ids
  #added = []; // texts, the longest first
  #special = new Set();
  #byteLevel;
  #byteIds; // of <0x00> … <0xFF>, where unknown characters become bytes, else null

  /** @param root the parsed tokenizer.json. */
  constructor(root) {
    const model = root.model ?? refuse("model", root.model);
    this.#byteLevel = root.pre_tokenizer?.type === "ByteLevel";
    checkKinds(root, model, this.#byteLevel ? BYTE_LEVEL : SPACES);
    for (const [text, id] of Object.entries(model.vocab)) this.#ids.set(text, id);
    for (const [rank, pair] of model.merges.entries()) {
      const [left, right] = typeof pair === "string" ? pair.split(" ") : pair;
      const [leftId, rightId, id] = [left, right, left + right].map((text) => this.#id(text));
      this.#merges.set(`${leftId} ${rightId}`, { rank, id });
    }
    for (const token of root.added_tokens ?? []) this.#add(token);
    this.#added.sort((a, b) => b.length - a.length);
    for (const [text, id] of this.#ids) this.#texts[id] = text;
    const bytes = Array.from({ length: 256 }, (_, byte) => this.#ids.get(byteToken(byte)));
    this.#byteIds = bytes.includes(undefined) ? null : bytes;
  }

  /** The ids of a text; control tokens written in it are taken for what they are. */
  encode(text) {
    const found = [];
    let begun = 0;
    for (let at = 0; at < text.length; ) {
      const word = this.#added.find((added) => text.startsWith(added, at));
      if (word === undefined) {
        at++;
        continue;
      }
      found.push(...this.#encodePlain(text.slice(begun, at)), this.#ids.get(word));
      begun = at += word.length;
    }
    return [...found, ...this.#encodePlain(text.slice(begun))];
  }

  /** Text, without the control tokens; bytes that are no whole character become \ufffd. */
  decode(tokenIds) {
    let built = "";
    let bytes = [];
    const flush = () => {
      built += this.#textOfBytes(bytes);
      bytes = [];
    };
    for (const id of tokenIds) {
      if (!this.isShown(id)) continue;
      if (this.#byteLevel) bytes.push(...bytesOfSigns(this.#texts[id]));
      else if (this.isByte(id)) bytes.push(parseInt(this.#texts[id].slice(3, 5), 16));
      else {
        flush();
        built += this.#texts[id].replaceAll("▁", " ");
      }
    }
    flush();
    return built;
  }

  /** Whether `decode` makes text of it: a token, and no control token. */
  isShown(id) {
    return this.#texts[id] !== undefined && !this.#special.has(id);
  }

  /** Whether it stands for one byte, as <0xE2> does: what is no whole character by itself. */
  isByte(id) {
    return BYTE_TOKEN.test(this.#texts[id] ?? "");
  }

  /** How a token is written; "" if there is none. */
  text(tokenId) {
    return this.#texts[tokenId] ?? "";
  }

  /** Undefined if there is no such token. */
  tokenId(text) {
    return this.#ids.get(text);
  }

  #add(token) {
    for (const flag of ["single_word", "lstrip", "rstrip"]) {
      if (token[flag]) refuse(`added token ${token.content}: ${flag}`, true);
    }
    this.#ids.set(token.content, token.id);
    if (token.special) this.#special.add(token.id);
    if (token.content !== "") this.#added.push(token.content);
  }

  #id(text) {
    return this.#ids.get(text) ?? refuse("merges", text);
  }

  #textOfBytes(bytes) {
    // Where tokens stand for bytes, the library makes one sign of each if any of them is wrong.
    const fatal = !this.#byteLevel;
    try {
      return new TextDecoder("utf-8", { ignoreBOM: true, fatal }).decode(Uint8Array.from(bytes));
    } catch {
      return REPLACEMENT.repeat(bytes.length);
    }
  }

  #encodePlain(text) {
    if (!this.#byteLevel) return this.#encodeWord(text.replaceAll(" ", "▁"));
    return (text.match(WORDS) ?? []).flatMap((word) =>
      this.#encodeWord(Array.from(utf8.encode(word), (byte) => SIGN_OF[byte]).join("")),
    );
  }

  /** Byte-pair encoding: the merge of lowest rank first, the leftmost of equals. */
  #encodeWord(word) {
    const symbols = [...word].flatMap((character) => this.#symbols(character));
    const next = symbols.map((_, index) => index + 1);
    const before = symbols.map((_, index) => index - 1);
    const waiting = new Waiting();
    const offer = (left, right) => {
      if (left < 0 || right >= symbols.length) return;
      const merge = this.#merges.get(`${symbols[left]} ${symbols[right]}`);
      if (merge) waiting.push({ ...merge, left, leftId: symbols[left], rightId: symbols[right] });
    };
    symbols.forEach((_, index) => offer(index, index + 1));
    for (let merge = waiting.pop(); merge; merge = waiting.pop()) {
      const { id, left, leftId, rightId } = merge;
      const right = next[left];
      if (symbols[left] !== leftId || symbols[right] !== rightId) continue;
      symbols[left] = id;
      symbols[right] = GONE;
      next[left] = next[right];
      if (next[left] < symbols.length) before[next[left]] = left;
      offer(left, next[left]);
      offer(before[left], left);
    }
    return symbols.filter((id) => id !== GONE);
  }

  /** One id for a character; its bytes' ids where it has none. */
  #symbols(character) {
    const id = this.#ids.get(character);
    if (id !== undefined) return [id];
    if (this.#byteIds) return Array.from(utf8.encode(character), (byte) => this.#byteIds[byte]);
    throw new RunError(`the tokenizer has no token for '${character}'`);
  }
}

/** Merges that can be made, as a heap: the lowest rank on top, the leftmost of equals. */
class Waiting {
  #heap = [];

  push(merge) {
    const heap = this.#heap;
    let slot = heap.length;
    while (slot > 0) {
      const parent = (slot - 1) >> 1;
      if (!sooner(merge, heap[parent])) break;
      heap[slot] = heap[parent];
      slot = parent;
    }
    heap[slot] = merge;
  }

  /** Undefined when there is none. */
  pop() {
    const heap = this.#heap;
    const [first] = heap;
    const merge = heap.pop();
    if (!heap.length) return first;
    let slot = 0;
    for (let child = 1; child < heap.length; child = 2 * slot + 1) {
      if (child + 1 < heap.length && sooner(heap[child + 1], heap[child])) child++;
      if (!sooner(heap[child], merge)) break;
      heap[slot] = heap[child];
      slot = child;
    }
    heap[slot] = merge;
    return first;
  }
}

function sooner(a, b) {
  return a.rank < b.rank || (a.rank === b.rank && a.left < b.left);
}

/**
 * Turns tokens into text as they come, never splitting a character.
 *
 * Held back is what later tokens may change: byte tokens until their run ends, because one wrong byte
 * makes the whole run wrong, and a replacement character at the end, which may become a letter.
 * Thoughts are left out, as Gemma 4's own template strips them.
 */
export class TextStream {
  #tokenizer;
  #context = []; // tokens already decoded, which the next ones continue
  #numShown = 0; // code units of the context's text already given
  #bytes = []; // the run of byte tokens that the text ends in
  #thought;
  #thinking = false;

  /** @param {[number, number] | null} thought the ids that begin and end one. */
  constructor(tokenizer, thought = null) {
    this.#tokenizer = tokenizer;
    this.#thought = thought;
  }

  /** The text that these tokens add. */
  push(tokenIds) {
    const spoken = [...tokenIds].filter((id) => this.#isSpoken(id));
    const shown = spoken.filter((id) => this.#tokenizer.isShown(id));
    const numSettled = shown.findLastIndex((id) => !this.#tokenizer.isByte(id)) + 1;
    if (!numSettled) {
      this.#bytes.push(...shown);
      return "";
    }
    const text = this.#decode([...this.#bytes, ...shown.slice(0, numSettled)]);
    this.#bytes = shown.slice(numSettled);
    return this.#settle(text, text.length - (text.endsWith(REPLACEMENT) ? 1 : 0));
  }

  /** What was held back. */
  finish() {
    const text = this.#decode(this.#bytes);
    this.#bytes = [];
    return this.#settle(text, text.length);
  }

  #isSpoken(id) {
    if (!this.#thought?.includes(id)) return !this.#thinking;
    this.#thinking = id === this.#thought[0];
    return false;
  }

  #decode(tokenIds) {
    this.#context = [...this.#context, ...tokenIds];
    return this.#tokenizer.decode(this.#context);
  }

  #settle(text, end) {
    const added = text.slice(this.#numShown, end);
    const numHeld = text.length - Math.max(end, this.#numShown);
    // A character has at most four bytes, so a letter that later bytes may complete begins here.
    this.#context = this.#context.slice(-4);
    this.#numShown = this.#tokenizer.decode(this.#context).length - numHeld;
    return added;
  }
}

/**
 * The text of a conversation with the model's next turn opened: plain turns as Gemma 4's templates
 * write them. (What else a template can do, tools for example, is not here.)
 *
 * @param {{fromUser: boolean, text: string}[]} turns
 */
export function renderChat(turns, bos) {
  const spoken = turns.map(
    ({ fromUser, text }) => `<|turn>${fromUser ? "user" : "model"}\n${text.trim()}<turn|>\n`,
  );
  return `${bos}${spoken.join("")}<|turn>model\n`;
}

function checkKinds(root, model, known) {
  for (const [name, kinds] of Object.entries(known)) {
    const found = kind(root[name]);
    if (!kinds.includes(found)) refuse(name, found);
  }
  if (model.type !== "BPE") refuse("model.type", model.type);
  for (const name of ["dropout", "continuing_subword_prefix", "end_of_word_suffix"]) {
    if (model[name]) refuse(`model.${name}`, model[name]);
  }
}

/** The types of a part, in their order. */
function kind(part) {
  if (part === null || part === undefined) return "none";
  const parts = Object.values(part).find(Array.isArray);
  return part.type === "Sequence" && parts ? parts.map(kind).join("+") : String(part.type);
}

/** The bytes that GPT-2's signs stand for; of a token with any other sign, its own. */
function bytesOfSigns(text) {
  const bytes = Array.from(text, (sign) => BYTE_OF.get(sign));
  return bytes.includes(undefined) ? utf8.encode(text) : bytes;
}

function byteToken(byte) {
  return `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
}

function refuse(what, found) {
  throw new RunError(`tokenizer.json: ${what} is ${String(found).slice(0, 60)}, which this page cannot do`);
}
