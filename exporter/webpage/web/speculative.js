// The speculative loop, once, for every backend; runtime_py/decoding/session.py is its twin.
//
// prefill -> repeat { draft K tokens -> verify K + 1 in one call -> accept -> emit }.
import { RunError } from "./errors.js";
import { choose } from "./sampling.js";

// Backend -> the generation whose rows it holds: the one begun last, of whatever session.
const holders = new WeakMap();

/**
 * One sequence over one backend's KV buffer.
 *
 * The rows 0 .. kvLength - 1 hold `committed`; a new prompt that begins with the same tokens
 * continues from there, so a chat does not prefill its history again, unless another session has used
 * the backend since.
 *
 * A backend has vocabSize, cacheLength, verifyWidths (ascending, the first is 1), hasDrafter and, as
 * promises, prefill(tokenIds, position), verify(tokenIds, position) -> {logits, hiddens}, a row per
 * token, and draft(tokenId, hidden, position) -> {logits, hidden}.
 */
export class Session {
  #backend;
  #contextLength;
  #committed = [];
  #last; // the generation begun last

  constructor(backend, contextLength) {
    this.#backend = backend;
    this.#contextLength = Math.min(contextLength, backend.cacheLength);
  }

  get kvLength() {
    return this.#committed.length;
  }

  /** What the widest graph can verify. */
  get longestDraft() {
    return this.#backend.hasDrafter ? this.#backend.verifyWidths.at(-1) - 1 : 0;
  }

  /** Forget what the rows hold; the next prompt is computed from its start. */
  clear() {
    this.#committed.length = 0;
  }

  /**
   * Emit the tokens that follow a prompt, one {tokenIds, numDrafted, numAccepted} per target call.
   * The first step takes the backend over from what was generated on it before, which cannot go on.
   *
   * @param {number[]} promptIds the whole sequence so far, at least one token.
   * @param sampling how tokens are chosen; of samplingParams().
   * @param {{maxNewTokens: number, stopIds?: number[]}} stops whatever comes first, and never one
   *     token later; a stop token is emitted, and is the last.
   * @param {number} draftLength tokens the drafter proposes per round, 0 is plain decoding. The
   *     tokens emitted are the same whatever it is.
   */
  async *generate(promptIds, sampling, { maxNewTokens, stopIds = [] }, draftLength) {
    this.#check(promptIds, maxNewTokens, draftLength);
    const backend = this.#backend;
    let last = promptIds.at(-1);
    const holder = this.#takeOver();
    await this.#prefill(promptIds.slice(0, -1), holder);
    let hidden = null; // of the position that produced `last`
    let remaining = Math.min(maxNewTokens, this.#contextLength - promptIds.length);
    while (remaining > 0) {
      this.#checkHolder(holder);
      const fitting = Math.min(draftLength, remaining - 1, this.#widestFit() - 1);
      const drafts = hidden ? await this.#draft(last, hidden, sampling, fitting, holder) : [];
      const { logits, hiddens } = await backend.verify([last, ...drafts], this.kvLength);
      this.#checkHolder(holder);
      const [numAccepted, bonus] = accept(drafts, logits, sampling, this.kvLength + 1);
      hidden = hiddens[numAccepted];
      const kept = drafts.slice(0, numAccepted);
      this.#committed.push(last, ...kept);
      const tokenIds = untilStop([...kept, bonus], stopIds);
      yield { tokenIds, numDrafted: drafts.length, numAccepted };
      last = tokenIds.at(-1);
      remaining -= tokenIds.length;
      if (stopIds.includes(last)) return;
    }
  }

  #check(promptIds, maxNewTokens, draftLength) {
    const vocabSize = this.#backend.vocabSize;
    if (maxNewTokens < 1) {
      throw new RunError(`max-new-tokens is ${maxNewTokens}; it must be 1 or more`);
    }
    if (!promptIds.length) throw new RunError("the prompt is empty; it needs at least one token");
    if (promptIds.length >= this.#contextLength) {
      throw new RunError(
        `the prompt has ${promptIds.length} tokens, the context holds ${this.#contextLength} with ` +
          "the answer; shorten the prompt or export with a larger --context",
      );
    }
    if (!promptIds.every((id) => 0 <= id && id < vocabSize)) {
      throw new RunError(`the prompt has a token id outside 0 .. ${vocabSize - 1}`);
    }
    const longest = this.longestDraft;
    if (!(0 <= draftLength && draftLength <= longest)) {
      throw new RunError(`draft length is ${draftLength}; this bundle allows 0 .. ${longest}`);
    }
  }

  /** Become the one whose rows the backend holds. */
  #takeOver() {
    if (holders.get(this.#backend) !== this.#last) this.clear(); // another session wrote over them
    this.#last = {};
    holders.set(this.#backend, this.#last);
    return this.#last;
  }

  #checkHolder(holder) {
    if (holders.get(this.#backend) === holder) return;
    throw new RunError(
      "this answer cannot go on: another one has begun on the same backend and written over its " +
        "rows; generate anew, with what was said as part of the prompt",
    );
  }

  async #prefill(tokenIds, holder) {
    const differs = tokenIds.findIndex((id, index) => id !== this.#committed[index]);
    const numShared = differs < 0 ? tokenIds.length : differs;
    // Forget first: an interrupted prefill must not leave rows that claim to be committed.
    this.#committed.length = numShared;
    const added = tokenIds.slice(numShared);
    if (added.length) await this.#backend.prefill(added, numShared);
    this.#checkHolder(holder);
    this.#committed.push(...added);
  }

  /** The widest target call whose rows, padding included, fit the KV buffer. */
  #widestFit() {
    const rowsLeft = this.#backend.cacheLength - this.kvLength;
    return this.#backend.verifyWidths.findLast((width) => width <= rowsLeft);
  }

  async #draft(last, hidden, sampling, numDrafts, holder) {
    const drafts = [];
    while (drafts.length < numDrafts) {
      const drafted = await this.#backend.draft(last, hidden, this.kvLength);
      this.#checkHolder(holder);
      hidden = drafted.hidden;
      last = choose(drafted.logits, sampling, this.kvLength + 1 + drafts.length);
      drafts.push(last);
    }
    return drafts;
  }
}

/**
 * Keep the longest draft prefix that equals what the target chooses by itself.
 *
 * @param {number[]} draftIds K tokens proposed by the drafter.
 * @param {Float32Array[]} verifyLogits K + 1 rows; row i judges draft i, the last follows them all.
 * @param {number} position that of the first draft.
 * @returns {[number, number]} how many are accepted, and the token that the target adds.
 */
function accept(draftIds, verifyLogits, sampling, position) {
  for (const [index, draftId] of draftIds.entries()) {
    const chosen = choose(verifyLogits[index], sampling, position + index);
    if (chosen !== draftId) return [index, chosen];
  }
  const length = draftIds.length;
  return [length, choose(verifyLogits[length], sampling, position + length)];
}

function untilStop(tokenIds, stopIds) {
  const stop = tokenIds.findIndex((id) => stopIds.includes(id));
  return stop < 0 ? tokenIds : tokenIds.slice(0, stop + 1);
}
