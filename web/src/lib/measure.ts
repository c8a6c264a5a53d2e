/** Sets the colour scales from the norms recorded over the whole run, or from its cells where none were recorded. */

import * as api from './api';
import { REQUESTS } from './constants';
import type { Film, Picture } from './film';
import { bends, type Recorded, type Scales, type Statistics } from './scales.svelte';
import type { RunInfo } from './types';
import { readWhole, type Whole } from './whole';

const NAMES = ['weight_norm', 'weight_max', 'gradient_norm', 'update_norm'] as const;

/** What was recorded of every tensor's size. */
export async function readStatistics(run: RunInfo, signal: AbortSignal): Promise<Statistics> {
  const layers = await Promise.all(
    NAMES.map((name) => api.getLayers(run.name, name, 'tensor', REQUESTS.scale_parts, signal)),
  );
  const read = (i: number): Recorded => new Map(layers[i]!.rows.map((row) => [row.name, row.high]));
  return { weight_norm: read(0), weight_max: read(1), gradient_norm: read(2), update_norm: read(3) };
}

/** Make sure that a picture's colours have a meaning before it is shown. */
export async function measure(scales: Scales, run: RunInfo, whole: Whole, signal: AbortSignal): Promise<void> {
  const { mode } = whole;
  if (bends(mode)) {
    const plane = whole.sheets.values().next().value?.plane;
    if (plane && !scales.knows(mode)) scales.seeAll(mode, plane.numbers, whole.step);
    return;
  }
  if (scales.knows(mode) && !(run.training && mode === 'learned')) return;
  const last = run.keyframes.at(-1);
  const asked = mode === 'learned' ? mode : 'value';
  see(scales, last === undefined ? whole : await readWhole(run, last, asked, whole.level, signal));
}

/** The same from the film, where it is all there is: its last frame says how far the numbers have come. */
export function measureFilm(scales: Scales, film: Film, last: Picture): void {
  for (const [mode, base] of [
    ['learned', film.birth],
    ['value', null],
  ] as const) {
    if (scales.knows(mode)) continue;
    for (const { name, start, rows, columns } of film.values.tensors.values())
      scales.see(
        name,
        mode,
        last.values.slice(start, start + rows * columns).map((value, i) => value - (base ? base[start + i]! : 0)),
        last.step,
      );
  }
}

function see(scales: Scales, whole: Whole): void {
  for (const [name, sheet] of whole.sheets)
    scales.see(
      name,
      whole.mode,
      sheet.plane.numbers.subarray(sheet.start, sheet.start + sheet.rows * sheet.columns),
      whole.step,
    );
}
