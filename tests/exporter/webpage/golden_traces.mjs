// Replays tests/golden/loop-traces.json, which was recorded from runtime_py, on the page's modules:
// node golden_traces.mjs MODULES TRACES TINY_TOKENIZER prints {part: number replayed}, or fails.
import assert from "node:assert/strict";
import fs from "node:fs";
import { pathToFileURL } from "node:url";
import { hashedLogits, ScriptedBackend } from "./scripted_backend.mjs";

const [modules, traces, tinyTokenizer] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(`${modules}/${name}.js`));
const read = (path) => JSON.parse(fs.readFileSync(path, "utf8"));
const { runCheck } = await load("check");
const { RunError } = await load("errors");
const { readReference } = await load("reference");
const { gumbel, samplingParams, survivingTokens } = await load("sampling");
const { Session } = await load("speculative");
const { TextStream, Tokenizer } = await load("tokenizer");

const samplingOf = ({ law: sampling }) =>
  samplingParams({
    temperature: sampling.temperature,
    topK: sampling.top_k,
    topP: sampling.top_p,
    seed: BigInt(sampling.seed),
  });

async function stepsOf(session, turn) {
  const stops = { maxNewTokens: turn.max_new_tokens, stopIds: turn.stop_ids };
  const steps = [];
  for await (const step of session.generate(turn.prompt, samplingOf(turn), stops, turn.draft_length)) {
    steps.push([step.tokenIds, step.numDrafted, step.numAccepted]);
  }
  return steps;
}

const REPLAYS = {
  /** Same tokens, in the same rounds. */
  async traces({ backend, context_length, turns }) {
    const session = new Session(new ScriptedBackend(backend), context_length);
    for (const turn of turns) assert.deepEqual(await stepsOf(session, turn), turn.steps);
  },

  async refusals({ backend, turn, said }) {
    const session = new Session(new ScriptedBackend(backend), 1000);
    await assert.rejects(stepsOf(session, turn), (error) => {
      assert(error instanceof RunError);
      assert.equal(error.message, said);
      return true;
    });
  },

  /** Ids of texts, and texts of ids, as the library has them that wrote the tokenizer. */
  tokenizers({ json, encoded, decoded, thought, streamed }) {
    const tokenizer = new Tokenizer(json === "tiny" ? read(tinyTokenizer) : JSON.parse(json));
    for (const [text, ids] of encoded) assert.deepEqual(tokenizer.encode(text), ids, text);
    for (const [ids, text] of decoded) assert.equal(tokenizer.decode(ids), text);
    for (const [chunks, pieces] of streamed) {
      const stream = new TextStream(tokenizer, thought);
      assert.deepEqual([...chunks.map((chunk) => stream.push(chunk)), stream.finish()], pieces);
    }
  },

  /** What a check says of a backend, given a reference.npz. */
  async checks(recorded) {
    const backend = new ScriptedBackend(recorded.backend);
    const reference = readReference(new Uint8Array(Buffer.from(recorded.reference, "base64")), Infinity);
    const session = new Session(backend, 128);
    const report = await runCheck(session, backend, reference, recorded.tolerances);
    const { original, speculative, failures } = report;
    assert.deepEqual([original.numEqual, speculative.numEqual], recorded.num_equal);
    assert.deepEqual([report.agreement, report.numTies], [recorded.agreement, recorded.num_ties]);
    assert.deepEqual(report.acceptance, recorded.acceptance);
    assert.deepEqual(report.originalAcceptance, recorded.original_acceptance);
    assert.equal(failures.length, recorded.num_failures);
    assert(Math.abs(report.logitError - recorded.logit_error) < 1e-9);
  },

  survivors(recorded) {
    const logits = hashedLogits(BigInt(recorded.seed), recorded.size, recorded.levels);
    const { tokenIds } = survivingTokens(logits, samplingOf(recorded));
    assert.deepEqual([...tokenIds], recorded.token_ids);
  },

  /** Python's logarithm is another one: two units in the last place are allowed. */
  noise({ seed, position, token_ids, values }) {
    const { key } = samplingParams({ seed: BigInt(seed) });
    for (const [index, tokenId] of token_ids.entries()) {
      const found = gumbel(key, position, tokenId);
      const allowed = 2 * Number.EPSILON * Math.max(Math.abs(found), 1);
      assert(Math.abs(found - values[index]) <= allowed, `${found}, recorded ${values[index]}`);
    }
  },
};

/** The page has no policy that chooses the draft length, so those recordings are not for it. */
const forThePage = ({ turns = [] }) => turns.every(({ draft_length }) => draft_length !== "auto");

const replayed = {};
for (const [part, items] of Object.entries(read(traces))) {
  if (!(part in REPLAYS)) continue;
  const chosen = items.filter(forThePage);
  for (const item of chosen) await REPLAYS[part](item);
  replayed[part] = chosen.length;
}
console.log(JSON.stringify(replayed));
