/** From numbers to pictures: what is known of each tensor where the page stands, and its pixels. */

import { palette, SHADES, shader } from './colour';
import type { Picture as Frame, TensorPicks } from './film';
import { shape2, type Piece } from './layout';
import { studio } from './studio.svelte';
import type { CellMode } from './types';

/** What is known of one tensor. */
export type Known =
  | { kind: 'whole'; numbers: Float32Array; step: number; exact: boolean }
  | { kind: 'picks'; picks: TensorPicks; level: number; at: (i: number) => number; step: number; exact: boolean };

export function known(name: string, mode: CellMode): Known | null {
  const { film, picture } = studio;
  const { whole } = studio.cells;
  const numbers = whole?.step === studio.step && whole.mode === mode ? whole.tensors.get(name) : undefined;
  if (numbers) return { kind: 'whole', numbers, step: whole!.step, exact: whole!.exact };
  if (!film) return null;
  if (mode === 'birth') {
    const picks = film.values.tensors.get(name)!;
    return { kind: 'picks', picks, level: film.values.level, at: (i) => film.birth[picks.start + i]!, step: 0, exact: true };
  }
  if (!picture) return null;
  if (mode === 'value' || mode === 'learned') {
    const picks = film.values.tensors.get(name)!;
    const base = mode === 'learned' ? film.birth : null;
    const at = (i: number): number => picture.values[picks.start + i]! - (base ? base[picks.start + i]! : 0);
    return { kind: 'picks', picks, level: film.values.level, at, step: picture.step, exact: picture.exact };
  }
  const changes = mode === 'gradient' ? picture.gradients : picture.updates;
  if (!changes) return null;
  const picks = film.changes.tensors.get(name)!;
  const exact = picture.source === 'live';
  return { kind: 'picks', picks, level: film.changes.level, at: (i) => changes[picks.start + i]!, step: picture.step, exact };
}

/** One number, if it is known. */
export function valueAt(name: string, row: number, column: number, mode: CellMode): { value: number; exact: boolean; step: number } | null {
  const tensor = studio.tensor(name);
  if (!tensor) return null;
  const columns = shape2(tensor)[1];
  const tile = studio.cells.tile;
  if (tile && tile.name === name && tile.step === studio.step && tile.mode === mode) {
    const [i, j] = [row - tile.row, column - tile.column];
    if (i >= 0 && j >= 0 && i < tile.rows && j < tile.columns) return { value: tile.numbers[i * tile.columns + j]!, exact: tile.exact, step: tile.step };
  }
  const source = known(name, mode);
  if (!source) return null;
  if (source.kind === 'whole') return { value: source.numbers[row * columns + column]!, exact: source.exact, step: source.step };
  const i = (row >> source.level) * source.picks.columns + (column >> source.level);
  if (source.picks.places[i] !== row * columns + column) return null;
  return { value: source.at(i), exact: source.exact, step: source.step };
}

/** How far a tensor moved in this step, against its size: the norms of its update and of its weights. */
export interface Ratio {
  value: number;
  /** of all its parameters; otherwise of those that the picture has */
  exact: boolean;
}

const estimated = new WeakMap<Frame, Map<string, number>>();

export function ratioOf(name: string): Ratio | null {
  const { opened, picture, film } = studio;
  const norms = opened?.step === studio.step ? opened.tensors.find((tensor) => tensor.name === name) : undefined;
  if (norms) {
    const [update, weight] = [norms.update_norm.value, norms.weight_norm.value];
    return update !== null && weight ? { value: update / weight, exact: true } : null;
  }
  if (!film || !picture?.updates) return null;
  let ratios = estimated.get(picture);
  if (!ratios) {
    ratios = new Map();
    for (const [key, picks] of film.changes.tensors)
      ratios.set(key, size(picture.updates, picks) / size(picture.values, film.values.tensors.get(key)!));
    estimated.set(picture, ratios);
  }
  const value = ratios.get(name);
  return value !== undefined && value > 0 && Number.isFinite(value) ? { value, exact: false } : null;
}

/** The root of the mean square, at the picks of one tensor. */
function size(numbers: Float32Array, picks: TensorPicks): number {
  const cells = picks.rows * picks.columns;
  let sum = 0;
  for (let i = picks.start; i < picks.start + cells; i++) sum += numbers[i]! ** 2;
  return Math.sqrt(sum / cells);
}

/** The parameter that a square shows: its own row and column. */
export function pickedIn(name: string, row: number, column: number, mode: CellMode): { row: number; column: number } {
  const { film } = studio;
  const tensor = studio.tensor(name)!;
  if (!film) return { row, column };
  const changes = (mode === 'gradient' || mode === 'update') && studio.shown?.source !== 'replay';
  const picks = changes ? film.changes : film.values;
  const own = picks.tensors.get(name)!;
  const place = own.places[(row >> picks.level) * own.columns + (column >> picks.level)]!;
  const columns = shape2(tensor)[1];
  return { row: Math.floor(place / columns), column: place % columns };
}

export interface Picture {
  image: OffscreenCanvas;
  /** cells of the tensor along one pixel of the image */
  side: number;
  /** whether each pixel is a cell of its own neighbourhood alone (1), or one in side x side */
  all: boolean;
}

/**
 * The pixels of a piece, coarse or fine. Each pixel is one real parameter.
 *
 * @param perCell device pixels that a cell has on the screen
 */
export function paint(piece: Piece, mode: CellMode, perCell: number, dark: boolean): Picture | null {
  const { tensor } = piece;
  const source = known(tensor.name, mode);
  const colours = palette(dark);
  const scale = studio.scales.of(tensor.name, mode);
  const shade = shader(scale);
  const [, columns] = shape2(tensor);
  if (!source) return null;
  let across: number;
  let down: number;
  let side: number;
  let number: (i: number, j: number) => number; // of the piece: i down, j across, in the tensor's own sense
  const film = studio.film;
  if (source.kind === 'whole' && (perCell >= 1 || !film)) {
    [down, across, side] = [piece.rows, piece.columns, 1];
    number = (i, j) => source.numbers[(piece.rowFrom + i) * columns + j]!;
  } else {
    const level = source.kind === 'picks' ? source.level : film!.values.level;
    const picks = source.kind === 'picks' ? source.picks : film!.values.tensors.get(tensor.name)!;
    const skip = Math.max(1, Math.round(1 / (perCell * 2 ** level)));
    side = skip * 2 ** level;
    [down, across] = [Math.ceil(piece.rows / side), Math.ceil(piece.columns / side)];
    const top = piece.rowFrom >> level;
    const at = source.kind === 'picks' ? source.at : (i: number) => source.numbers[picks.places[i]!]!;
    number = (i, j) => at((top + i * skip) * picks.columns + j * skip);
  }
  const [width, height] = piece.turned ? [down, across] : [across, down];
  const image = new OffscreenCanvas(width, height);
  const context = image.getContext('2d')!;
  const pixels = context.createImageData(width, height);
  const data = new Uint32Array(pixels.data.buffer);
  for (let i = 0; i < down; i++)
    for (let j = 0; j < across; j++) {
      const index = shade(number(i, j));
      const colour = index > SHADES && (i + j) & 1 ? 0xff000000 : colours[index + SHADES]!; // hatched
      data[piece.turned ? j * width + i : i * width + j] = colour;
    }
  context.putImageData(pixels, 0, 0);
  return { image, side, all: side === 1 };
}
