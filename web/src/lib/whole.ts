/** Loads one cell of each square of every tensor in one answer, so that no picture mixes two steps. */

import * as api from './api';
import { rowsOf } from './address';
import { plane, type Plane } from './painter';
import type { Grid } from './raster';
import type { CellMode, RunInfo, TensorInfo } from './types';

/** Cells of one tensor. */
export interface Sheet extends Grid {
  plane: Plane;
}

/** One cell of each square of every tensor, at one step, in one mode. */
export interface Whole {
  step: number;
  mode: CellMode;
  exact: boolean;
  level: number;
  sheets: Map<string, Sheet>;
}

/** One cell of each square of every tensor that has such numbers. */
export async function readWhole(
  run: RunInfo,
  step: number,
  mode: CellMode,
  level: number,
  signal: AbortSignal,
): Promise<Whole> {
  const every = 2 ** level;
  const tensors = run.tensors.filter((tensor) => hasMemory(tensor, mode));
  const cells = await api.getTiles(run.name, { step, mode, every, v: run.identity }, squares(tensors, level), signal);
  const numbers = plane(cells.numbers);
  const sheets = new Map<string, Sheet>();
  let start = 0;
  for (const tensor of tensors) {
    const [rows, columns] = [across(rowsOf(tensor), level), across(tensor.shape.at(-1)!, level)];
    sheets.set(tensor.name, { plane: numbers, start, rows, columns, level, row: 0, column: 0 });
    start += rows * columns;
  }
  return { step, mode, exact: cells.exact, level, sheets };
}

/** The numbers that a mode is made of. */
export const data = (mode: CellMode): CellMode => (mode === 'rms' ? 'value' : mode);

/** Whether a tensor has numbers of this mode: of some, an optimizer keeps no memory. */
export const hasMemory = (tensor: TensorInfo, mode: CellMode): boolean =>
  !mode.startsWith('memory:') || tensor.memory.includes(mode.slice('memory:'.length));

/** Squares of 2^level cells along so many cells. */
export const across = (cells: number, level: number): number => Math.ceil(cells / 2 ** level);
export const squares = (tensors: TensorInfo[], level: number): number =>
  tensors.reduce((sum, tensor) => sum + across(rowsOf(tensor), level) * across(tensor.shape.at(-1)!, level), 0);
