/** A recorded curve as it is drawn: the lowest and highest value of each range of steps. */

import type { Series } from './types';

export interface Curve {
  steps: number[]; // the first of each stretch
  low: (number | null)[];
  high: (number | null)[];
}

export const NO_CURVE: Curve = { steps: [], low: [], high: [] };
const MOST = 4800; // points: more than there are pixels

/** With the steps that came since. A curve that grows too long has its stretches doubled: no extreme is lost. */
export function longer(curve: Curve, points: [step: number, value: number | null][]): Curve {
  const last = curve.steps.at(-1) ?? -1;
  const fresh = points.filter(([step]) => step > last);
  if (!fresh.length) return curve;
  const values = fresh.map(([, value]) => value);
  return thinned({
    steps: [...curve.steps, ...fresh.map(([step]) => step)],
    low: [...curve.low, ...values],
    high: [...curve.high, ...values],
  });
}

/** What was read of the whole run, and then what the stream had brought beyond it. */
export function begun(series: Series, now: Curve): Curve {
  const end = series.steps.at(-1) ?? -1;
  const from = now.steps.findIndex((step) => step > end);
  const tail = <T>(list: T[]): T[] => (from < 0 ? [] : list.slice(from));
  return thinned({
    steps: [...series.steps, ...tail(now.steps)],
    low: [...series.low, ...tail(now.low)],
    high: [...series.high, ...tail(now.high)],
  });
}

function thinned(curve: Curve): Curve {
  if (curve.steps.length <= MOST) return curve;
  const pairs = Array.from({ length: Math.ceil(curve.steps.length / 2) }, (_, i) => 2 * i);
  const of = (list: (number | null)[], best: (...numbers: number[]) => number): (number | null)[] =>
    pairs.map((i) => {
      const there = list.slice(i, i + 2).filter((number) => number !== null);
      return there.length ? best(...there) : null;
    });
  return { steps: pairs.map((i) => curve.steps[i]!), low: of(curve.low, Math.min), high: of(curve.high, Math.max) };
}

/** What the curve says of a step: one value where it is known by itself, else between which two it lies. */
export function valueAt(curve: Curve, step: number): { low: number; high: number } | null {
  let [from, to] = [0, curve.steps.length];
  while (from < to) {
    const middle = (from + to) >> 1;
    if (curve.steps[middle]! <= step) from = middle + 1;
    else to = middle;
  }
  const [low, high] = [curve.low[from - 1], curve.high[from - 1]];
  return low == null || high == null ? null : { low, high };
}
