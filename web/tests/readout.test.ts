import { expect, test } from 'vitest';
import { textOf, type FigureProps, type Piece } from '../src/lib/figure';
import { nearest, readAt } from '../src/lib/readout';
import type { ComparedRun } from '../src/lib/types';

// Ten steps of 100 tokens: points of one step, of three, and of two; evaluations at steps 0, 4 and 10.
const run = {
  name: 'small',
  steps_made: 10,
  tokens: 1000,
  seconds: 5,
  loss: {
    steps: [0, 1, 4, 5, 8],
    tokens: [0, 100, 400, 500, 800],
    seconds: [0, 0.5, 2, 2.5, 4],
    low: [4.171, 2.113, 2.5, 1.9, 1.75],
    high: [4.171, 2.304, 2.5, 1.95, 1.8],
  },
  validation: {
    steps: [0, 4, 10],
    tokens: [0, 400, 1000],
    seconds: [0, 2, null],
    loss: [4.17, 2.1174, 1.81],
  },
} as unknown as ComparedRun;
const figures = (pieces: Piece[]): FigureProps[] =>
  pieces.filter((piece): piece is FigureProps => typeof piece !== 'string' && 'what' in piece);

test('at step 0 stands what was recorded there, not a mean with the next', () => {
  const { validation, training } = readAt(run, 'steps', 0.3);
  expect(textOf(training!.place)).toBe('step 0');
  expect(figures(training!.loss)).toMatchObject([{ what: 'loss of the batch', value: 4.171, step: 0, run: 'small' }]);
  expect(textOf(validation!.place)).toBe('step 0');
  expect(figures(validation!.loss)).toMatchObject([{ what: 'validation loss, sampled', value: 4.17, step: 0 }]);
});

test('label and value belong to the same recorded place', () => {
  const { validation, training } = readAt(run, 'steps', 3.6);
  expect([textOf(training!.place), textOf(training!.loss)]).toEqual(['step 4', '2.500']);
  expect([textOf(validation!.place), textOf(validation!.loss)]).toEqual(['step 4', '2.117']);
  expect(textOf(readAt(run, 'steps', 8.9).validation!.place)).toBe('step 10');
});

test('a point of several steps is read as their lowest and highest', () => {
  const { training } = readAt(run, 'steps', 1.4);
  expect([textOf(training!.place), textOf(training!.loss)]).toEqual(['step 1', '2.113 to 2.304']);
  expect(figures(training!.loss).map(({ of }) => of)).toEqual([
    'the lowest of steps 1 to 3',
    'the highest of steps 1 to 3',
  ]);
  expect(figures(readAt(run, 'steps', 10).training!.loss)[0]!.of).toBe('the lowest of steps 8 to 9');
});

test('other axes have places of their own', () => {
  expect(textOf(readAt(run, 'tokens', 430).training!.place)).toBe('400 tokens');
  expect(textOf(readAt(run, 'seconds', 2.2).training!.place)).toBe('2.00 s');
  expect(textOf(readAt(run, 'seconds', 4.9).validation!.place)).toBe('2.00 s'); // when the last was measured is not known
});

test('a run that has ended has no value', () => {
  expect(readAt(run, 'steps', 10.1)).toEqual({ validation: null, training: null });
  expect(readAt(run, 'seconds', 5.1)).toEqual({ validation: null, training: null });
});

test('the nearest of no places is none', () => {
  expect(nearest([], 3)).toBe(-1);
  expect(nearest([null, null], 3)).toBe(-1);
  expect(nearest([null, 7], 3)).toBe(1);
});
