// Sampling: which token follows, as a pure function of logits, seed and position.
//
// The same as runtime_py/decoding/sampling.py, whose header says why it is as it is: token t is
// argmax(logits / temperature + gumbel(seed, position, token id)) over the tokens that survive top-k
// and top-p. All arithmetic is that of the Python side, operation by operation, in double; only the
// browser's logarithm and exponential may differ from NumPy's in the last bit, so that the two sides
// part only where two tokens lie that close.
import { RunError } from "./errors.js";

const MULTIPLIERS = [0xd2511f53, 0xcd9e8d57];
const KEY_STEPS = [0x9e3779b9, 0xbb67ae85];
const ROUNDS = 10;
const GREEDY_BELOW = 1e-200; // a logit divided by a lower temperature may overflow
const MAX_GUMBEL = 36.75; // just above the largest noise there is
const NUM_RANKED = 4096; // tokens sorted for top-p, unless they do not hold enough mass

/**
 * How a token is chosen from logits.
 *
 * @param {number} temperature 0 is greedy and ignores the rest.
 * @param {number} topK tokens kept, 0 keeps all.
 * @param {number} topP probability mass kept, 1 keeps all.
 * @param {bigint} seed 0 .. 2**64 - 1.
 */
export function samplingParams({ temperature = 0, topK = 0, topP = 1, seed = 0n } = {}) {
  if (!(temperature >= 0 && temperature < Infinity)) {
    throw new RunError(`temperature is ${temperature}; it must be a number from 0 up`);
  }
  if (!(Number.isInteger(topK) && topK >= 0)) {
    throw new RunError(`top-k is ${topK}; it must be 0 (off) or more`);
  }
  if (!(topP > 0 && topP <= 1)) {
    throw new RunError(`top-p is ${topP}; it must be above 0 and at most 1 (off)`);
  }
  if (seed < 0n || seed >= 1n << 64n) {
    throw new RunError(`seed is ${seed}; it must be 0 .. 2**64 - 1`);
  }
  const key = [Number(seed & 0xffffffffn), Number(seed >> 32n)];
  return Object.freeze({ temperature, topK, topP, key });
}

export const GREEDY = samplingParams();

/**
 * The token that follows; the lowest id wins a tie.
 *
 * @param {Float32Array} logits [V] of the step.
 * @param {number} position index, from the start of the sequence, of the token to be chosen.
 */
export function choose(logits, sampling, position) {
  if (sampling.temperature < GREEDY_BELOW) return argmax(logits);
  const { tokenIds, scaled } = survivingTokens(logits, sampling);
  // Noise is expensive: the tokens that no noise could lift above the likeliest one go without.
  const top = argmax(scaled);
  const reached = scaled[top] + gumbel(sampling.key, position, tokenIds[top]);
  let best = top;
  let bestSum = -Infinity;
  for (let i = 0; i < tokenIds.length; i++) {
    if (scaled[i] < reached - MAX_GUMBEL) continue;
    const sum = scaled[i] + gumbel(sampling.key, position, tokenIds[i]);
    if (sum > bestSum) [best, bestSum] = [i, sum];
  }
  return tokenIds[best];
}

/** Index of the largest value, the first of equals; the first NaN counts as the largest. */
export function argmax(values) {
  let best = 0;
  for (let i = 0; i < values.length; i++) {
    if (Number.isNaN(values[i])) return i;
    if (values[i] > values[best]) best = i;
  }
  return best;
}

/**
 * The tokens left by top-k, then top-p, ascending, with their logits / temperature.
 *
 * Top-p keeps the most probable tokens until their mass reaches topP, the crossing one included.
 * Equal logits are ranked by token id, so the same logits always keep the same tokens.
 */
export function survivingTokens(logits, sampling) {
  const all = sampling.topK === 0 || sampling.topK >= logits.length;
  const tokenIds = all ? Uint32Array.from(logits, (_, id) => id) : largest(logits, sampling.topK);
  const scaled = Float64Array.from(tokenIds, (id) => logits[id] / sampling.temperature);
  if (sampling.topP >= 1) return { tokenIds, scaled };
  const kept = likeliest(scaled, sampling.topP);
  return { tokenIds: kept.map((i) => tokenIds[i]), scaled: Float64Array.from(kept, (i) => scaled[i]) };
}

/** Ascending indices of the k largest values; among equals of the last, the lowest indices. */
function largest(values, k) {
  const threshold = values.slice().sort()[values.length - k];
  let numTies = k;
  for (const value of values) if (value > threshold) numTies--;
  const kept = new Uint32Array(k);
  let size = 0;
  for (let i = 0; i < values.length; i++) {
    if (values[i] > threshold || (values[i] === threshold && numTies-- > 0)) kept[size++] = i;
  }
  return kept;
}

/** Ascending indices of the smallest set of likeliest tokens whose mass reaches topP. */
function likeliest(scaled, topP) {
  const most = scaled[argmax(scaled)];
  const weights = scaled.map((value) => Math.exp(value - most));
  const wanted = topP * pairwiseSum(weights);
  let candidates = Uint32Array.from(scaled, (_, i) => i);
  if (scaled.length > NUM_RANKED) {
    // Equals of the last one stay in, so that ranking the few is ranking all.
    const threshold = scaled.slice().sort()[scaled.length - NUM_RANKED];
    const few = candidates.filter((i) => scaled[i] >= threshold);
    if (pairwiseSum(Float64Array.from(few, (i) => weights[i])) >= wanted) candidates = few;
  }
  const ranked = candidates.sort((a, b) => scaled[b] - scaled[a]); // stable
  let mass = 0;
  const kept = ranked.filter((i) => {
    mass += weights[i];
    return mass - weights[i] < wanted;
  });
  return kept.sort();
}

/** NumPy's order of summation, so that the sum has its very bits. */
function pairwiseSum(values) {
  const size = values.length;
  if (size < 8) return values.reduce((sum, value) => sum + value, 0);
  if (size > 128) {
    const half = Math.floor(size / 2) - (Math.floor(size / 2) % 8);
    return pairwiseSum(values.subarray(0, half)) + pairwiseSum(values.subarray(half));
  }
  const parts = values.slice(0, 8);
  const whole = size - (size % 8);
  for (let i = 8; i < whole; i++) parts[i % 8] += values[i];
  const [a, b, c, d, e, f, g, h] = parts;
  let sum = a + b + (c + d) + (e + f + (g + h));
  for (let i = whole; i < size; i++) sum += values[i];
  return sum;
}

/**
 * Standard Gumbel noise of one token at one position, between -3.61 and 36.74.
 *
 * @param {[number, number]} key the seed's low and high 32 bits.
 */
export function gumbel(key, position, tokenId) {
  const counter = [tokenId, position >>> 0, Math.floor(position / 2 ** 32), 0];
  const [first, second] = philox(counter, key);
  // 52 random bits and a half: never 0, never 1, exact in a double.
  const bits = first * 2 ** 20 + (second >>> 12);
  const uniform = (bits + 0.5) * 2 ** -52;
  return -Math.log(-Math.log(uniform));
}

/** Philox4x32-10: four 32-bit words for a counter of four. */
export function philox(counter, key) {
  let [c0, c1, c2, c3] = counter;
  for (let round = 0; round < ROUNDS; round++) {
    const key0 = key[0] + round * KEY_STEPS[0]; // ^ takes the low 32 bits
    const key1 = key[1] + round * KEY_STEPS[1];
    const low0 = Math.imul(c0, MULTIPLIERS[0]) >>> 0;
    const low1 = Math.imul(c2, MULTIPLIERS[1]) >>> 0;
    const next0 = (multiplyHigh(c2, MULTIPLIERS[1]) ^ c1 ^ key0) >>> 0;
    const next2 = (multiplyHigh(c0, MULTIPLIERS[0]) ^ c3 ^ key1) >>> 0;
    [c0, c1, c2, c3] = [next0, low1, next2, low0];
  }
  return [c0, c1, c2, c3];
}

/** The upper 32 bits of the product of two unsigned 32-bit numbers, by halves of 16. */
function multiplyHigh(a, b) {
  const [aLow, aHigh, bLow, bHigh] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16); // none of these reaches 2**32
  const other = aLow * bHigh + (middle & 0xffff);
  return aHigh * bHigh + (middle >>> 16) + (other >>> 16);
}
