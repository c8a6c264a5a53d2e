/**
 * The line to the server: what is new of a run, while the tab is seen. When it breaks, the page says why, and looks
 * again and again; when it is back, the page goes on.
 */

import * as api from './api';
import type { RunInfo, StreamState } from './types';

/** down: nothing answers. locked: it has another key. gone: it has no such run. refused: it cannot read the run. */
export type Broken = 'down' | 'locked' | 'gone' | 'refused';

interface Ends {
  run(): RunInfo | null;
  news(state: StreamState): void;
  back(run: RunInfo): void; // as it is now
}

const LOOK_MS = [300, 700, 1500, 3000]; // the last again and again

export class Line {
  broken = $state<Broken | ''>('');
  reason = $state(''); // of a refusal, in the server's words
  private close: (() => void) | null = null;
  private cursor = '';
  private timer = 0;

  constructor(private readonly ends: Ends) {}

  /** For another run: nothing was heard yet. */
  begin(): void {
    this.hangUp();
    this.cursor = '';
    this.broken = this.reason = '';
  }

  hangUp(): void {
    clearTimeout(this.timer);
    this.close?.();
    this.close = null;
  }

  /** Listen while the tab is seen. */
  attend(): void {
    const run = this.ends.run();
    if (!run || document.hidden) this.hangUp();
    else if (this.broken) void this.look(0);
    else if (!this.close)
      this.close = api.listen(
        run.name,
        this.cursor,
        (state) => this.hear(run, state),
        () => void this.look(0),
      );
  }

  private hear(run: RunInfo, state: StreamState): void {
    if (this.ends.run()?.name !== run.name) return;
    if (state.error !== undefined) {
      void this.look(0);
      return;
    }
    this.cursor = state.cursor;
    this.ends.news(state);
  }

  /** Find out what broke, and go on looking until it is whole. */
  async look(turn: number): Promise<void> {
    const name = this.ends.run()?.name;
    if (!name) return;
    this.hangUp();
    try {
      const run = await api.getRun(name);
      if (this.ends.run()?.name !== name) return;
      this.broken = this.reason = '';
      this.ends.back(run);
      return;
    } catch (error) {
      if (this.ends.run()?.name !== name || this.close) return;
      const status = error instanceof api.ServerError ? error.status : 0;
      this.broken = status === 0 ? 'down' : status === 401 ? 'locked' : status === 404 ? 'gone' : 'refused';
      this.reason = api.sentence(error);
    }
    clearTimeout(this.timer);
    if (!document.hidden)
      this.timer = window.setTimeout(() => void this.look(turn + 1), LOOK_MS[Math.min(turn, LOOK_MS.length - 1)]);
  }
}
