import { expect, test } from 'vitest';
import { filterLogits } from '../src/lib/sampling';
import written from './sampling-cases.json';

interface Case {
  logits: number[];
  seen: number[];
  sampling: { temperature: number; top_k: number; top_p: number; min_p: number; repetition_penalty: number };
  probabilities: number[];
}
// Written by tests/studio/test_sampling_cases.py from vitrine.generation.sampling.filter_logits, which it holds this file to.
const cases: Case[] = written;

test.each(cases.map((item, i) => [i, item] as const))(
  'case %i leaves what generation/sampling.py leaves',
  (_, item) => {
    const { kept, cut } = filterLogits(item.logits, item.sampling, item.seen);
    // Which of several equal logits falls at top-p's edge is left open by torch's sort: equals are compared together.
    const groups = new Map<number, number[]>();
    item.logits.forEach((logit, i) => {
      const score = item.seen.includes(i) ? logit + 1000 : logit;
      groups.set(score, [...(groups.get(score) ?? []), i]);
    });
    for (const equals of groups.values()) {
      const mine = equals.map((i) => kept[i]!).sort((a, b) => a - b);
      const theirs = equals.map((i) => item.probabilities[i]!).sort((a, b) => a - b);
      mine.forEach((p, i) => {
        expect(p > 0).toBe(theirs[i]! > 0);
        expect(Math.abs(p - theirs[i]!)).toBeLessThan(2e-6);
      });
    }
    kept.forEach((p, i) => expect(cut[i] === '', `token ${i} is said to be cut`).toBe(p > 0));
  },
);

test('what decoding does changes no logit', () => {
  const logits = Float32Array.of(1, 2, 3);
  filterLogits(logits, { temperature: 0.5, top_k: 1, top_p: 0.5, min_p: 0.1, repetition_penalty: 1.2 }, [2]);
  expect([...logits]).toEqual([1, 2, 3]);
});
