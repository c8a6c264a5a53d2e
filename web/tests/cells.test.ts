import { beforeEach, expect, test, vi } from 'vitest';
import * as api from '../src/lib/api';
import { Cells, LENS_COLUMNS, LENS_ROWS, lensWindow } from '../src/lib/cells.svelte';
import { Run } from '../src/lib/run.svelte';
import { View } from '../src/lib/view.svelte';
import { squares } from '../src/lib/whole';
import { MODEL, run, tensor } from './model';

vi.mock('../src/lib/api', async (original) => ({
  ...(await original<typeof api>()),
  getTiles: vi.fn(),
  getTile: vi.fn(),
}));

const answered = (step: number, size: number, exact = true) => ({
  step,
  exact,
  numbers: new Float32Array(size).fill(step),
});

function page(info = run(), step = 150, following = false) {
  const view = new View();
  view.cell = { name: 'blocks.0.attention.query.weight', row: 3, column: 7 };
  const held = new Run(view);
  held.show(info);
  const at = { step, following, opened: null as never, leaving: new AbortController() };
  const reopen = vi.fn();
  return { cells: new Cells(held, view, at, reopen), view, at, reopen };
}

beforeEach(() => {
  vi.mocked(api.getTiles).mockReset();
  vi.mocked(api.getTile).mockReset();
  vi.mocked(api.getTiles).mockImplementation((_, { step }, size) => Promise.resolve(answered(step, size)));
  vi.mocked(api.getTile).mockImplementation((_, q) => Promise.resolve(answered(q.step, q.rows * q.columns)));
});

test('a small model comes whole, each tensor where the one before it ends', async () => {
  const { cells } = page();
  await cells.load();
  const [whole] = cells.known('value');
  expect([whole!.level, whole!.step, whole!.exact]).toEqual([0, 150, true]);
  let start = 0;
  for (const one of MODEL) {
    expect(whole!.sheets.get(one.name)!.start).toBe(start);
    start += one.parameters;
  }
  expect(whole!.sheets.get('embedding.weight')!.plane.numbers).toHaveLength(start);
});

test('a large model first comes as coarse as the limit of the first answer asks for', async () => {
  const large = [tensor('embedding.weight', [4096, 512], 'embedding'), tensor('head.bias', [4096], 'bias')];
  const { cells } = page(run({ tensors: large }));
  expect(cells.level).toBe(2);
  expect(squares(large, 2)).toBeLessThanOrEqual(262_144);
  expect(squares(large, 1)).toBeGreaterThan(262_144);
  await cells.load();
  expect(vi.mocked(api.getTiles).mock.calls[0]![1]).toMatchObject({ every: 4, step: 150, v: 'abc' });
});

test('an answer that comes after the page has left its step is dropped', async () => {
  const { cells, at } = page();
  let come = (): void => undefined;
  vi.mocked(api.getTiles).mockImplementationOnce(
    (_, { step }, size) => new Promise((resolve) => (come = () => resolve(answered(step, size)))),
  );
  const loading = cells.load();
  await Promise.resolve();
  at.leaving.abort();
  come();
  await loading;
  expect(cells.known('value')).toEqual([]);
  expect(cells.refused).toBe('');
});

test('where no exact numbers lie on disk, none are asked for: between keyframes, or while following', async () => {
  await page(run(), 151).cells.load();
  await page(run(), 150, true).cells.load();
  expect(api.getTiles).not.toHaveBeenCalled();
  const birth = page(run(), 151);
  birth.view.mode = 'birth';
  await birth.cells.load();
  expect(vi.mocked(api.getTiles).mock.calls[0]![1]).toMatchObject({ mode: 'birth', step: 0 });
});

test('a refusal is shown, and another run of this name is opened anew', async () => {
  const { cells, reopen } = page();
  vi.mocked(api.getTiles).mockRejectedValueOnce(new api.ServerError(502, 'numbers of step 9'));
  await cells.load();
  expect([cells.refused, reopen.mock.calls.length]).toEqual(['numbers of step 9', 0]);
  vi.mocked(api.getTiles).mockRejectedValueOnce(new api.ServerError(409, 'The run has changed.'));
  await cells.load();
  expect(reopen).toHaveBeenCalledOnce();
});

test('zoomed in, the tiles of what is seen are asked for once each, and found by their place', async () => {
  const large = [tensor('embedding.weight', [4096, 512], 'embedding')];
  const { cells } = page(run({ tensors: large }));
  await cells.load();
  const window = { name: 'embedding.weight', row: 250, column: 10, rows: 20, columns: 300 };
  expect(cells.tilesFor(0, window)).toBe(4); // two down, two across
  cells.want(0, [window]);
  await vi.waitFor(() => expect(cells.waiting).toBe(false));
  const asked = vi.mocked(api.getTile).mock.calls.map(([, query]) => [query.row, query.column, query.rows]);
  expect(asked.filter(([, , rows]) => rows === 256).sort()).toEqual([
    [0, 0, 256],
    [0, 256, 256],
    [256, 0, 256],
    [256, 256, 256],
  ]);
  expect([...cells.tilesOf('embedding.weight', 'value', 0, window)]).toHaveLength(4);
  expect([...cells.tilesOf('embedding.weight', 'learned', 0, window)]).toHaveLength(0);
});

test('the lens stays inside its tensor, with the cell in its middle where it can', () => {
  const table = tensor('embedding.weight', [61, 24]);
  expect(lensWindow(table, { row: 30, column: 12 })).toEqual({ row: 26, column: 9, rows: 9, columns: 7 });
  expect(lensWindow(table, { row: 0, column: 23 })).toEqual({
    row: 0,
    column: 17,
    rows: LENS_ROWS,
    columns: LENS_COLUMNS,
  });
  expect(lensWindow(tensor('b', [3], 'bias'), { row: 0, column: 2 })).toEqual({
    row: 0,
    column: 0,
    rows: 1,
    columns: 3,
  });
});
