// Runs the forward pass of a report in node, by the page's own script: node alive.mjs SCRIPT CASES > ANSWERS
// CASES: a JSON list of models, each with the file of its packed parameters, its tensors and prompts.
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { gunzipSync } from 'node:zlib';

const [script, cases] = process.argv.slice(2);
const { Alive } = await import(pathToFileURL(script));
const { signal } = new AbortController();

/** The likeliest token only. */
const greedy = (logits) => {
  const kept = new Float64Array(logits.length);
  kept[logits.indexOf(logits.reduce((most, logit) => Math.max(most, logit)))] = 1;
  return { kept };
};

function open({ file, tensors, model }) {
  const whole = gunzipSync(readFileSync(file));
  const end = whole.indexOf(10);
  const { sizes, ...head } = JSON.parse(whole.subarray(0, end));
  let at = end + 1;
  const parts = sizes.map((size) => whole.subarray(at, (at += size)));
  return new Alive(head, parts, { config: { model }, tensors }, greedy);
}

const refusal = (error) => {
  if (error.name === 'PromptError') return { refused: error.message };
  throw error;
};

const answers = [];
for (const given of JSON.parse(readFileSync(cases))) {
  const alive = open(given);
  const found = [];
  for (const { prompt, step, turned = null, length = 0 } of given.asked) {
    if (!length) found.push(await alive.next(prompt, step, turned, signal).catch(refusal));
    else {
      let text = '';
      for await (const piece of alive.write(prompt, step, length, 1, {}, turned, signal)) text += piece;
      found.push({ text });
    }
  }
  answers.push(found);
}
process.stdout.write(JSON.stringify(answers));
