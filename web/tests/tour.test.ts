import { expect, test } from 'vitest';
import { textOf } from '../src/lib/figure';
import { arrange, rectangleOf } from '../src/lib/layout';
import { cameraAt, cellsInView, pace, someFrames, standsSomewhere, trainingSeconds } from '../src/lib/opening';
import { against, deviation, placeFor, readStop, rises, stationOf, threeSurprises, writeStop } from '../src/lib/tour';
import { MODEL } from './model';

test('the opening begins with one cell and ends with every cell of the model', () => {
  const size = { width: 748, height: 468 };
  const layout = arrange(MODEL, true, size.width - 3, size.height - 1);
  const home = {
    x: Math.round((layout.width - size.width) / 2),
    y: Math.round(Math.min(0, (layout.height - size.height) / 2)),
  };
  const cell = rectangleOf(layout, 'blocks.0.attention.query.weight', 3, 7)!;
  const seen = [0, 0.25, 0.5, 0.75, 0.9, 1].map((share) =>
    cellsInView(layout, cameraAt(share, cell, size, home), size),
  );
  expect(seen[0]).toBe(1);
  expect(seen.at(-1)).toBe(MODEL.reduce((sum, { parameters }) => sum + parameters, 0));
  expect([...seen].sort((a, b) => a - b)).toEqual(seen);
  const end = cameraAt(1, cell, size, home);
  expect([end.zoom, end.left, end.top].map((x) => Math.round(1e6 * x) / 1e6 + 0)).toEqual([
    1,
    -home.x + 0,
    -home.y + 0,
  ]);
});

test('a link that says where to stand is not covered by the opening', () => {
  expect(standsSomewhere('')).toBe(false);
  expect(standsSomewhere('#run=small')).toBe(false);
  expect(standsSomewhere('#run=small&step=77')).toBe(true);
  expect(standsSomewhere('#tour=3')).toBe(true);
});

test('the pace says how many times faster or slower the film is', () => {
  expect(textOf(pace(48, 8))).toBe('played from the recording, about 6.0 times faster than it was');
  expect(textOf(pace(2, 8))).toBe('played from the recording, about 4.0 times slower than it was');
  expect(textOf(pace(800, 8))).toBe('played from the recording, about 100 times faster than it was');
  expect(textOf(pace(8, 8))).toContain('as fast as it was');
  expect(textOf(pace(0, 8))).toBe('played from the recording');
  expect(trainingSeconds({ steps: [0, 10], low: [1000, 500], high: [1000, 500] }, 20, 100)).toBeCloseTo(
    10 * 0.1 + 10 * 0.2,
  );
});

test('some frames keep the first and the last', () => {
  expect(someFrames(3, 10)).toEqual([0, 1, 2]);
  expect(someFrames(100, 4)).toEqual([0, 33, 66, 99]);
});

test('a station is written into the address and read again', () => {
  for (const text of ['start', '1', '10', 'short.1', 'short.5']) expect(writeStop(readStop(text))).toBe(text);
  for (const text of ['', '0', '11', 'short.6', 'short', '<script>']) expect(readStop(text)).toBeNull();
  expect(stationOf(readStop('short.4')!)).toBe(6);
});

test('the share that moved along its gradient counts signs, and no zeros', () => {
  expect(against([1, -1, 1, 0, 2], [1, 1, -1, 1, 0], true)).toEqual({ cells: 5, whole: true, along: 1 });
  expect(against([1e-30], [1e-30], true).along).toBe(1); // whose product is zero in single precision
});

test('the steps at which the loss rose are counted between numbers alone', () => {
  expect(rises([3, 2, 2.5, 2.5, null, 1, 2])).toEqual({ rose: 2, of: 4 });
});

test('the deviation is that of the numbers', () => {
  expect(deviation([1, -1, 1, -1])).toBe(1);
  expect(deviation([2, 4, 4, 4, 5, 5, 7, 9])).toBe(2);
});

test('three surprises are the least, the middle and the largest, in the order of the text', () => {
  const losses = [9, 9, 9, 9, 9, 9, 2, 5, 0.1, 3, 4];
  expect(threeSurprises(losses)).toEqual([7, 8, 9]);
  expect(threeSurprises([1, null])).toEqual([]);
});

test('the panel stands where it hides least of what it speaks of', () => {
  const window = { width: 1280, height: 720 };
  const at = placeFor({ width: 384, height: 400 }, window, [{ x: 945, y: 45, width: 330, height: 545 }]);
  expect(at.x + 384).toBeLessThanOrEqual(945);
  const below = placeFor({ width: 384, height: 300 }, window, [{ x: 0, y: 0, width: 1280, height: 400 }]);
  expect(below.bottom).toBe(true);
});
