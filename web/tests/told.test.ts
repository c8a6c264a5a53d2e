import { expect, test } from 'vitest';
import { textOf } from '../src/lib/figure';
import { told } from '../src/lib/told';

const numbers = (sentence: string): [unknown, string][] =>
  told(sentence, 'loss').flatMap((piece): [unknown, string][] =>
    typeof piece !== 'string' && 'what' in piece ? [[piece.value, piece.of!]] : [],
  );

test.each([
  'median 1.2e-03, from -0.5 (blocks.0.mlp.expand.weight) to 12%; 1e-3 is usual',
  'broke off at step 1,200: the loss is nan',
  'no digits',
  '7',
  '',
])('a sentence keeps every character: %s', (sentence) => {
  expect(textOf(told(sentence, 'loss'))).toBe(sentence);
});

test('numbers have their values, in the order of the sentence', () => {
  expect(numbers('median 1.2e-03, from -0.5 to 12% (of 1,200); ×50.')).toEqual([
    [0.0012, 'loss, number 1'],
    [-0.5, 'loss, number 2'],
    [0.12, 'loss, number 3'],
    [1200, 'loss, number 4'],
    [50, 'loss, number 5'],
  ]);
});

test('a number is written as in the sentence', () => {
  expect(told('up to 2.50.', 'loss')).toEqual([
    'up to ',
    { what: 'told', value: 2.5, text: '2.50', of: 'loss, number 1', from: undefined },
    '.',
  ]);
});

test('names with digits are text, not numbers', () => {
  expect(told('look at (blocks.0.mlp), small-2@120 and float32.', 'loss')).toEqual([
    'look at (',
    { text: 'blocks.0.mlp' },
    '), ',
    { text: 'small-2@120' },
    ' and ',
    { text: 'float32' },
    '.',
  ]);
  expect(numbers('optimizer.learning_rate = 30: try 3.')).toEqual([
    [30, 'loss, number 1'],
    [3, 'loss, number 2'],
  ]);
});
