// Put into the page by test_web.py: does what a person does, turn by turn, and posts what is shown.
const turns = await (await fetch("/turns.json")).json();
const element = (id) => document.getElementById(id);
const shown = (id) => element(id).textContent;

/** The status line once the page is at rest. */
async function rest() {
  do {
    await new Promise((resolve) => setTimeout(resolve, 20));
  } while (element("generate").disabled && !element("status").className);
  return shown("status");
}

async function ask({ choices, asChat }) {
  for (const [id, value] of Object.entries(choices)) element(id).value = value;
  element("asChat").checked = asChat;
  element("generate").click();
  const status = await rest();
  return { status, answer: shown("answer"), tokens: shown("tokens"), accepted: shown("accepted") };
}

const seen = { opened: await rest(), lengths: [...element("draftLength").options].length, answers: [] };
for (const turn of turns) seen.answers.push(await ask(turn));
if (turns.length) {
  element("check").click();
  seen.verdict = await rest();
  seen.report = [...element("report").rows].map((row) => [...row.cells].map((cell) => cell.textContent));
}
await fetch("/seen", { method: "POST", body: JSON.stringify(seen) });
