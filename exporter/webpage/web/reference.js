// reference.npz: what the original said, recorded at export; runtime_py/bundle/reference.py owns the format.
import { RunError } from "./errors.js";

const END_OF_ZIP = 0x06054b50;
const ENTRY = 0x02014b50;
const END_BYTES = 22;
const STORED = 0;
const HEADER = /'descr': '([^']+)', 'fortran_order': False, 'shape': \(([0-9, ]*)\)/;
const MOST_UNSEEN = 8; // times the largest logit that was kept may the largest one of all be
const KINDS = { "<i4": Int32Array, "<f4": Float32Array, "|u1": Uint8Array };

/**
 * The original on N prompts: M greedy tokens each, stop tokens ignored. Row i of the last four
 * describes the position that chose greedy token i, given the original's own text before it.
 *
 * @param {Uint8Array} bytes the whole file.
 * @param {number} vocabSize every token in it must be below.
 * @returns prompts (N texts), promptIds, greedyIds [N][M], probeIds [N][M][P] (tokens whose logits
 *     were kept, the likeliest first), probeLogits [N][M][P], logitScale (the largest absolute logit
 *     seen), draftIds [N][M - K][K] (what the original drafter proposes after token i).
 */
export function readReference(bytes, vocabSize) {
  try {
    const arrays = Object.fromEntries(members(bytes));
    const lengths = [...arrays.prompt_lengths.values];
    const starts = lengths.map((_, index) => sum(lengths.slice(0, index)));
    const all = [...arrays.prompt_ids.values];
    const prompts = JSON.parse(new TextDecoder().decode(arrays.prompts.values));
    checkShapes(arrays, prompts.length);
    if (sum(lengths) !== all.length || !lengths.every((length) => length > 0)) {
      throw new RangeError("prompts of other lengths");
    }
    checkValues(arrays, vocabSize);
    return {
      prompts,
      promptIds: lengths.map((length, index) => all.slice(starts[index], starts[index] + length)),
      greedyIds: nested(arrays.greedy_ids),
      probeIds: nested(arrays.probe_ids),
      probeLogits: nested(arrays.probe_logits),
      logitScale: arrays.logit_scale.values[0],
      draftIds: nested(arrays.draft_ids),
    };
  } catch (error) {
    if (![RangeError, SyntaxError, TypeError].some((Kind) => error instanceof Kind)) throw error;
    throw new RunError(`reference.npz: not a recorded reference (${error.message}); export again`);
  }
}

function checkShapes(arrays, numPrompts) {
  const [greedy, ids, logits, drafts, lengths] = [
    "greedy_ids",
    "probe_ids",
    "probe_logits",
    "draft_ids",
    "prompt_lengths",
  ].map((name) => arrays[name].shape);
  const fit =
    greedy.length === 2 &&
    ids.length === 3 &&
    drafts.length === 3 &&
    [greedy, drafts, lengths].every(([first]) => first === numPrompts) &&
    ids.join() === logits.join() &&
    ids.slice(0, 2).join() === greedy.join() &&
    Math.min(...greedy) > 0 &&
    ids[2] > 1 &&
    (drafts[2] === 0 || (drafts[1] > 0 && drafts[1] + drafts[2] <= greedy[1]));
  if (!fit) throw new RangeError("array shapes do not fit each other");
}

/** Everything is measured by the scale, and a wrong one would hide any error. */
function checkValues(arrays, vocabSize) {
  for (const name of ["prompt_ids", "greedy_ids", "probe_ids", "draft_ids"]) {
    const wrong = arrays[name].values.find((id) => !(id >= 0 && id < vocabSize));
    if (wrong !== undefined) throw new RangeError(`token ${wrong} of ${vocabSize}`);
  }
  const scale = arrays.logit_scale.values[0];
  const largest = arrays.probe_logits.values.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
  const fits = largest / 2 <= scale && scale <= MOST_UNSEEN * largest && largest < Infinity;
  if (!fits || !(scale > 0)) throw new RangeError(`a scale of ${scale}, logits up to ${largest}`);
}

/** [name, {values, shape}] of every .npy in the archive, by its directory; DataView checks places. */
function* members(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const end = bytes.length - END_BYTES;
  if (view.getUint32(end, true) !== END_OF_ZIP) throw new RangeError("no .zip");
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    if (view.getUint32(at, true) !== ENTRY) throw new RangeError("no entry of a .zip");
    if (view.getUint16(at + 10, true) !== STORED) throw new RangeError("compressed");
    const size = view.getUint32(at + 24, true);
    const [nameBytes, extraBytes, noteBytes] = [28, 30, 32].map((o) => view.getUint16(at + o, true));
    const local = view.getUint32(at + 42, true);
    const begin = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    const name = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + nameBytes));
    yield [name.replace(/\.npy$/, ""), array(bytes.slice(begin, begin + size))];
    at += 46 + nameBytes + extraBytes + noteBytes;
  }
}

/** One .npy, version 1. */
function array(bytes) {
  const end = 10 + new DataView(bytes.buffer).getUint16(8, true);
  const header = new TextDecoder().decode(bytes.subarray(1, end));
  const [, type, sizes] = header.match(HEADER) ?? [];
  if (!header.startsWith("NUMPY\u0001") || !(type in KINDS)) {
    throw new RangeError(`an array that begins with ${header.slice(0, 80)}`);
  }
  const shape = sizes.split(",").map((size) => size.trim()).filter(Boolean).map(Number);
  const values = new KINDS[type](bytes.slice(end).buffer);
  if (values.length !== shape.reduce((product, size) => product * size, 1)) {
    throw new RangeError(`shape ${shape} with ${values.length} values`);
  }
  return { values, shape };
}

/** Arrays of arrays; the innermost are views. */
function nested({ values, shape: [first, ...rest] }) {
  if (!rest.length) return values;
  const size = rest.reduce((product, length) => product * length, 1);
  return Array.from({ length: first }, (_, index) =>
    nested({ values: values.subarray(index * size, (index + 1) * size), shape: rest }),
  );
}

function sum(numbers) {
  return numbers.reduce((total, number) => total + number, 0);
}
