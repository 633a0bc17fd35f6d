// Greedy tokens and drafts of an ONNX bundle by onnxruntime-web's WebAssembly build, as an app
// would run it: node onnx_web.mjs ONNXRUNTIME_WEB BUNDLE PROMPT_IDS NUM_TOKENS NUM_DRAFTS
import fs from "node:fs";
import path from "node:path";

const [library, bundle, prompt, numTokens, numDrafts] = process.argv.slice(2);
const ort = await import(library);
ort.env.wasm.numThreads = 1;

const read = (name) => new Uint8Array(fs.readFileSync(path.join(bundle, name)));
const data = read("model.data");
const load = (name) =>
  ort.InferenceSession.create(read(`model.${name}.onnx`), {
    executionProviders: ["wasm"],
    externalData: [{ path: "model.data", data }],
  });
const [fill, finish, draft] = [await load("fill"), await load("finish"), await load("draft")];

const NUM_ROWS = 512;
const kv = {};
for (const { name, shape } of fill.inputMetadata) {
  if (!name.startsWith("past_key_values.")) continue;
  const dims = [1, shape[1], NUM_ROWS, shape[3]];
  const zeros = new Float32Array(dims.reduce((product, size) => product * size));
  kv[name] = new ort.Tensor("float32", zeros, dims);
}
const integers = (values, dims) =>
  new ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);
const inputsOf = (session, values) =>
  Object.fromEntries(session.inputNames.map((name) => [name, values[name] ?? kv[name]]));

// One target call; the present rows become the past of the next.
async function verify(tokenIds, at) {
  const position = integers([at], [1]);
  const token_ids = integers(tokenIds, [1, tokenIds.length]);
  const out = await fill.run(inputsOf(fill, { token_ids, position }));
  for (const name of Object.keys(kv)) kv[name] = out[name.replace("past_key_values", "present")];
  return finish.run(inputsOf(finish, { ...out, position }));
}

const argmax = (logits) => {
  const values = logits.data;
  let best = 0;
  for (let id = 1; id < values.length; id++) if (values[id] > values[best]) best = id;
  return best;
};

let kvLength = 0;
let last;
for (const id of JSON.parse(prompt)) last = await verify([id], kvLength++);
const ids = [argmax(last.logits)];
while (ids.length < Number(numTokens)) {
  last = await verify([ids.at(-1)], kvLength++);
  ids.push(argmax(last.logits));
}
const drafts = [];
let [token, hidden] = [ids.at(-1), last.activations];
while (drafts.length < Number(numDrafts)) {
  const values = { token_id: integers([token], [1, 1]), hidden, position: integers([kvLength], [1]) };
  const out = await draft.run(inputsOf(draft, values));
  [token, hidden] = [argmax(out.logits), out.projected];
  drafts.push(token);
}
console.log(JSON.stringify({ ids, drafts }));
