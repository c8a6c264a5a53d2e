/**
 * The values at which the colours of the map are full. Of weights, per tensor; of gradients, updates and the optimizer's memory, one for the
 * model, bent by asinh, since these span many sizes.
 *
 * A scale follows from what was recorded of the whole run, not from what the page happens to have seen, and is rounded
 * up to 1, 2, 5: so it is the same at every step. While a run trains it holds, too, until the run outgrows it; then it
 * grows, never shrinks, and says since when.
 */

import { quantile, roundUp125, type Scale } from './colour';
import { SCALES } from './constants';
import type { CellMode, TensorInfo } from './types';

/** How large numbers were: by tensor, the highest in each part of the run. */
export type Recorded = Map<string, (number | null)[]>;

export interface Statistics {
  weight_norm: Recorded;
  weight_max: Recorded;
  gradient_norm: Recorded;
  update_norm: Recorded;
}

/** A scale that had to grow under the reader's eyes. */
export interface Grown {
  was: number;
  step: number;
}

type Held = Scale & { grown: Grown | null };

const NONE: Scale = { full: 0, bend: 0 };
// The full colour of a weight, in root mean squares; of a gradient or update, in those that all but 5% of the parameters
// have smaller ones than; and where asinh begins to bend, in those of the median parameter.
const { weight_rms, gradient_rms, gradient_share, asinh_bend } = SCALES;

export class Scales {
  /** grows with every change, so that what was drawn by a scale is drawn again */
  version = $state(0);
  private readonly weights = new Map<string, Held>();
  private readonly learned = new Map<string, Held>();
  private gradients: Held | null = null;
  private updates: Held | null = null;
  private readonly measured = new Set<string>();
  private readonly memories = new Map<string, Held>();

  /** At first, what is known of the numbers before they are seen: how they are drawn at birth. */
  constructor(private readonly tensors: TensorInfo[] = []) {
    for (const { name, birth, std } of tensors)
      this.weights.set(name, held(birth === 'ones' ? 1 : roundUp125(weight_rms * (std || 0.02))));
  }

  /** Take in what was recorded, up to a step; `fresh`: for the first time. A single record is only the beginning. */
  take(statistics: Statistics, step: number, fresh: boolean): void {
    const sizes = this.sizes(statistics.weight_norm, usual);
    for (const { name } of this.tensors) {
      const [size, most] = [sizes.get(name), usual(statistics.weight_max.get(name))];
      if (size === undefined || most === undefined || finite(statistics.weight_norm.get(name)).length < 2) continue;
      raise(this.weights, name, roundUp125(Math.min(most, weight_rms * size)), step, fresh || !this.measured.has(name));
      this.measured.add(name);
    }
    this.gradients = wider(this.gradients, this.bent(statistics.gradient_norm), step, fresh);
    this.updates = wider(this.updates, this.bent(statistics.update_norm), step, fresh);
    this.version++;
  }

  /** Take in cells of a tensor at the run's last keyframe: how far they have come, or, where nothing was recorded, their values. */
  see(name: string, mode: CellMode, cells: Float32Array, step: number): void {
    const size = Math.sqrt(cells.reduce((sum, x) => sum + (Number.isFinite(x) ? x * x : 0), 0) / cells.length);
    const full = roundUp125(Math.min(quantile(cells, 1), weight_rms * size));
    if (mode === 'learned') raise(this.learned, name, full, step, !this.learned.has(name));
    else {
      raise(this.weights, name, full, step, !this.measured.has(name));
      this.measured.add(name);
    }
    this.version++;
  }

  /** The same of a gradient, an update, or a memory that no other scale covers. */
  seeAll(mode: CellMode, cells: Float32Array, step: number): void {
    const scale = { full: roundUp125(quantile(cells, 0.9995)), bend: roundUp125(quantile(cells, 0.5)) };
    if (mode === 'gradient') this.gradients = wider(this.gradients, scale, step, !this.gradients);
    else if (mode === 'update') this.updates = wider(this.updates, scale, step, !this.updates);
    else if (mode.startsWith('memory:'))
      this.memories.set(mode, wider(this.memories.get(mode) ?? null, scale, step, !this.memories.has(mode))!);
    this.version++;
  }

  /** Whether the colours of a mode can be told already. */
  knows(mode: CellMode): boolean {
    if (mode === 'learned') return this.learned.size > 0;
    return bends(mode) ? this.of('', mode).full > 0 : this.measured.size > 0;
  }

  of(name: string, mode: CellMode): Scale {
    return this.held(name, mode) ?? NONE;
  }

  /** Since when, and from what, a scale has grown. */
  grown(name: string, mode: CellMode): Grown | null {
    return this.held(name, mode)?.grown ?? null;
  }

  private held(name: string, mode: CellMode): Held | null {
    void this.version;
    if (mode === 'gradient') return this.gradients;
    if (mode === 'update') return this.updates;
    if (mode.startsWith('memory:')) return this.memory(mode);
    return (mode === 'learned' && this.learned.get(name)) || this.weights.get(name) || null;
  }

  /** Means of gradients have the scale of gradients, and means of their squares its square. */
  private memory(mode: CellMode): Held | null {
    const { gradients } = this;
    if (gradients && mode === 'memory:first_moment') return gradients;
    if (gradients && mode === 'memory:second_moment')
      return { ...gradients, full: gradients.full ** 2, bend: gradients.bend ** 2, grown: null };
    return this.memories.get(mode) ?? null;
  }

  /** From the norm of each tensor to the size of one of its numbers. */
  private sizes(
    norms: Recorded,
    of: (highs: (number | null)[] | undefined) => number | undefined,
  ): Map<string, number> {
    const found = new Map<string, number>();
    for (const { name, parameters } of this.tensors) {
      const norm = of(norms.get(name));
      if (norm !== undefined) found.set(name, norm / Math.sqrt(parameters));
    }
    return found;
  }

  /** One scale for the model: by its parameters, of which a few biases with large gradients are the fewest. */
  private bent(norms: Recorded): Scale {
    const sizes = this.sizes(norms, middle);
    const sorted = this.tensors
      .filter(({ name }) => sizes.has(name))
      .sort((a, b) => sizes.get(a.name)! - sizes.get(b.name)!);
    const all = sorted.reduce((sum, { parameters }) => sum + parameters, 0);
    const at = (share: number): number => {
      let left = share * all;
      const found = sorted.find(({ parameters }) => (left -= parameters) <= 0);
      return found ? sizes.get(found.name)! : 0;
    };
    return { full: roundUp125(gradient_rms * at(gradient_share)), bend: roundUp125(asinh_bend * at(0.5)) };
  }
}

export const bends = (mode: CellMode): boolean =>
  mode === 'gradient' || mode === 'update' || mode.startsWith('memory:');

/** The second largest: one part of a run that went astray does not make all the others pale. */
function usual(highs: (number | null)[] | undefined): number | undefined {
  const sorted = finite(highs).sort((a, b) => b - a);
  return sorted[Math.min(1, sorted.length - 1)];
}

/** The one in the middle: a run begins with gradients that are much larger than all later ones. */
function middle(highs: (number | null)[] | undefined): number | undefined {
  const sorted = finite(highs).sort((a, b) => a - b);
  return sorted[sorted.length >> 1];
}

const finite = (highs: (number | null)[] = []): number[] =>
  highs.filter((x): x is number => x !== null && Number.isFinite(x));

const held = (full: number): Held => ({ full, bend: 0, grown: null });

function raise(scales: Map<string, Held>, name: string, full: number, step: number, fresh: boolean): void {
  const now = scales.get(name);
  if (fresh || !now) {
    if (full > 0) scales.set(name, held(full));
  } else if (full > now.full) scales.set(name, { full, bend: 0, grown: { was: now.full, step } });
}

function wider(now: Held | null, scale: Scale, step: number, fresh: boolean): Held | null {
  if (!(scale.full > 0)) return now;
  if (fresh || !now) return { ...scale, bend: scale.bend || scale.full / 100, grown: null };
  return scale.full > now.full ? { full: scale.full, bend: now.bend, grown: { was: now.full, step } } : now;
}
