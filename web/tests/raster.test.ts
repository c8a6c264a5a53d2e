import { describe, expect, it } from 'vitest';
import { palette, SHADES } from '../src/lib/colour';
import { ODD, raster, rootMeanSquares, shadesOf, type Frame, type Layer, type Patch } from '../src/lib/raster';

const scale = { full: 100, bend: 0 };
const numbers = Float32Array.from({ length: 6 * 4 }, (_, i) => i); // 6 rows of 4
const layer = (more: Partial<Layer> = {}): Layer => ({
  plane: 1,
  start: 0,
  rows: 6,
  columns: 4,
  level: 0,
  row: 0,
  column: 0,
  coarse: 0,
  ...more,
});
const patch = (more: Partial<Patch> = {}): Patch => ({
  x: 0,
  y: 0,
  cellWidth: 1,
  cellHeight: 1,
  across: 4,
  down: 6,
  rowFrom: 0,
  turned: false,
  scale,
  layers: [layer()],
  ...more,
});

/** The numbers that a frame's pixels stand for; null: nothing there. */
function seen(width: number, height: number, ...patches: Patch[]): (number | null)[] {
  const frame: Frame = {
    width,
    height,
    palette: Uint32Array.from({ length: 256 }, (_, i) => i + 1),
    blank: 999,
    patches,
  };
  const out = new Uint32Array(width * height);
  raster(frame, (l) => Uint8Array.from(numbers.subarray(l.start, l.start + l.rows * l.columns)), out);
  return [...out].map((pixel) => (pixel ? pixel - 1 : null));
}

describe('a pixel', () => {
  it('is one cell, row by row', () => expect(seen(4, 6, patch())).toEqual([...numbers]));
  it('of a turned tensor is the cell of its column and row', () =>
    expect(seen(6, 1, patch({ turned: true, across: 6, down: 4 }))).toEqual([0, 4, 8, 12, 16, 20]));
  it('begins at the first row of its piece', () =>
    expect(seen(4, 1, patch({ rowFrom: 3, down: 3 }))).toEqual([12, 13, 14, 15]));
  it('of many that show one cell is that cell', () =>
    expect(seen(4, 2, patch({ cellWidth: 2, cellHeight: 2 }))).toEqual([0, 0, 1, 1, 0, 0, 1, 1]));
  it('outside is left alone', () => expect(seen(3, 1, patch({ x: 2, across: 1 }))).toEqual([null, null, 0]));
  it('of a square of four cells is the one that was picked of it', () =>
    // 3 x 2 squares of a tensor of 6 x 4 cells, at half a pixel a cell
    expect(
      seen(
        2,
        3,
        patch({ cellWidth: 0.5, cellHeight: 0.5, layers: [layer({ rows: 3, columns: 2, level: 1, coarse: 1 })] }),
      ),
    ).toEqual([0, 1, 2, 3, 4, 5]));
  it('takes the finer layer where there is one', () =>
    expect(seen(4, 1, patch({ layers: [layer(), layer({ start: 20, rows: 1, columns: 2, column: 1 })] }))).toEqual([
      0, 20, 21, 3,
    ]));
  it('of an unknown cell is blank', () => expect(seen(2, 1, patch({ layers: [] }))).toEqual([998, 998]));
});

it('a mean is the root of the mean square of the cells of its square, also at the edge', () => {
  const grid = { start: 0, rows: 3, columns: 3, level: 0, row: 0, column: 0 };
  const means = rootMeanSquares(Float32Array.from([1, -1, 3, 1, 1, -5, 2, 4, 6]), grid, 1);
  expect([...means].map((x) => Number(x.toFixed(5)))).toEqual([
    1,
    Number(Math.sqrt(17).toFixed(5)),
    Number(Math.sqrt(10).toFixed(5)),
    6,
  ]);
});

it('what is not finite has a shade of its own', () => {
  const odd = Float32Array.from([NaN, Infinity, -Infinity, 0, 1e30]);
  const grid = { start: 0, rows: 1, columns: 5, level: 0, row: 0, column: 0 };
  expect([...shadesOf(odd, grid, 0, scale)]).toEqual([ODD, ODD, ODD, SHADES, 2 * SHADES]);
  expect([...shadesOf(odd, grid, 0, { full: 1, bend: 0.1 })]).toEqual([ODD, ODD, ODD, SHADES, 2 * SHADES]);
  expect(palette(false)).toHaveLength(ODD + 1);
});
