/** What the comparison of runs reads at a place of its plot: recorded values only, each with the place it belongs to. */

import { say, type FigureProps, type Piece } from './figure';
import type { ComparedRun } from './types';
import type { Axis } from './view.svelte';

/** A loss and the place where it was recorded, in words. */
export interface Reading {
  loss: Piece[];
  place: Piece[];
}

/** The place nearest to x; -1 if there is none. */
export function nearest(places: readonly (number | null)[], x: number): number {
  let best = -1;
  places.forEach((place, i) => {
    if (place !== null && (best < 0 || Math.abs(place - x) < Math.abs(places[best]! - x))) best = i;
  });
  return best;
}

/** Of a run: the validation and the training loss recorded nearest to x; none beyond its end. */
export function readAt(
  run: ComparedRun,
  axis: Axis,
  x: number,
): { validation: Reading | null; training: Reading | null } {
  if (x > { steps: run.steps_made, tokens: run.tokens, seconds: run.seconds }[axis])
    return { validation: null, training: null };
  const [v, t] = [nearest(run.validation[axis], x), nearest(run.loss[axis], x)];
  return {
    validation: v < 0 ? null : { loss: [validationLoss(run, v)], place: placeOf(run, run.validation, axis, v) },
    training: t < 0 ? null : { loss: trainingLoss(run, t), place: placeOf(run, run.loss, axis, t) },
  };
}

export const validationLoss = (run: ComparedRun, i: number): FigureProps => ({
  what: 'validation loss, sampled',
  value: run.validation.loss[i],
  step: run.validation.steps[i],
  run: run.name,
});

/** One step's loss; where a point of the curve stands for several steps, the lowest and the highest of theirs. */
function trainingLoss({ name, steps_made, loss }: ComparedRun, i: number): Piece[] {
  const [first, last] = [loss.steps[i]!, (loss.steps[i + 1] ?? steps_made) - 1];
  const [low, high] = [loss.low[i], loss.high[i]];
  if (first >= last || low === high) return [{ what: 'loss of the batch', value: low, step: first, run: name }];
  const end = (which: string, value: number | null | undefined): Piece => ({
    what: 'training loss',
    value,
    of: `${which} of steps ${first} to ${last}`,
    run: name,
  });
  return say`${end('the lowest', low)} to ${end('the highest', high)}`;
}

function placeOf(run: ComparedRun, curve: ComparedRun['loss' | 'validation'], axis: Axis, i: number): Piece[] {
  const [value, step] = [curve[axis][i], curve.steps[i]!];
  if (axis === 'steps') return say`step ${{ what: 'step', value }}`;
  const of = `steps before step ${step}`;
  return axis === 'tokens'
    ? say`${{ what: 'tokens', value, of, run: run.name }} tokens`
    : say`${{ what: 'duration', value, of, run: run.name, digits: 3 }} s`;
}
