/** Writes the state of the page into its address, and reads it back, so that a copied link opens the same picture. */

import type { Sampling } from './api';
import { LIMITS } from './constants';
import { address as cellAddress } from './text';
import { readStop, writeStop } from './tour';
import type { CellMode, RunInfo, TensorInfo } from './types';
import { AXES, VIEWS, type Axis, type Cell, type Side, type ViewName } from './view.svelte';

export const MODES: readonly CellMode[] = ['birth', 'value', 'learned', 'gradient', 'update', 'rms'];
export const MOST_OTHERS = LIMITS.compared_runs - 1;

/** What the address says of a run. */
interface Place {
  mode: CellMode;
  name: ViewName;
  side: Side;
  table: boolean;
  phase: number; // from 0
  row: number; // of the batch
  token: number;
  cell: Cell;
  others: string[]; // that the run is compared with
  axis: Axis; // of the curves that are compared
  tour: string; // `3`, `short.2`
}

interface Standing {
  step: number;
  following: boolean;
  writing: { prompt: string; sampling: Sampling };
}

export const rowsOf = (tensor: TensorInfo): number => (tensor.shape.length === 1 ? 1 : tensor.shape[0]!);
export const clamp = (value: number, size: number): number => Math.max(0, Math.min(size - 1, Math.floor(value) || 0));

export function writeAddress(run: RunInfo, view: Place, at: Standing): string {
  const parts: Record<string, string> = { run: run.name, step: at.following ? 'live' : String(at.step) };
  if (view.mode !== 'value') parts.mode = view.mode;
  const tensor = run.tensors.find((t) => t.name === view.cell.name);
  if (tensor) parts.cell = cellAddress(tensor.name, tensor.shape, view.cell.row, view.cell.column);
  if (view.name !== 'map') parts.view = view.name;
  if (view.table) parts.table = '1';
  if (view.name === 'step')
    Object.assign(parts, { phase: String(view.phase + 1), row: String(view.row), token: String(view.token) });
  if (view.others.length) parts.with = view.others.join(',');
  if (view.axis !== 'steps') parts.axis = view.axis;
  if (view.side !== 'writes') parts.side = view.side;
  if (view.tour) parts.tour = view.tour;
  if (at.writing.prompt) parts.prompt = at.writing.prompt;
  const chosen = (run.config.sampling ?? {}) as Partial<Sampling>;
  for (const [key, value] of Object.entries(at.writing.sampling))
    if (value !== chosen[key as keyof Sampling]) parts[key] = String(value);
  return new URLSearchParams(parts).toString();
}

/** What is missing or makes no sense is left as a page begins; a step of null is where a run begins to be looked at. */
export function readAddress(
  parts: URLSearchParams,
  run: RunInfo,
): Place & { step: number | 'live' | null; prompt: string | null; sampling: Partial<Sampling> } {
  const one = <T extends string>(key: string, known: readonly T[], otherwise: T): T =>
    known.find((value) => value === parts.get(key)) ?? otherwise;
  const number = (key: string): number | null =>
    parts.has(key) && Number.isFinite(Number(parts.get(key))) ? Number(parts.get(key)) : null;
  const sampling: Partial<Sampling> = {};
  for (const key of ['temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty'] as const) {
    const value = number(key);
    if (value !== null) sampling[key] = value;
  }
  return {
    mode: one('mode', [...MODES, ...memories(run)], 'value'),
    name: one('view', VIEWS, 'map'),
    side: one('side', ['writes', 'number'], 'writes'),
    table: parts.get('table') === '1',
    phase: clamp((number('phase') ?? 1) - 1, 4),
    row: number('row') ?? 0,
    token: number('token') ?? -1,
    cell: readCell(parts.get('cell') ?? '', run),
    others: [...new Set((parts.get('with') ?? '').split(',').filter((name) => name && name !== run.name))].slice(
      0,
      MOST_OTHERS,
    ),
    axis: one('axis', AXES, 'steps'),
    tour: writeStop(readStop(parts.get('tour') ?? '')),
    step: parts.get('step') === 'live' ? 'live' : number('step'),
    prompt: parts.get('prompt'),
    sampling,
  };
}

/** The modes that show what the optimizer remembers. */
export const memories = (run: RunInfo): CellMode[] =>
  [...new Set(run.tensors.flatMap((tensor) => tensor.memory))].map((name): CellMode => `memory:${name}`);

/** Where the page begins: a matrix in the first block, of the queries if there is one of its own. */
export const firstMatrix = (tensors: TensorInfo[]): TensorInfo | undefined =>
  tensors.find((tensor) => tensor.part === 'attention.query' && tensor.kind === 'weight') ??
  tensors.find((tensor) => tensor.block !== null && tensor.shape.length === 2);

function readCell(text: string, run: RunInfo): Cell {
  const found = /^([\w.]+)\[(?:(\d+),)?(\d+)\]$/.exec(text);
  const named = found && run.tensors.find((tensor) => tensor.name === found[1]);
  const tensor = named ?? firstMatrix(run.tensors) ?? run.tensors[0]!;
  const [row, column] = named ? [Number(found[2] ?? 0), Number(found[3])] : [3, 7];
  return { name: tensor.name, row: clamp(row, rowsOf(tensor)), column: clamp(column, tensor.shape.at(-1)!) };
}
