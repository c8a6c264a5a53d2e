import { describe, expect, it, test } from 'vitest';
import { roundUp125, shadeOf, shader, SHADES } from '../src/lib/colour';
import { Scales, type Statistics } from '../src/lib/scales.svelte';
import { tensor } from './model';

describe('a scale', () => {
  const tensors = [tensor('w', [10, 10])];
  const recorded = (norm: (number | null)[]): Statistics => ({
    weight_norm: new Map([['w', norm]]),
    weight_max: new Map([['w', norm]]),
    gradient_norm: new Map([['w', norm]]),
    update_norm: new Map(),
  });
  it('is that of birth until more is known', () => expect(new Scales(tensors).of('w', 'value').full).toBe(0.1));
  it('follows from the whole run, but for its wildest part', () => {
    const scales = new Scales(tensors);
    scales.take(recorded([0.4, 0.5, 1e9]), 300, true);
    expect(scales.of('w', 'value').full).toBe(0.2); // 3 x 0.5 / 10
    expect(scales.grown('w', 'value')).toBeNull();
  });
  it('holds until the run outgrows it, and then says so', () => {
    const scales = new Scales(tensors);
    scales.take(recorded([0.4, 0.5]), 100, true);
    scales.take(recorded([0.1, 0.1]), 200, false);
    expect(scales.of('w', 'value').full).toBe(0.2);
    scales.take(recorded([3, 3]), 300, false);
    expect(scales.of('w', 'value').full).toBe(1);
    expect(scales.grown('w', 'value')).toEqual({ was: 0.2, step: 300 });
  });
  it('of the mean of squares is the square of that of gradients', () => {
    const scales = new Scales(tensors);
    scales.take(recorded([0.5, 0.5]), 100, true);
    expect(scales.of('w', 'memory:second_moment').full).toBe(scales.of('w', 'gradient').full ** 2);
  });
  it('of gradients is one for the model: four times the size that all but 5% of the parameters stay below', () => {
    const [many, few] = [tensor('many', [10, 10]), tensor('few', [4], 'bias')]; // 100 parameters, and 4 with larger gradients
    const scales = new Scales([many, few]);
    const norms = new Map([
      ['many', [9, 0.1, 0.1]], // the gradients of the first steps are much larger than all others
      ['few', [2, 2, 2]],
    ]);
    scales.take(
      { weight_norm: new Map(), weight_max: new Map(), gradient_norm: norms, update_norm: new Map() },
      9,
      true,
    );
    // norm 0.1 of 100 numbers: 0.01 each. Full colour at 0.04, rounded up to 0.05; bent from a tenth of 0.01.
    expect(scales.of('few', 'gradient')).toMatchObject({ full: 0.05, bend: 0.001 });
    expect(scales.of('many', 'gradient')).toEqual(scales.of('few', 'gradient'));
  });
  it('of cells that were seen is at most their largest, and numbers that are not finite count for nothing', () => {
    const scales = new Scales(tensors);
    scales.see('w', 'learned', Float32Array.of(0.01, -0.01, NaN, 0.01), 5);
    expect(scales.of('w', 'learned').full).toBe(0.01);
  });
});

test('scales are rounded up to 1, 2, 5', () =>
  expect([0.0011, 0.2, 0.21, 7, 1e9, 0, NaN].map(roundUp125)).toEqual([0.002, 0.2, 0.5, 10, 1e9, 0, 0]));

test('asinh keeps the small numbers apart, and the full colour is the end of the scale', () => {
  const [straight, bent] = [
    { full: 1, bend: 0 },
    { full: 1, bend: 0.001 },
  ];
  expect([0.001, 0.01, 1, -5].map((value) => shadeOf(value, straight))).toEqual([0, 1, SHADES, -SHADES]);
  expect(shadeOf(0.01, bent)).toBeGreaterThan(shadeOf(0.001, bent) + 20);
  expect(shadeOf(-1, bent)).toBe(-SHADES);
  for (const value of [-2, -0.3, 0, 0.0004, 0.7, Infinity, NaN])
    expect(shader(straight)(value)).toBe(shadeOf(value, straight));
});
