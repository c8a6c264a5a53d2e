/** Describes one frame of the map for the painter: where each tensor is on the screen, and its numbers. */

import { placed, type Size, type View } from './camera.svelte';
import { palette } from './colour';
import { levels, type Drawn, type Field } from './field';
import { cellHeight, cellWidth, type Layout, type Piece } from './layout';
import type { Plane } from './painter';
import type { Frame, Patch } from './raster';
import type { Scales } from './scales.svelte';
import type { CellMode } from './types';
import type { Window } from './cells.svelte';

export interface Scene {
  view: View;
  size: Size;
  ratio: number; // device pixels in a pixel
  layout: Layout;
  mode: CellMode;
  /** whether any cell is shown */
  known: boolean;
  /** one pixel shows one of so many cells, at the coarsest place; each is real */
  oneIn: number;
  /** a mean of so many numbers, of so many cells */
  mean: [of: number, cells: number] | null;
  /** the level whose cells are wanted, and where */
  level: number;
  windows: Window[];
}

/** The picture from here. blank: the colour of what is not known yet. */
export function scene(
  layout: Layout,
  view: View,
  size: Size,
  ratio: number,
  mode: CellMode,
  field: Field,
  scales: Scales,
  dark: boolean,
  blank: number,
): [Frame, Plane[], Scene] {
  const perCell = layout.scale * view.zoom * ratio;
  const used = new Map<number, Plane>();
  const patches: Patch[] = [];
  const windows: Window[] = [];
  let coarsest: Drawn | null = null;
  for (const piece of layout.pieces) {
    const at = placed(view, size, piece.x, piece.y);
    if (
      at.x > size.width ||
      at.y > size.height ||
      at.x + piece.width * view.zoom < 0 ||
      at.y + piece.height * view.zoom < 0
    )
      continue;
    const window = seen(piece, at, layout.scale * view.zoom, size);
    const drawn = field.layersOf(piece.tensor, mode, perCell, window);
    for (const sheet of drawn.sheets) used.set(sheet.plane.id, sheet.plane);
    if (
      drawn.layers.length &&
      (!coarsest || drawn.side > coarsest.side || (drawn.side === coarsest.side && drawn.of > coarsest.of))
    )
      coarsest = drawn;
    windows.push(window);
    patches.push({
      x: at.x * ratio,
      y: at.y * ratio,
      cellWidth: cellWidth(piece, layout.scale) * view.zoom * ratio,
      cellHeight: cellHeight(piece, layout.scale) * view.zoom * ratio,
      across: piece.turned ? piece.rows : piece.columns,
      down: piece.turned ? piece.columns : piece.rows,
      rowFrom: piece.rowFrom,
      turned: piece.turned,
      scale: scales.of(piece.tensor.name, mode),
      layers: drawn.layers,
    });
  }
  const [width, height] = [Math.round(size.width * ratio), Math.round(size.height * ratio)];
  const side = coarsest?.side ?? 1;
  const told: Scene = {
    view,
    size,
    ratio,
    layout,
    mode,
    windows,
    known: coarsest !== null,
    level: levels(mode, perCell).made,
    oneIn: Math.max(1, Math.round(Math.max(side, 1 / perCell) ** 2)),
    mean: mode === 'rms' && coarsest ? [coarsest.of, side * side] : null,
  };
  return [{ width, height, palette: palette(dark), blank, patches }, [...used.values()], told];
}

/** The cells of a piece that are on the screen. */
function seen(piece: Piece, at: { x: number; y: number }, perCell: number, size: Size): Window {
  const [across, down] = piece.turned ? [piece.rows, piece.columns] : [piece.columns, piece.rows];
  const vector = piece.tensor.shape.length === 1;
  const cut = (from: number, cells: number, room: number, whole: boolean): [number, number] => {
    if (whole) return [0, cells];
    const first = Math.max(0, Math.floor(-from / perCell));
    return [first, Math.max(0, Math.min(cells, Math.ceil((room - from) / perCell)) - first)];
  };
  const [x, w] = cut(at.x, across, size.width, vector && piece.turned);
  const [y, h] = cut(at.y, down, size.height, vector && !piece.turned);
  const { name } = piece.tensor;
  return piece.turned
    ? { name, row: piece.rowFrom + x, column: y, rows: w, columns: h }
    : { name, row: piece.rowFrom + y, column: x, rows: h, columns: w };
}
