import { expect, test } from 'vitest';
import { draw, uniform } from '../src/lib/forward/alive';
import { Decoder, encode, type Tokenizer } from '../src/lib/forward/tokenize';

// The logits are held against torch's by tests/studio/test_alive.py, with models of every family.

const BYTES: Tokenizer = {
  kind: 'bytes',
  tokens: [...'ðŁĻĤa', 'Ġ', 'Ġa'],
  special: [],
  merges: [['Ġ', 'a']],
  words: true,
  prefix: false,
  unknown: null,
  start: 0,
  end: null,
};

test('a character of several tokens comes whole, and half of one at the end is shown as such', () => {
  const ids = encode(BYTES, '🙂 a');
  expect(ids).toEqual([0, 1, 2, 3, 6]);
  const decoder = new Decoder(BYTES);
  expect(ids.map((id) => decoder.add(id))).toEqual(['', '', '', '🙂', ' a']);
  expect(decoder.end()).toBe('');
  expect([0, 1].map((id) => decoder.add(id))).toEqual(['', '']);
  expect(decoder.end()).toBe('\ufffd');
});

test('tokens are drawn as often as their probabilities say, and what was cut is never drawn', () => {
  const probabilities = Float64Array.of(0, 0.5, 0.2, 0, 0.3, 0);
  const counts = [0, 0, 0, 0, 0, 0];
  for (let i = 0; i < 10_000; i++) counts[draw(probabilities, uniform(7, i))]!++;
  // Four standard deviations of a count are at most 200.
  counts.forEach((found, id) => expect(Math.abs(found - 10_000 * probabilities[id]!)).toBeLessThan(200));
  expect([counts[0], counts[3], counts[5]]).toEqual([0, 0, 0]);
  expect(draw(probabilities, 0)).toBe(1);
  expect(draw(probabilities, 1 - 2 ** -53)).toBe(4);
});

test('random numbers follow from seed and place alone, and differ between seeds, large ones too', () => {
  expect(uniform(1, 0)).toBe(uniform(1, 0));
  const seeds = [0, 1, 2, 2 ** 32, 2 ** 32 + 1, Number.MAX_SAFE_INTEGER];
  expect(new Set(seeds.flatMap((seed) => [uniform(seed, 0), uniform(seed, 1)])).size).toBe(2 * seeds.length);
});
