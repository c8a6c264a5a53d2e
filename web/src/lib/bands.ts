/** Turns the lowest and highest values per pixel into the SVG path of a small plot. */

export type Numbers = (number | null)[];

/** From numbers to a place between 0 (the least) and 1 (the most). */
export interface Range {
  least: number;
  most: number;
  of(value: number): number;
}

export function rangeOf(lists: Numbers[], logarithmic: boolean): Range | null {
  let [least, most] = [Infinity, -Infinity];
  for (const list of lists)
    for (const value of list)
      if (value !== null && (!logarithmic || value > 0))
        [least, most] = [Math.min(least, value), Math.max(most, value)];
  if (least > most) return null;
  const scale = logarithmic ? Math.log : (value: number): number => value;
  const span = scale(most) - scale(least) || 1;
  const floor = scale(least) - (most === least ? span / 2 : 0); // what never changes is a line in the middle
  return {
    least,
    most,
    of: (value) => Math.max(0, Math.min(1, (scale(Math.max(value, logarithmic ? least : value)) - floor) / span)),
  };
}

/** A closed shape around low and high, in a box: x from 0 to `width`, y from `height` down to 0. Gaps are bridged. */
export function band(xs: number[], low: Numbers, high: Numbers, range: Range, height: number): string {
  const there = xs.map((_, i) => i).filter((i) => low[i] != null && high[i] != null);
  if (!there.length) return '';
  const point = (i: number, value: number): string =>
    `${xs[i]!.toFixed(1)} ${(height * (1 - range.of(value))).toFixed(1)}`;
  if (there.length === 1) return `M${point(there[0]!, high[there[0]!]!)}l3 0`; // one value: a stroke
  const upper = there.map((i) => point(i, high[i]!));
  const lower = there.map((i) => point(i, low[i]!)).reverse();
  return `M${upper.join('L')}L${lower.join('L')}Z`;
}
