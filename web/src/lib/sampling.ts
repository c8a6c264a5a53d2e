/**
 * Filters logits as the decoder does: the same order and the same treatment of ties as vitrine/generation/sampling.py.
 * Repetition penalty, temperature, top-k, top-p, min-p. Nothing here touches a parameter.
 */

import { LIMITS } from './constants';
import type { Sampling } from './types';

/** Who cut a token. */
export type Cut = '' | 'temperature' | 'top-k' | 'top-p' | 'min-p';

export interface Filtered {
  /** Of softmax alone, temperature 1 and nothing cut. */
  plain: Float64Array;
  /** What is drawn from: 0 for what was cut. */
  kept: Float64Array;
  /** With the temperature and the penalty, before anything is cut. */
  warmed: Float64Array;
  cut: Cut[];
}

export function softmax(scores: ArrayLike<number>): Float64Array {
  const out = new Float64Array(scores.length);
  let most = -Infinity;
  for (let i = 0; i < scores.length; i++) most = Math.max(most, scores[i]!);
  let sum = 0;
  for (let i = 0; i < scores.length; i++) sum += out[i] = Math.exp(scores[i]! - most);
  for (let i = 0; i < out.length; i++) out[i]! /= sum;
  return out;
}

export function filterLogits(logits: ArrayLike<number>, sampling: Sampling, seen: number[] = []): Filtered {
  const scores = Float32Array.from(logits);
  const cut: Cut[] = new Array<Cut>(scores.length).fill('');
  const plain = softmax(scores);
  if (sampling.repetition_penalty !== 1)
    for (const token of new Set(seen))
      scores[token] =
        scores[token]! < 0
          ? scores[token]! * sampling.repetition_penalty
          : scores[token]! / sampling.repetition_penalty;
  if (sampling.temperature < LIMITS.greedy_below) {
    const best = scores.indexOf(scores.reduce((most, score) => Math.max(most, score), -Infinity));
    const kept = new Float64Array(scores.length);
    kept[best] = 1;
    return { plain, kept, warmed: kept, cut: cut.map((_, i) => (i === best ? '' : 'temperature')) };
  }
  for (let i = 0; i < scores.length; i++) scores[i] = Math.fround(scores[i]! / Math.fround(sampling.temperature));
  const warmed = softmax(scores);
  const remove = (i: number, by: Cut): void => {
    if (cut[i] === '') cut[i] = by;
    scores[i] = -Infinity;
  };
  if (sampling.top_k > 0 && sampling.top_k < scores.length) {
    const weakest = Float32Array.from(scores).sort().reverse()[sampling.top_k - 1]!;
    for (let i = 0; i < scores.length; i++) if (scores[i]! < weakest) remove(i, 'top-k');
  }
  if (sampling.top_p < 1) {
    const order = Array.from(scores.keys()).sort((a, b) => scores[a]! - scores[b]! || a - b);
    const probabilities = softmax(scores);
    let below = 0;
    order.slice(0, -1).forEach((i) => {
      below += probabilities[i]!;
      if (below <= 1 - sampling.top_p) remove(i, 'top-p');
    });
  }
  if (sampling.min_p > 0) {
    const probabilities = softmax(scores);
    const least = sampling.min_p * probabilities.reduce((most, p) => Math.max(most, p), 0);
    for (let i = 0; i < scores.length; i++) if (probabilities[i]! < least) remove(i, 'min-p');
  }
  return { plain, kept: softmax(scores), warmed, cut };
}
