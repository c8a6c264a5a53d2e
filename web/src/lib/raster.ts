/** Turns numbers into pixels; pure functions, which run in a worker. */

import { pixelOf, shader, SHADES, type Scale } from './colour';
import { colours } from './constants';

/** A grid of true cells of one tensor: one of each square of 2^level x 2^level cells. */
export interface Grid {
  /** numbers of the plane before this grid's first */
  start: number;
  rows: number;
  columns: number;
  level: number;
  /** the square at which the grid begins, counted in squares */
  row: number;
  column: number;
}

export interface Layer extends Grid {
  /** which numbers: as they were sent before */
  plane: number;
  /** one pixel shows a square of 2^coarse cells: `level`, unless a mean is asked for by its name */
  coarse: number;
}

/** A rectangle of the screen that shows cells of one tensor, in device pixels. */
export interface Patch {
  x: number;
  y: number;
  /** pixels of a cell */
  cellWidth: number;
  cellHeight: number;
  /** cells */
  across: number;
  down: number;
  /** the tensor's first row that is shown here */
  rowFrom: number;
  /** the tensor's rows run across the screen */
  turned: boolean;
  scale: Scale;
  /** coarse ones first: the finer are drawn over them */
  layers: Layer[];
}

export interface Frame {
  width: number;
  height: number;
  /** of shades from -SHADES to SHADES, and one more for what is not finite */
  palette: Uint32Array;
  /** the colour of cells that are not known yet */
  blank: number;
  patches: Patch[];
}

export const ODD = 2 * SHADES + 1; // the shade of what is not finite
const HATCH = pixelOf(colours(false).hatch);

/** Each number of a grid as a place in the palette. */
export function shadesOf(numbers: Float32Array, grid: Grid, coarse: number, scale: Scale): Uint8Array {
  const shade = shader(scale);
  const cells = numbers.subarray(grid.start, grid.start + grid.rows * grid.columns);
  const shown = coarse > grid.level ? rootMeanSquares(cells, grid, coarse) : cells;
  const out = new Uint8Array(shown.length);
  for (let i = 0; i < shown.length; i++) out[i] = shade(shown[i]!) + SHADES;
  return out;
}

/** The root of the mean square of the grid's cells, in each square of 2^coarse cells. */
export function rootMeanSquares(cells: Float32Array, grid: Grid, coarse: number): Float32Array {
  const shift = coarse - grid.level;
  const columns = reduced(grid.columns, shift);
  const sums = new Float64Array(reduced(grid.rows, shift) * columns);
  const counts = new Uint32Array(sums.length);
  for (let i = 0; i < grid.rows; i++)
    for (let j = 0; j < grid.columns; j++) {
      const at = (i >> shift) * columns + (j >> shift);
      sums[at]! += cells[i * grid.columns + j]! ** 2;
      counts[at]!++;
    }
  return Float32Array.from(sums, (sum, at) => Math.sqrt(sum / counts[at]!));
}

const reduced = (squares: number, shift: number): number => Math.ceil(squares / 2 ** shift);

/** The pixels of a frame, RGBA. Returns whether any of them shows a number that is not finite. */
export function raster(
  frame: Frame,
  shades: (layer: Layer, scale: Scale) => Uint8Array | null,
  out: Uint32Array,
): boolean {
  out.fill(0);
  let odd = false;
  for (const patch of frame.patches) {
    fill(frame, patch, out);
    for (const layer of patch.layers) {
      const known = shades(layer, patch.scale);
      if (known) odd = lay(frame, patch, layer, known, out) || odd;
    }
  }
  return odd;
}

/** The pixels whose middle lies in a span. */
function span(from: number, size: number, most: number): [number, number] {
  return [Math.max(0, Math.ceil(from - 0.5)), Math.min(most, Math.ceil(from + size - 0.5))];
}

function fill(frame: Frame, patch: Patch, out: Uint32Array): void {
  const [x0, x1] = span(patch.x, patch.across * patch.cellWidth, frame.width);
  const [y0, y1] = span(patch.y, patch.down * patch.cellHeight, frame.height);
  if (x1 > x0) for (let y = y0; y < y1; y++) out.fill(frame.blank, y * frame.width + x0, y * frame.width + x1);
}

function lay(frame: Frame, patch: Patch, layer: Layer, shades: Uint8Array, out: Uint32Array): boolean {
  let odd = false;
  const shift = layer.coarse - layer.level;
  const [rows, columns] = [reduced(layer.rows, shift), reduced(layer.columns, shift)];
  const [row, column] = [layer.row >> shift, layer.column >> shift];
  const [x0, x1] = span(patch.x, patch.across * patch.cellWidth, frame.width);
  const [y0, y1] = span(patch.y, patch.down * patch.cellHeight, frame.height);
  const rowStart = patch.rowFrom;
  const [xs, ys] = patch.turned ? [rowStart, 0] : [0, rowStart];
  const [acrossFrom, across, downFrom, down] = patch.turned
    ? [row, rows, column, columns]
    : [column, columns, row, rows];
  const [alongX, alongY] = patch.turned ? [columns, 1] : [1, columns];
  const places = new Int32Array(Math.max(0, x1 - x0));
  for (let x = x0; x < x1; x++) {
    const cell = xs + Math.min(patch.across - 1, Math.floor((x + 0.5 - patch.x) / patch.cellWidth));
    const at = (cell >> layer.coarse) - acrossFrom;
    places[x - x0] = at < 0 || at >= across ? -1 : at * alongX;
  }
  const { palette, width } = frame;
  for (let y = y0; y < y1; y++) {
    const cell = ys + Math.min(patch.down - 1, Math.floor((y + 0.5 - patch.y) / patch.cellHeight));
    const at = (cell >> layer.coarse) - downFrom;
    if (at < 0 || at >= down) continue;
    const base = at * alongY;
    for (let x = x0, to = y * width + x0; x < x1; x++, to++) {
      const place = places[x - x0]!;
      if (place < 0) continue;
      const shade = shades[base + place]!;
      out[to] = palette[shade]!;
      if (shade !== ODD) continue;
      odd = true;
      if (((x + y) & 3) < 2) out[to] = HATCH;
    }
  }
  return odd;
}
