// What the page's readers make of files, whole and damaged: node page_files.mjs MODULES CONTAINER
// REFERENCE TINY_TOKENIZER prints the container's models as [type, begin, end], or fails.
import assert from "node:assert/strict";
import fs from "node:fs";
import { pathToFileURL } from "node:url";
import { hashedLogits } from "./scripted_backend.mjs";

const [modules, container, npz, tinyTokenizer] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(`${modules}/${name}.js`));
const read = (path) => new Uint8Array(fs.readFileSync(path));
const { RunError } = await load("errors");
const { readModels } = await load("litertlm");
const { readReference } = await load("reference");
const { TextStream, Tokenizer } = await load("tokenizer");

const lineSaying = (pattern) => (error) => {
  assert(error instanceof RunError, error);
  assert.match(error.message, pattern);
  return true;
};
const patched = (bytes, offset, values) => {
  const copy = bytes.slice();
  copy.set(values, offset);
  return copy;
};
/** Anything but a RunError fails; whether what is damaged is still readable does not matter here. */
const readsOrRefuses = (reader, bytes) => {
  try {
    return reader(bytes);
  } catch (error) {
    assert(error instanceof RunError, error);
    return null;
  }
};

const whole = read(container);
assert.throws(() => readModels(patched(whole, 0, [71, 71, 85, 70])), lineSaying(/not a \.litertlm file/));
assert.throws(() => readModels(patched(whole, 8, [2])), lineSaying(/version 2, this page reads 1/));
for (const length of [0, 7, 31, 32, 40, 200, 20_000]) {
  assert.throws(() => readModels(whole.slice(0, length)), lineSaying(/copy/));
}
const headerEnd = new DataView(whole.buffer).getUint32(24, true);
for (let seed = 0; seed < 500; seed++) {
  const [place, ...bytes] = hashedLogits(BigInt(seed), 5, 256);
  const [more] = hashedLogits(BigInt(seed), 1, 1000);
  const offset = 24 + ((Math.round(place) * 1000 + more) % (headerEnd - 28));
  const models = readsOrRefuses(readModels, patched(whole, offset, seed % 2 ? bytes : [255, 255, 255, 255]));
  for (const model of models?.values() ?? []) {
    assert(model.byteOffset + model.length <= whole.length);
  }
}

const recorded = read(npz);
const { greedyIds, probeLogits } = readReference(recorded, Infinity);
assert.equal(greedyIds.length, probeLogits.length);
for (const length of [0, 10, 22, 200, recorded.length - 1]) {
  assert.throws(() => readReference(recorded.slice(0, length), Infinity), lineSaying(/export again/));
}
for (let seed = 0; seed < 500; seed++) {
  const [high, low, value] = hashedLogits(BigInt(seed), 3, 4096);
  const offset = (high * 4096 + low) % recorded.length;
  readsOrRefuses((bytes) => readReference(bytes, Infinity), patched(recorded, offset, [value % 256]));
}

const inText = Buffer.from(recorded).toString("latin1");
const scaleAt = inText.indexOf("\n", inText.indexOf("logit_scale.npy")) + 1; // behind its header
for (const scale of [NaN, Infinity, 0, -1, 1e9]) {
  const wrong = patched(recorded, scaleAt, [...new Uint8Array(new Float32Array([scale]).buffer)]);
  assert.throws(() => readReference(wrong, Infinity), lineSaying(/a scale of/));
}
assert.throws(() => readReference(recorded, 2), lineSaying(/token \d+ of 2/));

const tokenizer = JSON.parse(fs.readFileSync(tinyTokenizer, "utf8"));
const refused = {
  "model.type is Unigram": { model: { ...tokenizer.model, type: "Unigram" } },
  "model.dropout is 0.1": { model: { ...tokenizer.model, dropout: 0.1 } },
  "normalizer is NFC": { normalizer: { type: "NFC" } },
  "decoder is Metaspace": { decoder: { type: "Metaspace" } },
  "lstrip is true": { added_tokens: [{ ...tokenizer.added_tokens[0], lstrip: true }] },
};
for (const [said, change] of Object.entries(refused)) {
  assert.throws(() => new Tokenizer({ ...tokenizer, ...change }), lineSaying(new RegExp(said)));
}

// A character of several tokens is not shown before it is whole.
const known = new Tokenizer(tokenizer);
const text = "naïve café 東京 🙂";
const stream = new TextStream(known);
const pieces = known.encode(text).map((id) => stream.push([id]));
assert(pieces.every((piece) => !piece.includes("\ufffd")));
assert.equal(pieces.join("") + stream.finish(), text);

const models = [...readModels(whole)];
console.log(JSON.stringify(models.map(([type, { byteOffset, length }]) => [type, byteOffset, byteOffset + length])));
