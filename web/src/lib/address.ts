/** Where the page stands, as a part of its address: what is copied from the address bar opens the same picture. */

import type { Sampling } from './api';
import { address as cellAddress } from './text';
import { readStop, writeStop } from './tour';
import type { CellMode, RunInfo, TensorInfo } from './types';

export const VIEWS = ['cabinet', 'step', 'play', 'health', 'compare'] as const;
export const MODES: readonly CellMode[] = ['birth', 'value', 'learned', 'gradient', 'update', 'rms'];
export type View = (typeof VIEWS)[number];
export const AXES = ['steps', 'tokens', 'seconds'] as const;
export type Axis = (typeof AXES)[number];
export type Side = 'writes' | 'number';
export const MOST_OTHERS = 7;
export interface Cell {
  name: string;
  row: number;
  column: number;
}

/** What the address says of a run. */
interface Place {
  mode: CellMode;
  view: View;
  side: Side;
  phase: number; // from 0
  row: number; // of the batch
  token: number;
  cell: Cell;
  others: string[]; // that the run is compared with
  axis: Axis; // of the curves that are compared
  tour: string; // `3`, `short.2`
}

interface Shown extends Place {
  step: number;
  following: boolean;
  writing: { prompt: string; sampling: Sampling };
}

export const rowsOf = (tensor: TensorInfo): number => (tensor.shape.length === 1 ? 1 : tensor.shape[0]!);
export const clamp = (value: number, size: number): number => Math.max(0, Math.min(size - 1, Math.floor(value) || 0));

export function writeAddress(at: Shown, run: RunInfo): string {
  const parts: Record<string, string> = { run: run.name, step: at.following ? 'live' : String(at.step) };
  if (at.mode !== 'value') parts.mode = at.mode;
  const tensor = run.tensors.find((t) => t.name === at.cell.name);
  if (tensor) parts.cell = cellAddress(tensor.name, tensor.shape, at.cell.row, at.cell.column);
  if (at.view !== 'cabinet') parts.view = at.view;
  if (at.view === 'step')
    Object.assign(parts, { phase: String(at.phase + 1), row: String(at.row), token: String(at.token) });
  if (at.others.length) parts.with = at.others.join(',');
  if (at.axis !== 'steps') parts.axis = at.axis;
  if (at.side !== 'writes') parts.side = at.side;
  if (at.tour) parts.tour = at.tour;
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
    view: one('view', VIEWS, 'cabinet'),
    side: one('side', ['writes', 'number'], 'writes'),
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

function readCell(text: string, run: RunInfo): Cell {
  const found = /^([\w.]+)\[(?:(\d+),)?(\d+)\]$/.exec(text);
  const named = found && run.tensors.find((tensor) => tensor.name === found[1]);
  const tensor = named ?? run.tensors.find((t) => t.name === 'blocks.0.attention.query.weight') ?? run.tensors[0]!;
  const [row, column] = named ? [Number(found[2] ?? 0), Number(found[3])] : [3, 7];
  return { name: tensor.name, row: clamp(row, rowsOf(tensor)), column: clamp(column, tensor.shape.at(-1)!) };
}
