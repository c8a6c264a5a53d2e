/** What the full colour stands for: per tensor for weights, one for the model for gradients and updates. */

import { quantile, roundUp125, type Scale } from './colour';
import type { Film, Picture } from './film';
import type { CellMode } from './types';

const NONE: Scale = { full: 0, bend: 0 };

/** Scales only grow, so that a colour means the same all over the run. */
export class Scales {
  private readonly weights = new Map<string, number>();
  private readonly learned = new Map<string, number>();
  private gradients = NONE;
  private updates = NONE;

  /** Take in what a picture shows; `null`: birth. */
  grow(film: Film, values: Float32Array, picture: Picture | null): void {
    for (const tensor of film.values.tensors.values()) {
      const [from, to] = [tensor.start, tensor.start + tensor.rows * tensor.columns];
      const now = quantile(values, 0.995, from, to);
      raise(this.weights, tensor.name, now, !picture);
      if (!picture) continue;
      const moved = values.slice(from, to).map((value, i) => value - film.birth[from + i]!);
      raise(this.learned, tensor.name, quantile(moved, 0.995), false);
    }
    if (picture?.gradients) this.gradients = grown(this.gradients, picture.gradients);
    if (picture?.updates) this.updates = grown(this.updates, picture.updates);
  }

  of(name: string, mode: CellMode): Scale {
    if (mode === 'gradient') return this.gradients;
    if (mode === 'update') return this.updates;
    if (mode === 'learned') return { full: this.learned.get(name) ?? this.weights.get(name) ?? 0, bend: 0 };
    return { full: this.weights.get(name) ?? 0, bend: 0 };
  }
}

function raise(scales: Map<string, number>, name: string, size: number, fresh: boolean): void {
  const rounded = roundUp125(size);
  if (fresh || rounded > (scales.get(name) ?? 0)) scales.set(name, rounded);
}

function grown(scale: Scale, numbers: Float32Array): Scale {
  const full = roundUp125(quantile(numbers, 0.9995));
  if (full <= scale.full) return scale;
  return { full, bend: roundUp125(quantile(numbers, 0.5)) || full / 100 };
}
