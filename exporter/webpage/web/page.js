// What a person sees of the bundle: a prompt, its answer as it comes, figures, and the check.
import { openBundle } from "./bundle.js";
import { percent, runCheck } from "./check.js";
import { RunError } from "./errors.js";
import { samplingParams } from "./sampling.js";
import { TextStream } from "./tokenizer.js";

const page = Object.fromEntries(
  [...document.querySelectorAll("[id]")].map((element) => [element.id, element]),
);
let bundle;
let stopped = false;

/** Let the browser draw and hear a click: the graphs run in the page's own thread. */
function breathe() {
  const { port1, port2 } = new MessageChannel();
  return new Promise((resolve) => {
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

/** Do some work with the buttons off; what goes wrong is said in the status line. */
async function busy(work) {
  for (const button of [page.generate, page.check]) button.disabled = true;
  page.status.className = "";
  try {
    await work();
  } catch (error) {
    page.status.className = "failed";
    page.status.textContent = error instanceof RunError ? error.message : String(error);
    if (!(error instanceof RunError)) console.error(error);
  }
  for (const button of [page.generate, page.check]) button.disabled = !bundle;
  page.stop.disabled = true;
}

async function open() {
  const say = (line) => (page.status.textContent = line);
  say("loading");
  const opened = await openBundle(document.baseURI, say);
  const { manifest, session } = opened;
  page.name.textContent = manifest.name;
  page.about.textContent =
    `${manifest.runtimes.litert.recipe} · context ${manifest.model.context_length} · ` +
    `${manifest.model.num_layers} layers · LiteRT on WebAssembly, one thread`;
  for (let length = 0; length <= session.longestDraft; length++) {
    const text = length ? `on, ${length} draft${length > 1 ? "s" : ""}` : "off";
    page.draftLength.add(new Option(text, length));
  }
  page.draftLength.value = Math.min(manifest.draft_length, session.longestDraft);
  page.asChat.checked = opened.hasChat;
  page.asChat.disabled = !opened.hasChat;
  bundle = opened;
  say("ready");
}

async function generate() {
  const sampling = samplingParams({
    temperature: page.temperature.valueAsNumber,
    topK: page.topK.valueAsNumber,
    topP: page.topP.valueAsNumber,
    seed: BigInt(page.seed.value || "0"),
  });
  const stops = {
    maxNewTokens: page.maxNewTokens.valueAsNumber,
    stopIds: bundle.manifest.tokens.stop_token_ids,
  };
  const text = page.prompt.value;
  const promptIds = page.asChat.checked ? bundle.encodeChat(text) : bundle.encode(text);
  const figures = new Figures(promptIds.length);
  const stream = new TextStream(bundle.tokenizer, bundle.thought);
  page.answer.textContent = "";
  page.status.textContent = "generating";
  [stopped, page.stop.disabled] = [false, false];
  const length = Number(page.draftLength.value);
  for await (const step of bundle.session.generate(promptIds, sampling, stops, length)) {
    figures.add(step);
    page.answer.textContent += stream.push(step.tokenIds);
    figures.show();
    await breathe();
    if (stopped) break;
  }
  page.answer.textContent += stream.finish();
  page.status.textContent = stopped ? "stopped" : "done";
}

/** Of one answer. */
class Figures {
  #steps = [];
  #begun = performance.now();

  constructor(numPromptTokens) {
    this.#shown("promptTokens", numPromptTokens);
    for (const id of ["tokens", "tokensPerS", "accepted"]) this.#shown(id, "–");
  }

  add(step) {
    this.#steps.push({ ...step, at: performance.now() });
  }

  show() {
    const [first, ...later] = this.#steps;
    const count = (steps) => steps.reduce((sum, { tokenIds }) => sum + tokenIds.length, 0);
    this.#shown("tokens", count(this.#steps));
    this.#shown("firstS", ((first.at - this.#begun) / 1000).toFixed(2));
    // The first token waits for the prompt, which says nothing about those that follow.
    if (later.length) {
      const seconds = (later.at(-1).at - first.at) / 1000;
      this.#shown("tokensPerS", (count(later) / seconds).toFixed(1));
    }
    const rounds = this.#steps.filter(({ numDrafted }) => numDrafted);
    const accepted = rounds.reduce((sum, { numAccepted }) => sum + numAccepted, 0);
    if (rounds.length) this.#shown("accepted", (accepted / rounds.length).toFixed(2));
  }

  #shown(id, value) {
    page[id].textContent = value;
  }
}

async function check() {
  const reference = await bundle.reference();
  const numPrompts = reference.prompts.length;
  const { tolerances } = bundle.manifest.runtimes.litert;
  const progress = (done) => (page.status.textContent = `check: ${done} of ${numPrompts} prompts`);
  progress(0);
  page.report.replaceChildren();
  const show = async (done) => {
    progress(done);
    await breathe();
  };
  const report = await runCheck(bundle.session, bundle.backend, reference, tolerances, show);
  const { original, speculative, draftLength } = report;
  const numSame = bundle.numPromptsEqual(reference);
  const failures = [...report.failures];
  if (numSame < numPrompts) {
    failures.push(
      `${numPrompts - numSame} recorded prompts become other tokens: the chat template is not of ` +
        "plain turns, or tokenizer.json is not the one that was recorded with",
    );
  }
  const lines = [
    ["recorded prompts become the same tokens", `${numSame} of ${numPrompts}`],
    ["plain decoding = original", `${original.numEqual} of ${original.numTokens} tokens`],
    [
      `speculative (K = ${draftLength}) = plain`,
      `${speculative.numEqual} of ${speculative.numTokens} tokens`,
    ],
    [
      "same token, given the original's text",
      percent(report.agreement) + (report.numTies ? `, ${report.numTies} near ties not counted` : ""),
    ],
    ["largest logit difference / scale", report.logitError.toExponential(1)],
    ...report.acceptance.map((share, index) => [
      `drafts accepted up to position ${index + 1}`,
      `${percent(share)}, original ${percent(report.originalAcceptance[index])}`,
    ]),
  ];
  for (const [what, found] of lines) {
    const row = page.report.insertRow();
    row.insertCell().textContent = what;
    row.insertCell().textContent = found;
  }
  page.status.className = failures.length ? "failed" : "passed";
  page.status.textContent = failures.length
    ? `failed: ${failures.join("; ")}`
    : "passed: as close to the original as the recipe promises; with and without the drafter the same";
}

page.ask.addEventListener("submit", (event) => {
  event.preventDefault();
  busy(generate);
});
page.stop.addEventListener("click", () => (stopped = true));
page.check.addEventListener("click", () => busy(check));
busy(open);
