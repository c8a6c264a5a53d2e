/** Finds the value of any cell at the current step, and chooses what the parameter map draws. */

import type { Cells, Standing } from './cells.svelte';
import { data, type Sheet } from './whole';
import type { Picture, TensorPicks } from './film';
import { shape2 } from './layout';
import type { Layer } from './raster';
import type { Places } from './places.svelte';
import type { Run } from './run.svelte';
import type { CellMode, TensorInfo } from './types';

export interface Found {
  value: number;
  exact: boolean;
  step: number;
}

/** Numbers of every tensor, at one level, at one step. */
export interface Source {
  sheets: Map<string, Sheet>;
  level: number;
  exact: boolean;
  step: number;
}

const MEAN = 2; // levels: a mean is of at most 4 x 4 numbers

/** The level of the cells that are drawn, and of the cells that they are made of, for so many pixels a cell. */
export function levels(mode: CellMode, perCell: number): { drawn: number; made: number } {
  const level = perCell >= 1 ? 0 : Math.floor(Math.log2(1 / perCell) + 1e-9);
  return mode === 'rms'
    ? { drawn: Math.max(MEAN, level), made: Math.max(MEAN, level) - MEAN }
    : { drawn: level, made: level };
}

export interface Drawn {
  layers: Layer[];
  sheets: Sheet[];
  /** cells of which one pixel shows one (or, for a mean, that it stands for), at the coarsest place */
  side: number;
  /** numbers that a mean is taken of; 1: no mean */
  of: number;
}

/** How far a tensor moved in this step, against its size: the norms of its update and of its weights. */
export interface Ratio {
  value: number;
  /** of all its parameters; otherwise of those that the picture has */
  exact: boolean;
}

/** What the page has of where it stands. */
interface Held extends Standing {
  readonly picture: Picture | null;
  readonly cells: Cells;
  readonly places: Places;
}

export class Field {
  private readonly estimated = new WeakMap<Picture, Map<string, number>>();

  constructor(
    private readonly run: Run,
    private readonly at: Held,
  ) {}

  /** The pictures of the whole model that the page has, the coarse first. Exact ones of the step, or else one of the film. */
  sources(mode: CellMode): Source[] {
    const exact = this.at.following ? [] : this.at.cells.known(data(mode));
    if (exact.length) return exact;
    const film = this.run.film?.shows(this.at.picture, data(mode));
    return film ? [film] : [];
  }

  /** What is drawn of a window of a tensor. */
  layersOf(
    tensor: TensorInfo,
    mode: CellMode,
    perCell: number,
    window: { row: number; column: number; rows: number; columns: number },
  ): Drawn {
    const { drawn, made } = levels(mode, perCell);
    const known = this.sources(mode).filter((source) => source.sheets.has(tensor.name));
    const base = known.find((source) => source.level <= made) ?? known.at(-1);
    if (!base) return { layers: [], sheets: [], side: 1, of: 1 };
    const sheets = [base.sheets.get(tensor.name)!];
    for (let level = base.level - 1; level >= made; level--)
      sheets.push(...this.at.cells.tilesOf(tensor.name, data(mode), level, { name: tensor.name, ...window }));
    const coarseOf = (sheet: Sheet): number => (mode === 'rms' ? Math.max(drawn, sheet.level + 1) : sheet.level);
    const layers = sheets.map((sheet) => ({
      plane: sheet.plane.id,
      start: sheet.start,
      rows: sheet.rows,
      columns: sheet.columns,
      level: sheet.level,
      row: sheet.row,
      column: sheet.column,
      coarse: coarseOf(sheet),
    }));
    // Tiles that are all there hide what is below them.
    const finest = sheets.filter((sheet) => sheet.level === made).length;
    const hidden =
      finest > 0 && base.level > made && finest === this.at.cells.tilesFor(made, { name: tensor.name, ...window });
    const last = hidden ? layers.at(-1)! : layers[0]!;
    const rows = tensor.shape.length === 1 ? 1 : 4; // a vector's squares are one row of cells
    const shrink = last.coarse - last.level;
    return { layers, sheets, side: 2 ** last.coarse, of: mode === 'rms' ? (rows === 1 ? 2 : 4) ** shrink : 1 };
  }

  /** The cell that is drawn where this one would be, and its number; null while it is not known which. */
  cellDrawn(
    tensor: TensorInfo,
    row: number,
    column: number,
    mode: CellMode,
    perCell: number,
  ): ({ row: number; column: number } & Found) | null {
    const known = this.sources(mode).filter((source) => source.sheets.has(tensor.name));
    const { made } = levels(mode === 'rms' ? 'value' : mode, perCell);
    const base = known.find((source) => source.level <= made) ?? known.at(-1);
    if (!base) return null;
    const { exact, step } = base;
    for (let level = made; level < base.level; level++)
      for (const sheet of this.at.cells.tilesOf(tensor.name, data(mode), level, {
        name: tensor.name,
        row,
        column,
        rows: 1,
        columns: 1,
      })) {
        const found = this.pickOf(tensor, sheet, row, column);
        return found && { ...found, exact, step };
      }
    const found = this.pickOf(tensor, base.sheets.get(tensor.name)!, row, column);
    return found && { ...found, exact, step };
  }

  private pickOf(
    tensor: TensorInfo,
    sheet: Sheet,
    row: number,
    column: number,
  ): { row: number; column: number; value: number } | null {
    const [i, j] = [row >> sheet.level, column >> sheet.level];
    const value = sheet.plane.numbers[sheet.start + (i - sheet.row) * sheet.columns + j - sheet.column]!;
    if (sheet.level === 0) return { row, column, value };
    const places = this.at.places.of(tensor, sheet.level);
    if (!places) return null;
    const columns = shape2(tensor)[1];
    const place = places[i * Math.ceil(columns / 2 ** sheet.level) + j]!;
    return { row: Math.floor(place / columns), column: place % columns, value };
  }

  /** One number, if it is known. */
  valueAt(name: string, row: number, column: number, mode: CellMode): Found | null {
    const tensor = this.run.tensor(name);
    if (!tensor) return null;
    const tile = this.at.cells.tile;
    if (tile && tile.name === name && tile.step === this.at.step && tile.mode === data(mode)) {
      const [i, j] = [row - tile.row, column - tile.column];
      if (i >= 0 && j >= 0 && i < tile.rows && j < tile.columns)
        return { value: tile.numbers[i * tile.columns + j]!, exact: tile.exact, step: tile.step };
    }
    const known = this.sources(mode).filter((source) => source.sheets.has(name));
    for (const sheet of this.at.cells.tilesOf(name, data(mode), 0, { name, row, column, rows: 1, columns: 1 }))
      if (known.length)
        return { value: this.pickOf(tensor, sheet, row, column)!.value, exact: known[0]!.exact, step: known[0]!.step };
    for (const source of known.toReversed()) {
      const found = this.pickOf(tensor, source.sheets.get(name)!, row, column);
      if (found && found.row === row && found.column === column)
        return { value: found.value, exact: source.exact, step: source.step };
    }
    return null;
  }

  ratioOf(name: string): Ratio | null {
    const { opened, picture } = this.at;
    const { film } = this.run;
    const norms = opened?.step === this.at.step ? opened.tensors.find((tensor) => tensor.name === name) : undefined;
    if (norms) {
      const [update, weight] = [norms.update_norm.value, norms.weight_norm.value];
      return update !== null && weight ? { value: update / weight, exact: true } : null;
    }
    if (!film || !picture?.updates) return null;
    let ratios = this.estimated.get(picture);
    if (!ratios) {
      ratios = new Map();
      for (const [key, picks] of film.changes.tensors)
        ratios.set(key, size(picture.updates, picks) / size(picture.values, film.values.tensors.get(key)!));
      this.estimated.set(picture, ratios);
    }
    const value = ratios.get(name);
    return value !== undefined && value > 0 && Number.isFinite(value) ? { value, exact: false } : null;
  }
}

/** The root of the mean square, at the picks of one tensor. */
function size(numbers: Float32Array, picks: TensorPicks): number {
  const cells = picks.rows * picks.columns;
  let sum = 0;
  for (let i = picks.start; i < picks.start + cells; i++) sum += numbers[i]! ** 2;
  return Math.sqrt(sum / cells);
}
