/**
 * Loads the exact cells of the current step. Zoomed out, one true cell of each square of the map, of all
 * tensors in one answer; zoomed in, more of the same, down to every single cell of what is seen.
 */

import * as api from './api';
import { rowsOf } from './address';
import { inReport } from './bundle';
import { REQUESTS } from './constants';
import { measure } from './measure';
import { plane } from './painter';
import type { Run } from './run.svelte';
import type { CellMode, Phases, TensorInfo } from './types';
import type { View } from './view.svelte';
import { across, data, hasMemory, readWhole, squares, type Sheet, type Whole } from './whole';

/** Some neighbouring cells, exact. */
export interface Tile {
  step: number;
  mode: CellMode;
  name: string;
  row: number;
  column: number;
  rows: number;
  columns: number;
  exact: boolean;
  numbers: Float32Array;
}

/** Cells of a tensor that are seen, at the level at which they are drawn. */
export interface Window {
  name: string;
  row: number;
  column: number;
  rows: number;
  columns: number;
}

/** Where the page stands. */
export interface Standing {
  readonly step: number;
  readonly following: boolean;
  readonly opened: Phases | null;
  readonly leaving: AbortController | null;
}

const MOST = 1_048_576; // cells in one answer
const SIDE = 256; // squares along a tile
const ABREAST = 4; // tiles asked for at a time
const KEPT_TILES = 300;
const KEPT_WHOLES = 8;
const SETTLE_MS = 60;
export const LENS_ROWS = 9;
export const LENS_COLUMNS = 7;

export class Cells {
  whole = $state.raw<Whole | null>(null); // the last that came
  tile = $state.raw<Tile | null>(null); // around the chosen cell
  refused = $state(''); // why numbers that were asked for are not shown
  /** grows with all that comes */
  version = $state(0);

  private wholes: Whole[] = [];
  private readonly tiles = new Map<string, Sheet>();
  private readonly asking = new Map<string, AbortController>(); // for tiles
  private readonly reading = new Map<string, AbortController>(); // for whole pictures
  private wanted: { level: number; windows: Window[] } = { level: 99, windows: [] };
  private timer = 0;

  /** reopen: another run has this name now. */
  constructor(
    private readonly run: Run,
    private readonly view: View,
    private readonly at: Standing,
    private readonly reopen: () => void,
  ) {}

  /** Another run. */
  clear(): void {
    for (const asked of [...this.asking.values(), ...this.reading.values()]) asked.abort();
    this.wholes = [];
    this.tiles.clear();
    Object.assign(this, { whole: null, tile: null });
  }

  /** How coarse the first picture is: the squares of 2^level cells a side, of which one is sent. */
  get level(): number {
    const run = this.run.info!;
    let level = 0;
    while (squares(run.tensors, level) > REQUESTS.overview_cells && level < 12) level++;
    return level;
  }

  /** What is known of every tensor where the page stands, the coarse first. */
  known(mode: CellMode): Whole[] {
    void this.version;
    return this.wholes
      .filter((whole) => whole.step === this.step(mode) && whole.mode === mode)
      .sort((a, b) => b.level - a.level);
  }

  /** The tiles of a tensor at a level, where the page stands. */
  *tilesOf(name: string, mode: CellMode, level: number, window: Window): Iterable<Sheet> {
    void this.version;
    for (const [row, column] of corners(window, level)) {
      const found = this.tiles.get(this.key(mode, name, level, row, column));
      if (found) yield found;
    }
  }

  /** How many tiles a window has at a level. */
  tilesFor(level: number, window: Window): number {
    return corners(window, level).length;
  }

  /** Ask for the exact numbers where the page stands. */
  async load(): Promise<void> {
    this.refused = '';
    await Promise.all([this.loadLens(), this.loadWhole(this.run.info ? this.level : 0)]);
    this.detail();
  }

  /** What the map draws, and how finely: what is missing for it is asked for, once it stands still. */
  want(level: number, windows: Window[]): void {
    this.wanted = { level, windows };
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => {
      this.timer = 0;
      this.detail();
    }, SETTLE_MS);
  }

  /** Whether something is still to come. */
  get waiting(): boolean {
    return this.asking.size > 0 || this.reading.size > 0 || this.timer > 0;
  }

  /** Whether exact numbers can be asked for where the page stands. */
  private get reachable(): boolean {
    const run = this.run.info!;
    if (this.at.following) return false;
    const mode = data(this.view.mode);
    if (mode === 'birth') return true;
    if (this.at.opened?.step === this.at.step) return true;
    const end = this.at.step === run.steps_made && !run.training; // of which no step was made, but which can be entered
    return mode !== 'gradient' && mode !== 'update' && (end || run.keyframes.includes(this.at.step));
  }

  /** Numbers of a step that was re-run are as exact as the re-run was shown to be; a keyframe's are the file's own. */
  private proved(mode: CellMode): boolean {
    const { opened, step } = this.at;
    const made = mode === 'gradient' || mode === 'update' || !this.run.info!.keyframes.includes(step);
    return mode === 'birth' || !made || opened?.step !== step || opened.exact;
  }

  private step(mode: CellMode): number {
    return mode === 'birth' ? 0 : this.at.step;
  }

  private key(mode: CellMode, ...place: (string | number)[]): string {
    return [mode, this.step(mode), ...place].join('/');
  }

  /** Finer cells of what is seen. */
  private detail(): void {
    const run = this.run.info;
    const { level, windows } = this.wanted;
    const mode = data(this.view.mode);
    const known = run ? this.known(mode) : [];
    if (!run || !known.length || known.at(-1)!.level <= level) return this.abandon(new Set());
    if (squares(run.tensors, level) <= MOST) return void this.loadWhole(level);
    const has = (name: string): boolean => known[0]!.sheets.has(name);
    const missing = windows
      .filter(({ name }) => has(name))
      .flatMap((window) => corners(window, level).map(([row, column]) => ({ name: window.name, row, column })));
    const keys = new Map(missing.map((tile) => [this.key(mode, tile.name, level, tile.row, tile.column), tile]));
    this.abandon(new Set(keys.keys()));
    for (const [key, tile] of keys) {
      if (this.asking.size >= ABREAST) break; // the others follow
      if (!this.tiles.has(key) && !this.asking.has(key)) void this.loadTile(key, mode, level, tile);
    }
  }

  /** What is no longer seen is no longer waited for. */
  private abandon(but: Set<string>): void {
    for (const [key, asked] of this.asking)
      if (!but.has(key)) {
        asked.abort();
        this.asking.delete(key);
      }
  }

  private async loadTile(
    key: string,
    mode: CellMode,
    level: number,
    tile: { name: string; row: number; column: number },
  ): Promise<void> {
    const run = this.run.info!;
    if (!this.at.leaving || this.at.leaving.signal.aborted || !this.reachable) return;
    const asked = new AbortController();
    const signal = AbortSignal.any([asked.signal, this.at.leaving.signal]);
    this.asking.set(key, asked);
    const every = 2 ** level;
    const tensor = this.run.tensor(tile.name)!;
    const rows = Math.min(SIDE, across(rowsOf(tensor), level) - tile.row);
    const columns = Math.min(SIDE, across(tensor.shape.at(-1)!, level) - tile.column);
    try {
      const place = {
        row: tile.row * every,
        column: tile.column * every,
        rows: Math.min(rows * every, rowsOf(tensor) - tile.row * every),
        columns: Math.min(columns * every, tensor.shape.at(-1)! - tile.column * every),
      };
      const cells = await api.getTile(
        run.name,
        { tensor: tile.name, step: this.step(mode), mode, every, v: run.identity, ...place },
        signal,
      );
      if (signal.aborted) return;
      if (!cells.exact)
        this.wholes = this.wholes.map((whole) => ({
          ...whole,
          exact: whole.exact && (whole.mode !== mode || whole.step !== cells.step),
        }));
      this.tiles.set(key, {
        plane: plane(cells.numbers),
        start: 0,
        rows,
        columns,
        level,
        row: tile.row,
        column: tile.column,
      });
      for (const old of this.tiles.keys()) if (this.tiles.size > KEPT_TILES) this.tiles.delete(old);
      this.version++;
    } catch (error) {
      this.trouble(error, signal);
    } finally {
      if (this.asking.get(key) === asked) this.asking.delete(key);
    }
    if (!signal.aborted && !this.refused) this.detail();
  }

  /** One cell of each square of every tensor, in one answer: so that no picture mixes two steps. */
  private async loadWhole(level: number): Promise<void> {
    const run = this.run.info;
    if (!run || !this.at.leaving) return;
    const mode = data(this.view.mode);
    const step = this.step(mode);
    const known = this.known(mode).find((whole) => whole.level === level);
    if (known) {
      this.whole = known;
      this.version++;
      return;
    }
    if (!this.reachable) return;
    const key = this.key(mode, level);
    for (const [other, asked] of this.reading) if (!other.startsWith(`${this.key(mode)}/`)) asked.abort();
    if (this.reading.has(key)) return;
    const asked = new AbortController();
    const signal = AbortSignal.any([asked.signal, this.at.leaving.signal]);
    this.reading.set(key, asked);
    try {
      const read = await readWhole(run, step, mode, level, signal);
      const whole = { ...read, exact: read.exact && this.proved(mode) };
      await measure(this.run.scales, run, whole, signal);
      if (signal.aborted) return;
      this.wholes = [whole, ...this.wholes].slice(0, KEPT_WHOLES);
      this.whole = whole;
      this.version++;
    } catch (error) {
      this.trouble(error, signal);
    } finally {
      if (this.reading.get(key) === asked) this.reading.delete(key);
    }
  }

  private async loadLens(): Promise<void> {
    const run = this.run.info;
    if (!run || !this.at.leaving || !this.reachable) return;
    const { step } = this.at;
    const { cell } = this.view;
    const mode = data(this.view.mode);
    const tensor = this.run.tensor(cell.name);
    if (!tensor || this.known(mode).some((whole) => whole.level === 0) || !hasMemory(tensor, mode)) return;
    const window = lensWindow(tensor, cell);
    const { signal } = this.at.leaving;
    try {
      const asked = { tensor: cell.name, step: this.step(mode), mode, every: 1, v: run.identity, ...window };
      const cells = await api.getTile(run.name, asked, signal);
      if (signal.aborted || this.at.step !== step || data(this.view.mode) !== mode || this.view.cell !== cell) return;
      this.tile = {
        step,
        mode,
        name: cell.name,
        ...window,
        exact: cells.exact && this.proved(mode),
        numbers: cells.numbers,
      };
    } catch (error) {
      this.trouble(error, signal);
    }
  }

  /** 409: another run has this name now. */
  private trouble(error: unknown, signal: AbortSignal): void {
    // A report has exact cells only around one cell; elsewhere it has the film.
    if (signal.aborted || api.isAbort(error) || inReport) return;
    if (error instanceof api.ServerError && error.status === 409) this.reopen();
    else this.refused = api.sentence(error);
  }
}

/** Where the tiles begin that a window needs, counted in squares. */
function corners(window: Window, level: number): [number, number][] {
  const from = (at: number): number => Math.floor(at / 2 ** level / SIDE) * SIDE;
  const found: [number, number][] = [];
  for (let row = from(window.row); row * 2 ** level < window.row + window.rows; row += SIDE)
    for (let column = from(window.column); column * 2 ** level < window.column + window.columns; column += SIDE)
      found.push([row, column]);
  return found;
}

/** The cells around one: as many as the lens has. */
export function lensWindow(
  tensor: TensorInfo,
  cell: { row: number; column: number },
): { row: number; column: number; rows: number; columns: number } {
  const rows = Math.min(LENS_ROWS, rowsOf(tensor));
  const columns = Math.min(LENS_COLUMNS, tensor.shape.at(-1)!);
  const from = (at: number, size: number, window: number): number =>
    Math.max(0, Math.min(size - window, at - Math.floor(window / 2)));
  return {
    row: from(cell.row, rowsOf(tensor), rows),
    column: from(cell.column, tensor.shape.at(-1)!, columns),
    rows,
    columns,
  };
}
