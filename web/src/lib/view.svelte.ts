/** What the page shows of a run, at whichever step: the view, the mode of the map, the chosen cell. */

import * as api from './api';
import type { CellMode } from './types';

export const VIEWS = ['map', 'step', 'play', 'health', 'article', 'compare'] as const;
export const AXES = ['steps', 'tokens', 'seconds'] as const;
export type ViewName = (typeof VIEWS)[number];
export type Axis = (typeof AXES)[number];
export type Side = 'writes' | 'number';
export interface Cell {
  name: string;
  row: number;
  column: number;
}

export class View {
  name = $state<ViewName>('map');
  side = $state<Side>('writes');
  table = $state(false); // the tensors as a table, instead of the map
  mode = $state<CellMode>('value');
  cell = $state.raw<Cell>({ name: '', row: 0, column: 0 });
  phase = $state(0); // of a step, from 0
  row = $state(0); // of the batch
  token = $state(-1);
  others = $state.raw<string[]>([]); // runs that this one is compared with
  axis = $state<Axis>('steps'); // of the curves that are compared
  tour = $state(''); // the station, as it is in the address: `3`, `short.2`
  dialog = $state(false); // for a new run
  parent = $state.raw<{ run: string; step: number } | null>(null); // what a new run goes on from

  trouble = $state(''); // what went wrong, and what to do
  said = $state(''); // for the live region

  /** Say what went wrong; what was only stopped did not. */
  fail(error: unknown): void {
    if (!api.isAbort(error)) this.trouble = api.sentence(error);
  }
}
