/** Types and pure functions of the tour; its stations are in lib/stations.ts. */

import type { Sampling } from './api';
import type { FigureProps, Piece, What } from './figure';
import type { Biography, Birth, CellMode, Likely, Neuron, Next, Nudge, Phases, RunInfo, TensorInfo } from './types';
import type { Side, ViewName } from './view.svelte';

/** Parts of the page that have a `data-tour` of this name, and the view in which they are. */
export const TARGETS = {
  count: {},
  play: {},
  hyperparameters: {},
  decoding: {},
  timeline: {},
  map: { view: 'map' },
  census: { view: 'map' },
  lens: { view: 'map' },
  number: { view: 'map', side: 'number' },
  writes: { view: 'map', side: 'writes' },
  prompt: { view: 'play' },
  bars: { view: 'play' },
  batch: { view: 'step' },
  out: { view: 'step' },
} as const satisfies Record<string, { view?: ViewName; side?: Side }>;
export type Target = keyof typeof TARGETS;

/** A text of this run, and where it stands on the page: it can be clicked. */
export const live = (text: string | undefined, to: Target): Piece => ({ text: text ?? '…', to });
/** A number of this run, and where it stands on the page. */
export const number = (
  what: What,
  value: number | null | undefined,
  to: Target,
  more: Partial<FigureProps> = {},
): Piece => ({
  what,
  value,
  to,
  ...more,
});

export type Question = { ask: Piece[]; reveal: Piece[] } & (
  | { options: Piece[][]; right: number } // one of these
  | { truth: number } // a share, from 0 to 1
);

/** What is measured for the tour, each for where the page stands. */
export interface Values {
  life: Biography;
  neuron: Neuron;
  nudge: Nudge;
  newborn: Birth;
  spread: { std: number; cells: number };
  doubled: { tokens: number; parameters: number; steps: number }[];
  prediction: { prompt: string; step: number; next: Next | null; likely: Likely[] }; // next: null where the vocabulary is too large to name tokens
  digest: string | null;
  share: Against;
  rises: { rose: number; of: number };
  chat: { tokens: number; before: string | null; after: string | null };
}
export type FactName = keyof Values;

/** What a station speaks of. */
export interface At {
  run: RunInfo;
  step: number;
  cell: { name: string; row: number; column: number };
  address: string;
  tensor: TensorInfo;
  opened: Phases | null;
  next: Next | null;
  prompt: string;
  sampling: Sampling;
  facts: Partial<Values>;
}

export interface Station {
  title: string;
  /** where the page is put when the station begins */
  stand: { view: ViewName; side?: Side; mode?: CellMode; phase?: number; step: 'birth' | 'made' | 'end' | 'stay' };
  points: Target[];
  needs: FactName[];
  /** measured once the question was answered */
  reveals?: FactName[];
  first: (at: At) => Piece[];
  second: (at: At) => Piece[];
  /** for the 90 seconds */
  short: (at: At) => Piece[];
  question: (at: At) => Question | null;
  task: { say: string; lab?: 'reinit' };
}

// --- the address -------------------------------------------------------------------------------------------------

export interface Stop {
  short: boolean;
  /** from 1; 0: the choice between the two */
  number: number;
}
export const SHORT: readonly number[] = [1, 2, 4, 6, 9]; // the stations of the 90 seconds
export const STATIONS = 10;

/** `3`, `short.2` or `start`; null: no tour. */
export function readStop(text: string): Stop | null {
  if (text === 'start') return { short: false, number: 0 };
  const found = /^(short\.)?([1-9][0-9]?)$/.exec(text);
  if (!found) return null;
  const [short, number] = [found[1] !== undefined, Number(found[2])];
  return number <= (short ? SHORT.length : STATIONS) ? { short, number } : null;
}
export const writeStop = (stop: Stop | null): string =>
  !stop ? '' : stop.number === 0 ? 'start' : `${stop.short ? 'short.' : ''}${stop.number}`;
/** Which of all it is, from 1. */
export const stationOf = (stop: Stop): number => (stop.short ? SHORT[stop.number - 1]! : stop.number);
export const lengthOf = (stop: Stop): number => (stop.short ? SHORT.length : STATIONS);

// --- sums --------------------------------------------------------------------------------------------------------

/** Parameters by kind, the largest first. */
export function byKind(tensors: TensorInfo[]): Record<TensorInfo['kind'], number> {
  const sums = { weight: 0, embedding: 0, bias: 0, gain: 0 };
  for (const tensor of tensors) sums[tensor.kind] += tensor.parameters;
  return sums;
}

export interface Against {
  /** cells that were looked at, and whether these are all of the tensor */
  cells: number;
  whole: boolean;
  /** those that moved the way of their gradient: the other way than plain SGD would move them */
  along: number;
}

export function against(gradient: ArrayLike<number>, update: ArrayLike<number>, whole: boolean): Against {
  let along = 0;
  for (let i = 0; i < gradient.length; i++)
    if (gradient[i]! * update[i]! > 0 || (gradient[i]! !== 0 && Math.sign(gradient[i]!) === Math.sign(update[i]!)))
      along++;
  return { cells: gradient.length, whole, along };
}

/** In how many steps the loss was higher than in the one before. */
export function rises(losses: (number | null)[]): { rose: number; of: number } {
  let rose = 0;
  let of = 0;
  for (let i = 1; i < losses.length; i++) {
    const [before, now] = [losses[i - 1], losses[i]];
    if (before === null || before === undefined || now === null || now === undefined) continue;
    of++;
    if (now > before) rose++;
  }
  return { rose, of };
}

export function deviation(numbers: ArrayLike<number>): number {
  let [sum, squares] = [0, 0];
  for (let i = 0; i < numbers.length; i++) sum += numbers[i]!;
  const mean = sum / numbers.length;
  for (let i = 0; i < numbers.length; i++) squares += (numbers[i]! - mean) ** 2;
  return Math.sqrt(squares / numbers.length);
}

/** Three tokens of a row that surprised the model by very different amounts, in the order of the text. */
export function threeSurprises(losses: (number | null)[]): number[] {
  const known = losses
    .map((loss, i) => ({ loss: loss ?? NaN, i }))
    .filter(({ loss, i }) => Number.isFinite(loss) && i >= Math.min(6, losses.length - 3));
  const order = known.sort((a, b) => a.loss - b.loss);
  if (order.length < 3) return [];
  return [order[0]!.i, order[Math.floor(order.length / 2)]!.i, order.at(-1)!.i].sort((a, b) => a - b);
}

// --- where the panel stands --------------------------------------------------------------------------------------

export interface Box {
  x: number;
  y: number;
  width: number;
  height: number;
}

const common = (a: Box, b: Box): number =>
  Math.max(0, Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x)) *
  Math.max(0, Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y));

/** A place of the window where the panel hides least of what it speaks of; what is named first counts most. */
export function placeFor(
  panel: { width: number; height: number },
  window: { width: number; height: number },
  targets: Box[],
): { x: number; bottom: boolean } {
  let best = { x: 0, bottom: true, hidden: Infinity };
  for (const bottom of [true, false])
    for (let x = window.width - panel.width - 10; x >= 10; x -= 12) {
      const box = { x, y: bottom ? window.height - panel.height - 10 : 44, ...panel };
      const hidden = targets.reduce((sum, target, i) => sum + common(box, target) / (1 + 2 * i), 0);
      if (hidden < best.hidden - 1) best = { x, bottom, hidden };
    }
  return { x: best.x, bottom: best.bottom };
}
