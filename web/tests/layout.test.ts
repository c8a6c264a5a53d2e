import { describe, expect, it, test } from 'vitest';
import { Camera } from '../src/lib/camera.svelte';
import { arrange, cellAt, rectangleOf, scales, shape2, type Piece } from '../src/lib/layout';
import type { TensorInfo } from '../src/lib/types';
import { MODEL, tensor } from './model';

const SCREENS = [
  [748, 468],
  [1600, 900],
  [320, 240],
] as const;
const DEEP = [
  ...MODEL.filter(({ name }) => !name.startsWith('blocks')),
  ...Array.from({ length: 24 }, (_, i) =>
    MODEL.filter(({ name }) => name.startsWith('blocks')).map((t) => ({
      ...t,
      name: t.name.replace('.0.', `.${i}.`),
      block: i,
    })),
  ).flat(),
];
/** As another library names the parts of GPT-2: none of them has its own place. */
const named = (part: string, shape: number[], kind: TensorInfo['kind'], block: number | null): TensorInfo => ({
  ...tensor(`h.${part}.${kind}`, shape, kind),
  name: `${block ?? ''}.${part}.${kind}`,
  part,
  block,
});
const FOREIGN = [
  named('wte', [61, 24], 'embedding', null),
  named('wpe', [32, 24], 'embedding', null),
  ...[0, 1].flatMap((i) => [
    named('ln_1', [24], 'gain', i),
    named('ln_1', [24], 'bias', i),
    named('attn.c_attn', [72, 24], 'weight', i),
    named('attn.c_attn', [72], 'bias', i),
    named('attn.c_proj', [24, 24], 'weight', i),
    named('attn.c_proj', [24], 'bias', i),
    named('ln_2', [24], 'gain', i),
    named('mlp.c_fc', [96, 24], 'weight', i),
    named('mlp.c_proj', [24, 96], 'weight', i),
    named('mlp.scale', [7], 'gain', i),
  ]),
  named('ln_f', [24], 'gain', null),
  named('lm_head', [61, 24], 'weight', null),
];
/** Norms after attention and MLP, and gains over all heads. */
const OLMO = [
  tensor('embedding.weight', [61, 24], 'embedding'),
  ...['query', 'key', 'value', 'output'].map((part) => tensor(`blocks.0.attention.${part}.weight`, [24, 24])),
  ...['query', 'key'].map((part) => tensor(`blocks.0.attention.${part}_norm.gain`, [24], 'gain')),
  tensor('blocks.0.post_attention_norm.gain', [24], 'gain'),
  ...['expand', 'gate'].map((part) => tensor(`blocks.0.mlp.${part}.weight`, [64, 24])),
  tensor('blocks.0.mlp.shrink.weight', [24, 64]),
  tensor('blocks.0.post_mlp_norm.gain', [24], 'gain'),
  tensor('final_norm.gain', [24], 'gain'),
  tensor('head.weight', [61, 24]),
];
const overlap = (a: Piece, b: Piece): boolean =>
  a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;

describe.each([
  ['one block', MODEL],
  ['24 blocks', DEEP],
  ['norms that stand after', OLMO],
  ['parts that are not known', FOREIGN],
])('the map of a model of %s', (_, model) => {
  it.each(SCREENS)('fits into %i x %i pixels, and no two tensors overlap', (width, height) => {
    const layout = arrange(model, true, width, height);
    expect(layout.width).toBeLessThanOrEqual(width);
    expect(layout.height).toBeLessThanOrEqual(height);
    layout.pieces.forEach((a, i) => {
      for (const b of layout.pieces.slice(i + 1))
        expect(overlap(a, b), `${a.tensor.name}, ${b.tensor.name}`).toBe(false);
    });
  });
  it('has every row of every tensor once', () => {
    const layout = arrange(model, true, 748, 468);
    for (const one of model) {
      const pieces = layout.pieces.filter((piece) => piece.tensor.name === one.name);
      const rows = pieces.flatMap((piece) => Array.from({ length: piece.rows }, (_, i) => piece.rowFrom + i));
      expect(rows).toEqual(Array.from({ length: shape2(one)[0] }, (_, i) => i));
    }
  });
});

test('a cell is found where it is drawn, also in a turned tensor and in a strip', () => {
  const layout = arrange(MODEL, true, 1600, 900);
  for (const one of MODEL) {
    const [rows, columns] = shape2(one);
    for (const [row, column] of [
      [0, 0],
      [rows - 1, columns - 1],
      [rows >> 1, columns >> 2],
    ] as const) {
      const at = rectangleOf(layout, one.name, row, column)!;
      expect(cellAt(layout, at.x + at.width / 2, at.y + at.height / 2)).toMatchObject({ row, column });
    }
  }
  expect(layout.pieces.find(({ tensor }) => tensor.name.includes('shrink.weight'))!.turned).toBe(true);
  expect(cellAt(layout, -1, -1)).toBeNull();
  expect(rectangleOf(layout, 'embedding.weight', 61, 0)).toBeNull();
});

test('a long table is folded into columns of whole squares of picks', () => {
  const table = tensor('embedding.weight', [5000, 8], 'embedding');
  const { pieces, scale } = arrange([table, ...MODEL.slice(1)], true, 748, 468);
  const columns = pieces.filter((piece) => piece.tensor === table);
  expect(columns.length).toBeGreaterThan(1);
  for (const piece of columns) expect(piece.rowFrom % Math.max(4, 1 / scale)).toBe(0);
});

test('scales fall, and each is a whole number of pixels, or of cells that a pixel stands for in a square', () => {
  expect(scales()).toEqual([...scales()].sort((a, b) => b - a));
  for (const scale of scales()) expect([scale, 1 / scale, 0.75 / scale].some(Number.isInteger)).toBe(true);
});

describe('the camera', () => {
  const size = { width: 748, height: 468 };
  const layout = arrange(MODEL, true, size.width - 3, size.height - 1);
  const camera = new Camera();
  camera.stand(layout, size);
  it('begins with all of the map, on whole pixels', () => {
    expect(camera.view).toEqual(camera.home);
    expect(camera.place(0, 0).x % 1).toBe(0);
    expect(camera.place(layout.width, 0).x).toBeLessThanOrEqual(size.width);
  });
  it('brings a cell into the middle, and no cell is larger than most of the screen', async () => {
    await camera.to({ name: 'blocks.0.attention.query.weight', row: 3, column: 7 }, 46);
    const at = rectangleOf(layout, 'blocks.0.attention.query.weight', 3, 7)!;
    expect(camera.place(at.x + at.width / 2, at.y + at.height / 2)).toEqual({ x: 374, y: 234 });
    expect(at.width * camera.view.zoom).toBeCloseTo(46);
    await camera.to({ name: 'blocks.0.attention.query.weight', row: 3, column: 7 }, Infinity);
    expect(at.width * camera.view.zoom).toBeCloseTo(0.8 * size.height);
  });
  it('always sees some of the map', () => {
    camera.look({ x: -900, y: 1e6, zoom: 3 });
    expect(camera.view).toEqual({ x: 0, y: layout.height, zoom: 3 });
    camera.look({ x: 5, y: 5, zoom: 0.4 });
    expect(camera.view).toEqual(camera.home);
  });
  it('places a point where it takes it from', () => {
    camera.look({ x: 100, y: 90, zoom: 7 });
    const { x, y } = camera.place(12, 34);
    expect(camera.unplace(x, y).x).toBeCloseTo(12);
    expect(camera.unplace(x, y).y).toBeCloseTo(34);
  });
});
