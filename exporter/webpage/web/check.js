// Replay the recorded original in the browser; runtime_py/check/replay.py says why each part is there.
import { argmax, GREEDY } from "./sampling.js";

// Relative to the largest logit: a smaller margin between two tokens is a tie that rounding decides.
const MAX_TIE = 1e-3;
// The same, of float32 alone: runtime_py/check/replay.py says why this many roundings.
const ROUNDING_TIE = 2 ** -17;

/**
 * Replay a reference on a loaded backend.
 *
 * @param tolerances of the manifest: max_logit_error, min_agreement, min_acceptance_ratio.
 * @param {(numPrompts: number) => void} progress called with the number of prompts done.
 * @returns original and speculative ({numEqual, numTokens, largestMargin}: plain decoding against the
 *     original, speculative against plain decoding), agreement (share of tokens equal, the original's
 *     text given, but for numTies where rounding decides), logitError (relative to the largest logit), acceptance and originalAcceptance (by
 *     draft position), draftLength, failures (lines; none if it passed).
 */
export async function runCheck(session, backend, reference, tolerances, progress = () => {}) {
  const draftLength = backend.hasDrafter ? (reference.draftIds[0]?.[0]?.length ?? 0) : 0;
  const replay = new Replay(backend, reference);
  const [plain, fast, drafts] = [[], [], []];
  for (const index of reference.promptIds.keys()) {
    for (const [texts, length] of [[plain, 0], [fast, draftLength]]) {
      session.clear(); // each replay computes its own rows
      texts.push(await tokens(session, reference, index, length));
    }
    session.clear(); // the walk writes over the session's rows
    const hiddens = await replay.walk(index);
    if (draftLength) drafts.push(await replay.propose(index, hiddens));
    progress(index + 1);
  }
  const { greedyIds, probeLogits } = reference;
  const recorded = (prompt, token) => probeLogits[prompt][token][0] - probeLogits[prompt][token][1];
  const measured = (prompt, token) => replay.margin(prompt, plain[prompt].slice(0, token));
  const report = {
    original: await compare(plain, greedyIds, recorded),
    speculative: await compare(fast, plain, measured),
    agreement: replay.numAgreed / Math.max(1, greedyIds.length * greedyIds[0].length - replay.numTies),
    numTies: replay.numTies,
    logitError: replay.maxError / reference.logitScale,
    acceptance: draftLength ? acceptance(drafts, greedyIds) : [],
    originalAcceptance: acceptance(reference.draftIds, greedyIds),
    draftLength,
  };
  return { ...report, failures: [...failures(report, tolerances, reference.logitScale)] };
}

async function tokens(session, { promptIds, greedyIds }, index, draftLength) {
  const stops = { maxNewTokens: greedyIds[index].length };
  const found = [];
  for await (const step of session.generate(promptIds[index], GREEDY, stops, draftLength)) {
    found.push(...step.tokenIds);
  }
  return found;
}

/** Walks the target along the original's text, and along its own, for margins. */
class Replay {
  maxError = 0;
  numAgreed = 0;
  numTies = 0;
  #backend;
  #reference;

  constructor(backend, reference) {
    this.#backend = backend;
    this.#reference = reference;
  }

  /** Compare the logits along a prompt; the hidden states of its M positions. */
  async walk(index) {
    const { promptIds, greedyIds } = this.#reference;
    const text = [...promptIds[index], ...greedyIds[index]];
    const [start, end] = [promptIds[index].length - 1, text.length - 1];
    if (start) await this.#backend.prefill(text.slice(0, start), 0);
    const all = [];
    for (let position = start; position < end; ) {
      const room = Math.min(end, this.#backend.cacheLength) - position;
      const width = this.#backend.verifyWidths.findLast((size) => size <= room);
      const rows = text.slice(position, position + width);
      const { logits, hiddens } = await this.#backend.verify(rows, position);
      logits.forEach((row, offset) => this.#compare(row, index, position + offset - start));
      all.push(...hiddens);
      position += width;
    }
    return all;
  }

  #compare(logits, index, token) {
    const { probeIds, probeLogits, greedyIds } = this.#reference;
    for (const [probe, id] of probeIds[index][token].entries()) {
      const error = Math.abs(Math.fround(logits[id] - probeLogits[index][token][probe]));
      // Not-a-number must not hide behind a comparison that is false.
      this.maxError = Math.max(this.maxError, Number.isNaN(error) ? Infinity : error);
    }
    const chosen = argmax(logits);
    if (chosen === greedyIds[index][token]) this.numAgreed++;
    else if (this.#behind(index, token, chosen) <= ROUNDING_TIE * this.#reference.logitScale) {
      this.numTies++;
    }
  }

  /** How far a token's logit was below the chosen one's; infinite if it was not kept. */
  #behind(index, token, id) {
    const { probeIds, probeLogits } = this.#reference;
    const kept = probeIds[index][token].indexOf(id);
    const logits = probeLogits[index][token];
    return kept < 0 ? Infinity : Math.fround(logits[0] - logits[kept]);
  }

  /** [M - K][K] what the drafter proposes after each of the original's tokens. */
  async propose(index, hiddens) {
    const { promptIds, greedyIds, draftIds } = this.#reference;
    const rounds = [];
    for (const [token, recorded] of draftIds[index].entries()) {
      let [last, hidden] = [greedyIds[index][token], hiddens[token]];
      const drafts = [];
      while (drafts.length < recorded.length) {
        const drafted = await this.#backend.draft(last, hidden, promptIds[index].length + token);
        hidden = drafted.hidden;
        last = argmax(drafted.logits);
        drafts.push(last);
      }
      rounds.push(drafts);
    }
    return rounds;
  }

  /** How far the best logit is above the next after these tokens of a prompt. */
  async margin(index, tokenIds) {
    const text = [...this.#reference.promptIds[index], ...tokenIds];
    if (text.length > 1) await this.#backend.prefill(text.slice(0, -1), 0);
    const { logits } = await this.#backend.verify(text.slice(-1), text.length - 1);
    const [second, first] = logits[0].toSorted().slice(-2);
    return first - second;
  }
}

async function compare(found, wanted, margin) {
  const result = { numEqual: 0, numTokens: 0, largestMargin: 0 };
  for (const [prompt, tokenIds] of found.entries()) {
    const token = tokenIds.findIndex((id, index) => id !== wanted[prompt][index]);
    result.numEqual += token < 0 ? tokenIds.length : token;
    result.numTokens += tokenIds.length;
    if (token >= 0) result.largestMargin = Math.max(result.largestMargin, await margin(prompt, token));
  }
  return result;
}

/** How often draft j and all before it equal the greedy text. */
function acceptance(draftIds, greedyIds) {
  const numRight = new Array(draftIds[0]?.[0]?.length ?? 0).fill(0);
  let numRounds = 0;
  for (const [prompt, rounds] of draftIds.entries()) {
    numRounds += rounds.length;
    for (const [token, drafts] of rounds.entries()) {
      const wrong = [...drafts].findIndex((id, j) => id !== greedyIds[prompt][token + 1 + j]);
      const numAccepted = wrong < 0 ? drafts.length : wrong;
      for (let j = 0; j < numAccepted; j++) numRight[j]++;
    }
  }
  return numRight.map((count) => count / numRounds);
}

function* failures(report, tolerances, logitScale) {
  const { original, speculative, agreement, logitError, acceptance, draftLength } = report;
  // Two widths of one graph may round differently, so a near tie may fall either way.
  const tie = Math.min(tolerances.max_logit_error, MAX_TIE) * logitScale;
  // Written so that not-a-number fails: every comparison with it is false.
  if (!(logitError <= tolerances.max_logit_error)) {
    yield `logits differ from the original's by ${short(logitError)} of their scale, allowed ${short(tolerances.max_logit_error)}`;
  }
  if (!(agreement >= tolerances.min_agreement)) {
    yield `only ${percent(agreement)} of tokens agree with the original, needed ${percent(tolerances.min_agreement)}`;
  }
  if (!(speculative.largestMargin <= tie)) {
    yield `speculative output differs from plain decoding where the margin is ${short(speculative.largestMargin)}, so the graphs disagree`;
  }
  // A lossy recipe may say something else than the original; an exact one only at a tie.
  if (tolerances.max_logit_error <= MAX_TIE && !(original.largestMargin <= 2 * tie)) {
    yield `plain decoding leaves the original's text where the margin is ${short(original.largestMargin)}`;
  }
  const wanted = tolerances.min_acceptance_ratio * (report.originalAcceptance[0] ?? 0);
  if (draftLength && acceptance[0] < wanted) {
    yield `the drafter is broken or mis-wired: ${percent(acceptance[0])} of first drafts accepted, needed ${percent(wanted)}`;
  }
}

function short(value) {
  return value.toPrecision(2);
}

export function percent(value) {
  return `${(100 * value).toFixed(1)} %`;
}
