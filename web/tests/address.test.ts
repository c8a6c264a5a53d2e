import { expect, test } from 'vitest';
import { readAddress, writeAddress } from '../src/lib/address';
import { MODEL, run, tensor } from './model';

const standing = { step: 150, following: false, writing: { prompt: '', sampling: run().config.sampling as never } };
const read = (text: string, info = run()) => readAddress(new URLSearchParams(text), info);

test('what is written is read again', () => {
  const text =
    'run=small&step=42&mode=update&cell=blocks.0.mlp.expand.weight%5B95%2C23%5D&view=step&phase=3&row=1&token=5' +
    '&with=a%2Cb&axis=tokens&side=number&tour=short.2&prompt=Once+%26+%C3%A9&temperature=0.5&top_k=40';
  const place = read(text);
  const { prompt, sampling, step } = place;
  const at = {
    step: step as number,
    following: false,
    writing: { prompt: prompt!, sampling: { ...(run().config.sampling as object), ...sampling } as never },
  };
  expect(Object.fromEntries(new URLSearchParams(writeAddress(run(), place, at)))).toEqual(
    Object.fromEntries(new URLSearchParams(text)),
  );
  expect(prompt).toBe('Once & é');
});

test('a page as it begins has a short address', () => {
  const place = read('');
  expect(writeAddress(run(), { ...place, cell: { ...place.cell, name: 'gone' } }, standing)).toBe('run=small&step=150');
  expect(
    writeAddress(run(), { ...place, cell: { ...place.cell, name: 'gone' } }, { ...standing, following: true }),
  ).toBe('run=small&step=live');
});

test('what makes no sense is left as a page begins', () => {
  const place = read('mode=colour&view=../x&phase=99&row=x&step=NaN&side=&axis=miles&top_p=low&with=small,,a,a');
  expect(place).toMatchObject({ mode: 'value', name: 'map', phase: 3, row: 0, token: -1, step: null, side: 'writes' });
  expect(place).toMatchObject({ axis: 'steps', sampling: {}, others: ['a'], prompt: null });
  expect(read(`with=${'abcdefghij'.split('').join(',')}`).others).toHaveLength(7);
});

test('a cell outside its tensor is the nearest one inside, and an unknown tensor is the first query', () => {
  const cell = (text: string) => read(`cell=${encodeURIComponent(text)}`).cell;
  expect(cell('embedding.weight[9999,3]')).toEqual({ name: 'embedding.weight', row: 60, column: 3 });
  expect(cell('blocks.0.mlp.expand.bias[500]')).toEqual({ name: 'blocks.0.mlp.expand.bias', row: 0, column: 95 });
  for (const text of ['', 'nowhere[1,2]', 'embedding.weight[-1,2]', 'embedding.weight[1,2]x'])
    expect(cell(text)).toEqual({ name: 'blocks.0.attention.query.weight', row: 3, column: 7 });
});

test('the optimizer’s memory can be shown only where the run has it', () => {
  const adam = run({ tensors: [...MODEL, { ...tensor('head.weight', [61, 24]), memory: ['first_moment'] }] });
  expect(read('mode=memory:first_moment', adam).mode).toBe('memory:first_moment');
  expect(read('mode=memory:first_moment').mode).toBe('value');
});
