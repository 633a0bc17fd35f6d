// Whether the page's reader refuses and accepts the manifests that it should: node
// manifest_cases.mjs MODULES CASES prints how many of each, or fails.
import assert from "node:assert/strict";
import fs from "node:fs";
import { pathToFileURL } from "node:url";

const [modules, path] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(`${modules}/${name}.js`));
const { RunError } = await load("errors");
const { checkManifest, readManifest } = await load("manifest");
const cases = JSON.parse(fs.readFileSync(path, "utf8"));
const bytes = (text) => new TextEncoder().encode(text);

/** As in tests/manifest_schema.py: [path] removes what is there, [path, value] puts a value there. */
function edited(values, edits) {
  const copy = structuredClone(values);
  for (const [at, ...value] of edits) {
    const parent = at.slice(0, -1).reduce((found, key) => found[key], copy);
    if (value.length) parent[at.at(-1)] = value[0];
    else delete parent[at.at(-1)];
  }
  return copy;
}

const refused = [...cases.refused_by_schema, ...cases.refused_by_rules];
const accepted = [...cases.accepted, ...cases.accepted_of_a_newer_minor];
const oneLine = (error) => error instanceof RunError && !error.message.includes("\n");
for (const { why, edits } of refused) {
  const values = edited(cases.manifest, edits);
  assert.throws(() => checkManifest(values), oneLine, `${why} ${JSON.stringify(edits)}`);
}
for (const { edits } of accepted) checkManifest(edited(cases.manifest, edits));

const text = JSON.stringify(cases.manifest);
readManifest(bytes(text));
const twice = text.replace('"name"', '"draft_length": 9, "name"');
for (const wrong of ["", "[1]", "null", "[".repeat(100_000), text.slice(0, -1), twice, `\ufeff${text}`]) {
  assert.throws(() => readManifest(bytes(wrong)), oneLine, wrong.slice(0, 40));
}
assert.throws(() => readManifest(bytes(twice)), /duplicate key "draft_length"/);
assert.throws(() => readManifest(new Uint8Array([0xff])), oneLine);
assert.throws(() => readManifest(bytes(" ".repeat(1 << 21))), /at most 1 MiB/);
console.log(JSON.stringify([refused.length, accepted.length]));
