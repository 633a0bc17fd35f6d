// The LiteRT backend in the browser: the graphs of one .litertlm; runtime_py/backends/litert/backend.py is
// its twin and says why it chooses as it does.
//
// @litertjs/core makes new tensors for what a call returns and can bind none, so that two KV buffers
// take turns: what a call returned is what the next one is given, and never leaves WebAssembly.
import { RunError } from "./errors.js";

const PREFILL_DECODE = "tf_lite_prefill_decode";
const EMBEDDER = "tf_lite_embedder";
const PER_LAYER_EMBEDDER = "tf_lite_per_layer_embedder";
const MTP_DRAFTER = "tf_lite_mtp_drafter";
// What the official runtime writes: far below any score, and two of them still add up to a float32.
const HIDDEN = Math.fround(Math.fround(-0.7) * 3.4028234663852886e38);

/** Backend as speculative.js wants it; made by LiteRTBackend.load. */
export class LiteRTBackend {
  #Tensor;
  #embedders; // by the name of the input that their rows go to
  #prefill; // steps by width, ascending
  #verify; // likewise
  #drafter;
  #kv = {}; // tensors by name

  /**
   * @param litert the module @litertjs/core, its WebAssembly loaded.
   * @param {Map<string, Uint8Array>} models sections of a .litertlm; of readModels().
   */
  static async load(litert, models) {
    const compile = async (name) => {
      if (!models.has(name)) return null;
      const model = await litert.loadAndCompile(models.get(name), { accelerator: "wasm" });
      return Object.values(model.signatures);
    };
    const target = await compile(PREFILL_DECODE);
    const embedder = await compile(EMBEDDER);
    if (!target?.some(({ key }) => key === "decode") || !embedder) {
      throw new RunError("no embedder and target graphs in this .litertlm; export again");
    }
    const embedders = { embeddings: embedder[0] };
    const perLayer = await compile(PER_LAYER_EMBEDDER);
    if (perLayer) embedders.per_layer_embeddings = perLayer[0];
    const drafter = await compile(MTP_DRAFTER);
    return new LiteRTBackend(litert.Tensor, target, embedders, drafter?.[0]);
  }

  constructor(Tensor, target, embedders, drafter) {
    this.#Tensor = Tensor;
    this.#embedders = embedders;
    const steps = target.map((signature) => new Step(signature));
    steps.sort((a, b) => a.width - b.width);
    this.#prefill = steps.filter(({ signature }) => signature.key.startsWith("prefill"));
    this.#verify = steps.filter(({ signature }) => !signature.key.startsWith("prefill"));
    this.#drafter = drafter && new Step(drafter);
    for (const { name, shape } of this.#verify[0].signature.getInputDetails()) {
      // A stale row is hidden by the mask, which multiplies it by zero: it must not be a NaN.
      if (name.startsWith("kv_cache_")) {
        this.#kv[name] = new Tensor(new Float32Array(sizeOf(shape)), shape);
      }
    }
  }

  get hasDrafter() {
    return this.#drafter !== undefined;
  }

  get cacheLength() {
    return this.#verify[0].mask.cacheLength;
  }

  get vocabSize() {
    const outputs = this.#verify[0].signature.getOutputDetails();
    return outputs.find(({ name }) => name === "logits").shape.at(-1);
  }

  get verifyWidths() {
    return this.#verify.map(({ width }) => width);
  }

  /** Write the KV rows position .. position + tokenIds.length - 1. */
  async prefill(tokenIds, position) {
    for (let done = 0; done < tokenIds.length; ) {
      const rest = tokenIds.slice(done);
      const step = this.#prefillStep(rest.length, this.cacheLength - position - done);
      await this.#runTarget(step, rest.slice(0, step.width), position + done);
      done += Math.min(step.width, rest.length);
    }
  }

  /**
   * The widest prefill graph that is filled; at the end, a padded one if a quarter is used. Whatever
   * runs writes all its rows, padding included: they must fit.
   */
  #prefillStep(numTokens, room) {
    const fitting = this.#prefill.filter(({ width }) => width <= room);
    const filled = fitting.findLast(({ width }) => width <= numTokens);
    if (filled) return filled;
    if (fitting.length && fitting[0].width <= 4 * numTokens) return fitting[0];
    const steps = this.#verify.filter(({ width }) => width <= Math.min(room, 2 * numTokens));
    return steps.find(({ width }) => width >= numTokens) ?? steps.at(-1);
  }

  /**
   * Run the target over T tokens, T at most the widest verify graph.
   *
   * @returns {Promise<{logits: Float32Array[], hiddens: Float32Array[]}>} row i follows token i.
   */
  async verify(tokenIds, position) {
    const room = this.cacheLength - position;
    const length = tokenIds.length;
    const step = this.#verify.find(({ width }) => length <= width && width <= room);
    if (step) return this.#runTarget(step, tokenIds, position);
    // Near the end of the cache, where no graph that is wide enough has room for its rows.
    const narrow = this.#verify.findLast(({ width }) => width <= Math.min(room, length));
    const first = await this.#runTarget(narrow, tokenIds.slice(0, narrow.width), position);
    const rest = await this.verify(tokenIds.slice(narrow.width), position + narrow.width);
    return {
      logits: [...first.logits, ...rest.logits],
      hiddens: [...first.hiddens, ...rest.hiddens],
    };
  }

  /**
   * Run one drafter step; reads the KV rows 0 .. position - 1 and writes none.
   *
   * @param {Float32Array} hidden the target's that produced the last emitted token, or that of the
   *     draft step before.
   * @param {number} position that of the last emitted token, the same for every step of a round.
   */
  async draft(tokenId, hidden, position) {
    const step = this.#drafter;
    const embedding = await this.#embed("embeddings", tokenId);
    step.inputs.activations.set(embedding);
    step.inputs.activations.set(hidden, embedding.length);
    step.inputs.input_pos[0] = position;
    step.mask.show(position);
    const outputs = await this.#run(step);
    return { logits: outputs.logits, hidden: outputs.projected_activations };
  }

  async #runTarget(step, tokenIds, position) {
    for (const name of Object.keys(this.#embedders)) {
      for (const [index, tokenId] of tokenIds.entries()) {
        const row = await this.#embed(name, tokenId);
        step.inputs[name].set(row, index * row.length);
      }
    }
    step.inputs.input_pos.forEach((_, index, positions) => (positions[index] = position + index));
    step.mask.show(position + 1);
    const outputs = await this.#run(step);
    const rows = (values) =>
      values && tokenIds.map((_, index) => values.subarray(...rowOf(values, index, step.width)));
    return { logits: rows(outputs.logits), hiddens: rows(outputs.activations) };
  }

  async #embed(name, tokenId) {
    const input = new this.#Tensor(Int32Array.of(tokenId), [1, 1]);
    const [output] = await this.#embedders[name].run([input]);
    const row = output.toTypedArray();
    input.delete();
    output.delete();
    return row;
  }

  /** What the signature returns, by name; KV rows that it writes replace those it read. */
  async #run({ signature, inputs }) {
    const tensors = {};
    for (const { name, shape } of signature.getInputDetails()) {
      tensors[name] = this.#kv[name] ?? new this.#Tensor(inputs[name], shape);
    }
    const outputs = await signature.run(tensors);
    for (const name of Object.keys(inputs)) tensors[name].delete();
    const values = {};
    for (const [name, tensor] of Object.entries(outputs)) {
      if (name in this.#kv) {
        this.#kv[name].delete();
        this.#kv[name] = tensor;
      } else {
        values[name] = tensor.toTypedArray(); // a copy
        tensor.delete();
      }
    }
    return values;
  }
}

/** A signature and the arrays that its inputs are written to; KV rows are not among them. */
class Step {
  constructor(signature) {
    this.signature = signature;
    this.inputs = {};
    for (const { name, dtype, shape } of signature.getInputDetails()) {
      if (name.startsWith("kv_cache_")) continue;
      const Kind = dtype === "int32" ? Int32Array : Float32Array;
      this.inputs[name] = new Kind(sizeOf(shape));
    }
    this.width = this.inputs.input_pos.length;
    this.mask = new CausalMask(this.inputs.mask, this.width);
  }
}

/** An additive mask [T, C] in which only what changed is rewritten. */
class CausalMask {
  #values;
  #numVisible;

  constructor(values, width) {
    this.#values = values.fill(HIDDEN);
    this.#numVisible = new Int32Array(width);
    this.cacheLength = values.length / width;
  }

  /** Let row i see the KV rows 0 .. numRows + i - 1. */
  show(numRows) {
    for (const [row, before] of this.#numVisible.entries()) {
      const start = row * this.cacheLength;
      const wanted = Math.min(numRows + row, this.cacheLength);
      if (wanted > before) this.#values.fill(0, start + before, start + wanted);
      else this.#values.fill(HIDDEN, start + wanted, start + before);
      this.#numVisible[row] = wanted;
    }
  }
}

function sizeOf(shape) {
  return shape.reduce((product, size) => product * size, 1);
}

function rowOf(values, index, width) {
  const size = values.length / width;
  return [index * size, (index + 1) * size];
}
