/** The film of a run: a sample of every tensor's parameters at many steps. docs/run-format.md describes the format. */

import { plane } from './painter';
import { Recent } from './recent';
import type { CellMode, FilmInfo, TensorInfo } from './types';
import type { Sheet } from './whole';

/** Where the picks of one tensor stand. */
export interface TensorPicks {
  name: string;
  /** squares down and across */
  rows: number;
  columns: number;
  /** of the first pick in a frame's list */
  start: number;
}

export interface Picks {
  level: number;
  count: number;
  tensors: Map<string, TensorPicks>;
}

/** Numbers at the picks of a film, at one step. NaN stands for what is not finite. */
export interface Picture {
  step: number;
  exact: boolean;
  source: 'film' | 'live' | 'replay';
  values: Float32Array; // at the picks of values
  gradients: Float32Array | null; // at the picks of changes
  updates: Float32Array | null;
}

export type Sheets = Map<string, Sheet>;

/** Bytes of frames that a film keeps: as they were sent, and unfolded into numbers. */
export const KEPT_BYTES = 48 * 2 ** 20;
export const UNFOLDED_BYTES = 16 * 2 ** 20;

export class Film {
  readonly values: Picks;
  readonly changes: Picks;
  /** frames as they were sent */
  readonly raw = new Recent<number, ArrayBuffer>(KEPT_BYTES);
  private readonly pictures = new Recent<number, Picture>(UNFOLDED_BYTES);
  private readonly sheets = new WeakMap<Float32Array, Sheets>();
  private readonly learned = new WeakMap<Picture, Float32Array>();

  constructor(
    readonly info: FilmInfo,
    readonly tensors: TensorInfo[],
    readonly birth: Float32Array,
  ) {
    const read = (level: number, key: 'values' | 'changes'): Picks => {
      const found = new Map<string, TensorPicks>();
      let start = 0;
      for (const tensor of info.tensors) {
        const [rows, columns] = tensor[key];
        found.set(tensor.name, { name: tensor.name, rows, columns, start });
        start += rows * columns;
      }
      return { level, count: start, tensors: found };
    };
    this.values = read(info.value_level, 'values');
    this.changes = read(info.change_level, 'changes');
  }

  /** The number of the frame nearest to a step. The end of a run made no update: its frame stands for no other step. */
  nearest(step: number, end = -1): number {
    const steps = this.info.steps;
    let best = 0;
    for (let i = 1; i < steps.length; i++)
      if ((steps[i] !== end || step >= end) && Math.abs(steps[i]! - step) < Math.abs(steps[best]! - step)) best = i;
    return best;
  }

  /** Keep a frame as it was sent. */
  keep(number: number, raw: ArrayBuffer): void {
    this.raw.set(number, raw, raw.byteLength);
  }

  /** A frame, if it is here. */
  known(number: number): Picture | undefined {
    const raw = this.raw.get(number);
    if (!raw) return undefined;
    const known = this.pictures.get(number);
    if (known) return known;
    const picture = this.unfold(raw);
    // Twice the values: what was learned since birth may be asked for, too.
    this.pictures.set(number, picture, 4 * 2 * (this.values.count + this.changes.count));
    return picture;
  }

  /** Bytes of all frames that are kept. */
  get bytes(): number {
    return this.raw.bytes + this.pictures.bytes;
  }

  /** Read a frame; each number is a byte times its tensor's scale, and is never exact. */
  unfold(raw: ArrayBuffer): Picture {
    const view = new DataView(raw);
    const tensors = this.info.tensors.length;
    const step = Number(view.getBigInt64(0, true));
    const scales = new Float32Array(raw.slice(16, 16 + 12 * tensors));
    const cells = new Int8Array(raw, 16 + 12 * tensors);
    const read = (kind: number, picks: Picks, from: number, base: Float32Array | null): Float32Array => {
      const out = new Float32Array(picks.count);
      let t = 0;
      for (const tensor of picks.tensors.values()) {
        const scale = scales[kind * tensors + t++]!;
        const end = tensor.start + tensor.rows * tensor.columns;
        for (let i = tensor.start; i < end; i++) out[i] = (base ? base[i]! : 0) + cells[from + i]! * scale;
      }
      return out;
    };
    const v = this.values.count;
    const c = this.changes.count;
    return {
      step,
      exact: step === 0,
      source: 'film',
      values: step === 0 ? this.birth : read(0, this.values, 0, this.birth),
      // A report may have no room for them.
      gradients: c ? read(1, this.changes, v, null) : null,
      updates: c ? read(2, this.changes, v + c, null) : null,
    };
  }

  /** The live picture: exact float32 values, gradients and updates, one after the other. */
  live(step: number, numbers: Float32Array): Picture {
    const v = this.values.count;
    const c = this.changes.count;
    return {
      step,
      exact: true,
      source: 'live',
      values: numbers.subarray(0, v),
      gradients: numbers.subarray(v, v + c),
      updates: numbers.subarray(v + c, v + 2 * c),
    };
  }

  /** What a picture has of a mode, by tensor; null if it has nothing. */
  shows(
    picture: Picture | null,
    mode: CellMode,
  ): { sheets: Sheets; level: number; exact: boolean; step: number } | null {
    const changes = mode === 'gradient' || mode === 'update';
    const numbers = this.numbers(picture, mode);
    if (!numbers) return null;
    const picks = changes ? this.changes : this.values;
    let sheets = this.sheets.get(numbers);
    if (!sheets) {
      const all = plane(numbers);
      sheets = new Map(
        [...picks.tensors.values()].map(({ name, start, rows, columns }) => [
          name,
          { plane: all, start, rows, columns, level: picks.level, row: 0, column: 0 },
        ]),
      );
      this.sheets.set(numbers, sheets);
    }
    if (mode === 'birth') return { sheets, level: picks.level, exact: true, step: 0 };
    // A film's gradients are rounded at its first frame too.
    return {
      sheets,
      level: picks.level,
      exact: changes ? picture!.source === 'live' : picture!.exact,
      step: picture!.step,
    };
  }

  private numbers(picture: Picture | null, mode: CellMode): Float32Array | null {
    if (mode === 'birth') return this.birth;
    if (!picture) return null;
    if (mode === 'gradient') return picture.gradients;
    if (mode === 'update') return picture.updates;
    if (mode === 'value') return picture.values;
    if (mode !== 'learned') return null;
    let moved = this.learned.get(picture);
    if (!moved) {
      moved = picture.values.map((value, i) => value - this.birth[i]!);
      this.learned.set(picture, moved);
    }
    return moved;
  }
}
