// The twin of tests/runtime_py/scripted_backend.py, which says what it is; both compute the same floats.
import assert from "node:assert/strict";

const [NEVER_WRITTEN, PADDING] = [-1, -2];
const HIDDEN_SIZE = 4;
const [LOGITS, HIDDEN, SKILL] = [1n, 2n, 3n];
const STEP = 0x9e3779b97f4a7c15n;

export class ScriptedBackend {
  hasDrafter = true;
  #rows;
  #drafted = [];
  #position = -1; // of the round being drafted

  constructor({ skill, vocab_size, cache_length, verify_widths, levels }) {
    this.skill = skill;
    this.vocabSize = vocab_size;
    this.cacheLength = cache_length;
    this.verifyWidths = verify_widths;
    this.levels = levels;
    this.#rows = new Array(cache_length).fill(NEVER_WRITTEN);
  }

  async prefill(tokenIds, position) {
    this.#write(tokenIds, position, tokenIds.length);
  }

  async verify(tokenIds, position) {
    const width = this.verifyWidths.find((size) => size >= tokenIds.length);
    this.#write(tokenIds, position, width);
    this.#position = -1;
    const prefixes = tokenIds.map((_, index) => this.#rows.slice(0, position + index + 1));
    return {
      logits: prefixes.map((prefix) => this.#logits(prefix)),
      hiddens: prefixes.map((prefix) => this.#hidden(prefix)),
    };
  }

  async draft(tokenId, hidden, position) {
    const committed = this.#rows.slice(0, position);
    if (position !== this.#position) {
      this.#position = position;
      this.#drafted = [];
      assert.deepEqual(hidden, this.#hidden(committed), "a draft from another hidden state");
    }
    this.#drafted.push(tokenId);
    const tokens = [...committed, ...this.#drafted];
    const logits = this.#logits(tokens);
    const right = (hash(tokens, SKILL) >> 40n) % 100n < BigInt(this.skill);
    const rolled = logits.map((_, index) => logits.at(index - 1));
    return { logits: right ? logits : rolled, hidden };
  }

  #write(tokenIds, position, width) {
    assert(position + width <= this.cacheLength, "rows past the KV buffer");
    for (let index = 0; index < width; index++) {
      this.#rows[position + index] = tokenIds[index] ?? PADDING;
    }
  }

  #logits(tokens) {
    assert(Math.min(...tokens) >= 0, "attended a row that nothing was written to");
    return hashedLogits(hash(tokens, LOGITS), this.vocabSize, this.levels);
  }

  #hidden(tokens) {
    return hashedLogits(hash(tokens, HIDDEN), HIDDEN_SIZE, 0);
  }
}

/** Reals in -8 .. 8, or so many whole numbers. */
export function hashedLogits(seed, size, levels) {
  return Float32Array.from({ length: size }, (_, index) => {
    const bits = Number(mix(seed + STEP * BigInt(index + 1)) >> 40n); // 24 of them
    return levels ? bits % levels : bits / 2 ** 20 - 8;
  });
}

function hash(tokens, what) {
  return tokens.reduce((state, token) => mix(state + STEP * BigInt(token + 1)), what);
}

/** Steele, Lea and Flood's splitmix64. */
function mix(start) {
  let z = BigInt.asUintN(64, start);
  z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
  z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d049bb133111ebn);
  return z ^ (z >> 31n);
}
