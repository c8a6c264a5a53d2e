import { expect, test } from 'vitest';
import { describe, marks, validationFigure, write } from '../src/lib/figure';

test('a probability under the words «in percent» has the digits of all others, without the sign', () => {
  for (const value of [0.0004, 0.004, 0.0123, 0.456, 1])
    expect(`${write({ what: 'probability', value, scale: 0.01 })}%`).toBe(write({ what: 'probability', value }));
  expect(write({ what: 'probability', value: 0.0951, scale: 0.01, digits: 1 })).toBe('10');
});

test('a duration is written in seconds, minutes or hours, and says when it is an estimate', () => {
  const write_s = (value: number, about = false): string => write({ what: 'duration', value, about });
  expect([0.4, 59.6, 600, 9000].map((s) => write_s(s))).toEqual([
    'under a second',
    '60 seconds',
    '10 minutes',
    '2.5 hours',
  ]);
  expect([write_s(30, true), write_s(0.4, true)]).toEqual(['about 30 seconds', 'under a second']);
  expect(write({ what: 'duration', value: 2, digits: 3 })).toBe('2.00');
});

test('bytes are written in MB or GB', () => {
  expect(write({ what: 'bytes', value: 12_345_678 })).toBe('12.3 MB');
  expect(write({ what: 'bytes', value: 3.2e9, about: true })).toBe('≈ 3.20 GB');
});

test('what was written elsewhere keeps its digits', () => {
  const figure = { what: 'told', value: 2.5, text: '2.50', of: 'loss at birth, number 1' } as const;
  expect(write(figure)).toBe('2.50');
  expect(marks(figure, 'small')['data-value']).toBe('2.5');
  expect(describe(figure, 'small')).toBe('loss at birth, number 1: 2.5 · run small · the sentence of the health check');
});

test('a validation loss over the whole text is another quantity than one over a part of it', () => {
  const measured = { step: 7, loss: 2, tokens: 5000, duration_s: 1 };
  const [whole, final, sampled] = [
    validationFigure({ ...measured, whole: true, final: false }),
    validationFigure({ ...measured, whole: false, final: true }),
    validationFigure({ ...measured, whole: false, final: false }),
  ];
  expect([whole, final, sampled].map(({ what, of }) => [what, of])).toEqual([
    ['validation loss', undefined],
    ['validation loss, sampled', 'the last evaluation'],
    ['validation loss, sampled', undefined],
  ]);
  expect(final.from).toBe('5,000 tokens of the validation text');
});
