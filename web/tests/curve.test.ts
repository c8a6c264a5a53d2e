import { expect, test } from 'vitest';
import { begun, longer, NO_CURVE, valueAt, type Curve } from '../src/lib/curve';
import type { Series } from '../src/lib/types';

const rows = (from: number, losses: (number | null)[]): [number, number | null][] =>
  losses.map((loss, i) => [from + i, loss]);

test('steps that came twice count once', () => {
  const curve = longer(longer(NO_CURVE, rows(0, [3, 2, 1])), rows(1, [9, 9, 0.5]));
  expect(curve).toEqual({ steps: [0, 1, 2, 3], low: [3, 2, 1, 0.5], high: [3, 2, 1, 0.5] });
  expect(longer(curve, rows(0, [7]))).toBe(curve);
});

test('a curve that grows too long keeps every extreme', () => {
  const losses = Array.from({ length: 10_000 }, (_, i) => (i === 4321 ? 99 : i === 1234 ? -5 : i === 77 ? null : 1));
  let curve: Curve = NO_CURVE;
  for (let from = 0; from < losses.length; from += 1000)
    curve = longer(curve, rows(from, losses.slice(from, from + 1000)));
  expect(curve.steps.length).toBeLessThanOrEqual(4800);
  expect(Math.max(...curve.high.map(Number))).toBe(99);
  expect(Math.min(...curve.low.map(Number))).toBe(-5);
  expect(valueAt(curve, 4321)).toEqual({ low: 1, high: 99 });
  expect(valueAt(curve, 77)).toEqual({ low: 1, high: 1 }); // its neighbour's: the loss itself was not finite
});

test('what was read of the run is followed by what the stream brought since', () => {
  const now = longer(NO_CURVE, rows(2, [8, 7, 6]));
  const series = { steps: [0, 3], low: [1, 2], high: [3, 4] } as Series;
  expect(begun(series, now)).toEqual({ steps: [0, 3, 4], low: [1, 2, 6], high: [3, 4, 6] });
  expect(begun(series, NO_CURVE)).toEqual({ steps: [0, 3], low: [1, 2], high: [3, 4] });
});

test('the loss of a step is that of the stretch it lies in', () => {
  const curve = { steps: [0, 10, 20], low: [3, null, 1], high: [4, null, 2] };
  expect([0, 9, 10, 20, 500].map((step) => valueAt(curve, step))).toEqual([
    { low: 3, high: 4 },
    { low: 3, high: 4 },
    null,
    { low: 1, high: 2 },
    { low: 1, high: 2 },
  ]);
  expect(valueAt(NO_CURVE, 3)).toBeNull();
});
