import { beforeEach, describe, expect, it, test } from 'vitest';
import { Film, KEPT_BYTES, UNFOLDED_BYTES } from '../src/lib/film';
import { Recent } from '../src/lib/recent';
import type { FilmInfo } from '../src/lib/types';
import { tensor } from './model';

/** A film of two tensors: `side` x `side` values of one and `side` of the other, and half as many changes a side. */
function filmOf(side: number, steps: number[]): Film {
  const half = side / 2;
  const info = {
    steps,
    value_level: 1,
    change_level: 2,
    tensors: [
      { name: 'w', values: [side, side], changes: [half, half] },
      { name: 'b', values: [1, side], changes: [1, half] },
    ],
  } as unknown as FilmInfo;
  const birth = Float32Array.from({ length: side * side + side }, (_, i) => i / 8);
  return new Film(info, [tensor('w', [2 * side, 2 * side]), tensor('b', [2 * side], 'bias')], birth);
}

/** A frame as docs/run-format.md has it: its step, a scale for each tensor and kind, a byte for each number. */
function frame(film: Film, step: number, scales: number[], byte: (i: number) => number): ArrayBuffer {
  const cells = film.values.count + 2 * film.changes.count;
  const raw = new ArrayBuffer(16 + 4 * scales.length + cells);
  new DataView(raw).setBigInt64(0, BigInt(step), true);
  new Float32Array(raw, 16, scales.length).set(scales);
  new Int8Array(raw, 16 + 4 * scales.length).forEach((_, i, all) => (all[i] = byte(i)));
  return raw;
}

describe('a frame', () => {
  let film: Film;
  beforeEach(() => (film = filmOf(4, [0, 10, 20])));
  const SCALES = [0.5, 2, 0.25, 4, 0.125, 8]; // of values, gradients and updates; w and b each
  it('is what was learned since birth, in steps of a byte', () => {
    film.keep(
      1,
      frame(film, 10, SCALES, (i) => (i % 5) - 2),
    );
    const { values, gradients, updates, exact, step } = film.known(1)!;
    expect([exact, step]).toEqual([false, 10]);
    expect([...values.subarray(0, 5)]).toEqual([0 - 1, 1 / 8 - 0.5, 2 / 8, 3 / 8 + 0.5, 4 / 8 + 1]);
    expect(values[16]).toBe(16 / 8 + 2 * ((16 % 5) - 2)); // the first of b
    expect(gradients![4]).toBe(4 * (((20 + 4) % 5) - 2)); // b's, after four of w
    expect(updates![0]).toBe(0.125 * (((20 + 6) % 5) - 2));
    expect(film.known(1)).toBe(film.known(1)); // what is drawn from it can be kept
  });
  it('of birth is birth itself, exact', () => {
    film.keep(
      0,
      frame(film, 0, SCALES, () => 9),
    );
    expect(film.known(0)).toMatchObject({ exact: true, values: film.birth });
    expect(film.shows(film.known(0)!, 'gradient')!.exact).toBe(false);
  });
  it('shows each mode at the level of its picks', () => {
    film.keep(
      2,
      frame(film, 20, SCALES, () => 1),
    );
    const picture = film.known(2)!;
    expect(film.shows(picture, 'learned')!.sheets.get('b')).toMatchObject({ start: 16, rows: 1, columns: 4, level: 1 });
    expect(film.shows(picture, 'learned')!.sheets.get('b')!.plane.numbers[16]).toBe(2);
    expect(film.shows(picture, 'update')).toMatchObject({ level: 2, step: 20 });
    expect(film.shows(picture, 'memory:first_moment')).toBeNull();
    expect(film.shows(null, 'value')).toBeNull();
  });
  it('is the nearest of a step; the end of the run, which made no update, stands for no other', () => {
    expect([0, 4, 6, 14, 19, 99].map((step) => film.nearest(step))).toEqual([0, 0, 1, 1, 2, 2]);
    expect([19, 20].map((step) => film.nearest(step, 20))).toEqual([1, 2]);
  });
});

test('a film of any length keeps no more bytes than it says, and the frames that were used last', () => {
  const steps = Array.from({ length: 200 }, (_, i) => i);
  const film = filmOf(512, steps); // as many cells as a film has at most
  for (const step of steps) {
    const raw = new ArrayBuffer(16 + 12 * 2 + film.values.count + 2 * film.changes.count);
    new DataView(raw).setBigInt64(0, BigInt(step), true);
    film.keep(step, raw);
    film.known(step);
    film.known(0); // the page stands there
    expect(film.bytes).toBeLessThanOrEqual(KEPT_BYTES + UNFOLDED_BYTES);
  }
  expect(film.known(199)!.step).toBe(199);
  expect(film.known(0)!.step).toBe(0);
  expect(film.known(1)).toBeUndefined();
  expect(film.known(100)).toBeDefined(); // an opening of 72 frames and a time-lapse of 100 fit
});

test('a cache drops what was not used for longest, and tells', () => {
  const dropped: string[] = [];
  const cache = new Recent<string, number>(10, (key) => dropped.push(key));
  cache.set('a', 1, 4);
  cache.set('b', 2, 4);
  expect(cache.get('a')).toBe(1);
  cache.set('c', 3, 4);
  expect(dropped).toEqual(['b']);
  cache.set('a', 4, 1); // a value that is replaced counts once
  expect([cache.bytes, cache.get('a'), cache.has('b')]).toEqual([5, 4, false]);
  cache.set('large', 5, 99); // what is being used is kept, whatever its size
  expect([cache.bytes, cache.get('large'), dropped]).toEqual([99, 5, ['b', 'c', 'a']]);
});
