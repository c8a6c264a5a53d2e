/** The exact cells of the step where the page stands, once it was entered again. */

import * as api from './api';
import { rowsOf } from './address';
import type { CellMode, Phases, RunInfo, TensorInfo } from './types';

/** All cells of every tensor, exact, at one step, in one mode. */
export interface Whole {
  step: number;
  mode: CellMode;
  exact: boolean;
  tensors: Map<string, Float32Array>;
}
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

/** Where the page stands. */
interface Place {
  readonly run: RunInfo | null;
  readonly step: number;
  readonly mode: CellMode;
  readonly cell: { name: string; row: number; column: number };
  readonly following: boolean;
  readonly opened: Phases | null;
  readonly leaving: AbortController | null;
  refused: string;
  tensor(name: string): TensorInfo | undefined;
}

const TILE_CELLS = 65536;
const WHOLE_PARAMETERS = 4_000_000; // a larger model is not read whole when a step is opened
export const LENS_ROWS = 9;
export const LENS_COLUMNS = 7;

export class Cells {
  whole = $state.raw<Whole | null>(null);
  tile = $state.raw<Tile | null>(null);

  constructor(private readonly at: Place) {}

  /** Whether exact numbers can be asked for where the page stands. */
  private get reachable(): boolean {
    const run = this.at.run!;
    if (this.at.following) return false;
    if (this.at.mode === 'birth') return true;
    const opened = this.at.opened?.step === this.at.step;
    return opened || (this.at.mode !== 'gradient' && this.at.mode !== 'update' && run.keyframes.includes(this.at.step));
  }

  /** Ask for the exact numbers where the page stands: those of the lens first. */
  async load(): Promise<void> {
    await this.loadTile();
    await this.loadWhole();
  }

  private async loadTile(): Promise<void> {
    const run = this.at.run;
    if (!run || !this.reachable || !this.at.leaving) return;
    const { step, mode, cell } = this.at;
    const tensor = this.at.tensor(cell.name);
    if (!tensor || this.inWhole(cell.name)) return;
    const window = lensWindow(tensor, cell);
    const { signal } = this.at.leaving;
    try {
      const cells = await api.getTile(run.name, { tensor: cell.name, step, mode, ...window }, signal);
      if (signal.aborted || this.at.step !== step || this.at.mode !== mode || this.at.cell !== cell) return;
      this.tile = { step, mode, name: cell.name, ...window, exact: cells.exact, numbers: cells.numbers };
    } catch (error) {
      if (!api.isAbort(error)) this.at.refused = api.sentence(error);
    }
  }

  private inWhole(name: string): boolean {
    return this.whole?.step === this.at.step && this.whole.mode === this.at.mode && this.whole.tensors.has(name);
  }

  /** Every cell of the model, where it is small enough; shown only when all are there, so that no two steps mix. */
  private async loadWhole(): Promise<void> {
    const run = this.at.run;
    if (!run || !this.reachable || !this.at.leaving || run.parameters > WHOLE_PARAMETERS) return;
    const { step, mode } = this.at;
    if (this.whole?.step === step && this.whole.mode === mode) return;
    const { signal } = this.at.leaving;
    const tensors = new Map<string, Float32Array>();
    const waiting = [...run.tensors].sort((a, b) => Number(b.name === this.at.cell.name) - Number(a.name === this.at.cell.name));
    let exact = true;
    const here = (): boolean => !signal.aborted && this.at.step === step && this.at.mode === mode;
    const read = async (): Promise<void> => {
      for (let tensor = waiting.shift(); tensor && here(); tensor = waiting.shift()) {
        const columns = tensor.shape.at(-1)!;
        const rows = rowsOf(tensor);
        const numbers = new Float32Array(rows * columns);
        const most = Math.max(1, Math.floor(TILE_CELLS / columns));
        for (let row = 0; row < rows && here(); row += most) {
          const window = { row, column: 0, rows: Math.min(most, rows - row), columns };
          const cells = await api.getTile(run.name, { tensor: tensor.name, step, mode, ...window }, signal);
          exact &&= cells.exact;
          numbers.set(cells.numbers, row * columns);
        }
        tensors.set(tensor.name, numbers);
      }
    };
    try {
      await Promise.all([read(), read(), read()]);
      if (here() && tensors.size === run.tensors.length) this.whole = { step, mode, exact, tensors };
    } catch (error) {
      if (here() && !api.isAbort(error)) this.at.refused = api.sentence(error);
    }
  }
}

/** The cells around one: as many as the lens has. */
export function lensWindow(tensor: TensorInfo, cell: { row: number; column: number }): { row: number; column: number; rows: number; columns: number } {
  const rows = Math.min(LENS_ROWS, rowsOf(tensor));
  const columns = Math.min(LENS_COLUMNS, tensor.shape.at(-1)!);
  const from = (at: number, size: number, window: number): number => Math.max(0, Math.min(size - window, at - Math.floor(window / 2)));
  return { row: from(cell.row, rowsOf(tensor), rows), column: from(cell.column, tensor.shape.at(-1)!, columns), rows, columns };
}
