/** Loads which cell of its square each pixel shows, for a whole tensor at once. */

import * as api from './api';
import { across } from './whole';
import { rowsOf } from './address';
import type { Run } from './run.svelte';
import type { TensorInfo } from './types';

export class Places {
  /** grows with all that comes */
  version = $state(0);
  private readonly known = new Map<string, Uint32Array>();
  private readonly asked = new Map<string, Promise<Uint32Array | null>>();

  constructor(private readonly run: Run) {}

  clear(): void {
    this.known.clear();
    this.asked.clear();
  }

  /** The places of the picks of a tensor at a level, in the flattened tensor; null while they are not known. */
  of(tensor: TensorInfo, level: number): Uint32Array | null {
    void this.version;
    const found = this.known.get(`${tensor.name}/${level}`);
    if (!found) void this.ask(tensor, level);
    return found ?? null;
  }

  /** The same, when they have come; null if they cannot be had. */
  ask(tensor: TensorInfo, level: number): Promise<Uint32Array | null> {
    const key = `${tensor.name}/${level}`;
    let asked = this.asked.get(key);
    if (!asked) {
      asked = this.read(tensor, level).catch(() => null);
      this.asked.set(key, asked);
    }
    return asked;
  }

  private async read(tensor: TensorInfo, level: number): Promise<Uint32Array> {
    const run = this.run.info!;
    const columns = tensor.shape.at(-1)!;
    const all = new Uint32Array(across(rowsOf(tensor), level) * across(columns, level));
    const most = Math.max(1, Math.floor(65536 / across(columns, level))); // rows of squares in one answer
    for (let row = 0; row < across(rowsOf(tensor), level); row += most) {
      const window = {
        row: row * 2 ** level,
        column: 0,
        rows: Math.min(most * 2 ** level, rowsOf(tensor) - row * 2 ** level),
        columns,
      };
      all.set(
        await api.getPlaces(run.name, { tensor: tensor.name, every: 2 ** level, v: run.identity, ...window }),
        row * across(columns, level),
      );
    }
    if (this.run.info?.identity !== run.identity) return all;
    this.known.set(`${tensor.name}/${level}`, all);
    this.version++;
    return all;
  }
}
