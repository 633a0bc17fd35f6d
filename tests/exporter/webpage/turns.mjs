// Several sessions on one backend by turns; prints what an old generation says when it goes on.
import assert from "node:assert/strict";
import { ScriptedBackend } from "./scripted_backend.mjs";

const [web] = process.argv.slice(2);
const { Session } = await import(`${web}/speculative.js`);
const { GREEDY } = await import(`${web}/sampling.js`);
const SCRIPT = { skill: 60, vocab_size: 40, cache_length: 256, verify_widths: [1, 2, 4, 8], levels: 0 };

const newBackend = () => new ScriptedBackend(SCRIPT);

async function tokens(session, promptIds, draftLength = 3) {
  const found = [];
  for await (const step of session.generate(promptIds, GREEDY, { maxNewTokens: 9 }, draftLength)) {
    found.push(...step.tokenIds);
  }
  return found;
}

const backend = newBackend();
const [first, second] = [new Session(backend, 128), new Session(backend, 128)];
const texts = new Map([[first, [5, 6, 7]], [second, [5, 6, 8]]]);
for (const session of [first, second, first, first, second]) {
  const prompt = texts.get(session);
  const answer = await tokens(session, prompt);
  assert.deepEqual(answer, await tokens(new Session(newBackend(), 128), prompt, 0));
  texts.set(session, [...prompt, ...answer, 1]);
}

const said = [];
for (const newer of [first, second]) {
  const old = first.generate([5, 6, 7], GREEDY, { maxNewTokens: 40 }, 3);
  await old.next();
  await tokens(newer, [5, 8]);
  await old.next().then(() => said.push("nothing"), (error) => said.push(error.message));
}
console.log(JSON.stringify(said));
