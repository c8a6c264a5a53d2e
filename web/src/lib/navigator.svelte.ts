/**
 * The current step, and everything that is loaded for it. Everything that is shown carries its own step; an answer that comes late, for a
 * step that the page has left, is dropped.
 */

import * as api from './api';
import { clamp, rowsOf } from './address';
import { Cells } from './cells.svelte';
import { valueAt } from './curve';
import { Field } from './field';
import type { Picture } from './film';
import { Places } from './places.svelte';
import { Player } from './player.svelte';
import type { Preferences } from './preferences.svelte';
import type { Run } from './run.svelte';
import { address as cellAddress } from './text';
import type { CellMode, Phases, Progress, Sample } from './types';
import type { Cell, View } from './view.svelte';
import { Writing } from './writing.svelte';

const LIVE_MS = 1200; // between two live pictures: each takes the training a little
const SETTLE_MS = 160;
const PROGRESS_MS = 150;

export class Navigator {
  step = $state(0);
  following = $state(false); // the newest step of a run that trains
  picture = $state.raw<Picture | null>(null); // of the film, or live
  opened = $state.raw<Phases | null>(null);
  progress = $state.raw<Progress | null>(null);
  replaying = $state(false);
  refused = $state(''); // why this step could not be opened
  leaving: AbortController | null = null; // ends what belongs to the step

  readonly places: Places;
  readonly cells: Cells;
  readonly field: Field;
  readonly writing: Writing;
  readonly player: Player;
  private settling = 0;
  private liveAt = 0;
  private pendingFrame = -1;

  /** reopen: open the same run anew, since another has its name now. */
  constructor(
    private readonly run: Run,
    private readonly view: View,
    preferences: Preferences,
    reopen: () => void,
  ) {
    this.places = new Places(run);
    this.cells = new Cells(run, view, this, reopen);
    this.field = new Field(run, this);
    this.writing = new Writing(run, () => this.writingStep);
    this.player = new Player(this, preferences);
  }

  get cellText(): string {
    const { cell } = this.view;
    const tensor = this.run.tensor(cell.name);
    return tensor ? cellAddress(tensor.name, tensor.shape, cell.row, cell.column) : '';
  }

  /** Where the page stands is the end of the run: no step was made from there. */
  get atEnd(): boolean {
    const { info } = this.run;
    return info !== null && this.step >= info.steps_made;
  }

  /** The learning rate of the step that is made from here, as the schedule has it; null: no step was made. */
  get rate(): { value: number; exact: boolean } | null {
    if (this.opened?.step === this.step) return { value: this.opened.update.learning_rate, exact: true };
    const found = this.step < (this.run.info?.steps_made ?? 0) ? valueAt(this.run.rates, this.step) : null;
    return found && { value: (found.low + found.high) / 2, exact: found.low === found.high };
  }

  /** What the parameter map shows: the step of its numbers, and whether they are exact. */
  get shown(): { step: number; exact: boolean; source: 'birth' | 'film' | 'live' | 'replay' } | null {
    const { mode } = this.view;
    const [source] = this.field.sources(mode);
    if (!source) return null;
    const found = mode === 'birth' ? 'birth' : 'mode' in source ? 'replay' : this.picture!.source;
    return { step: source.step, exact: source.exact, source: found };
  }

  /** The step whose model answers: where the page stands, or, while it trains, the newest keyframe. */
  get writingStep(): number {
    return this.following ? (this.run.info!.keyframes.at(-1) ?? 0) : this.step;
  }

  /** What the model wrote at birth, and what it wrote last before the step where the page stands. */
  get writings(): { birth: Sample | undefined; now: Sample | undefined } {
    const samples = this.run.info?.samples ?? [];
    const before = samples.filter((sample) => sample.step <= this.step);
    const best = before.filter((sample) => sample.temperature > 0);
    return {
      birth: samples.find((s) => s.step === 0 && s.temperature > 0) ?? samples[0],
      now: (best.length ? best : before).at(-1),
    };
  }

  /** Another run is being opened. */
  clear(): void {
    this.player.stop();
    this.leave();
    this.leaving!.abort();
    Object.assign(this, { picture: null, following: false });
    this.cells.clear();
    this.places.clear();
  }

  private leave(): void {
    this.leaving?.abort();
    this.leaving = new AbortController();
    clearTimeout(this.settling);
    this.liveAt++;
    Object.assign(this, { opened: null, progress: null, replaying: false, refused: '' });
  }

  // --- the newest step -----------------------------------------------------------------------------------------

  /** Stay at the newest step while the run trains. */
  follow(): void {
    this.stop();
    this.leave();
    this.following = true;
    this.step = this.run.info!.steps_made;
    void this.watchLive(++this.liveAt);
    void this.writing.ask();
  }

  private async watchLive(turn: number): Promise<void> {
    const { run } = this;
    const { signal } = run;
    while (this.following && turn === this.liveAt && !signal.aborted) {
      const { film } = run;
      if (film && !document.hidden) {
        try {
          const cells = await api.getLive(run.info!.name, signal);
          if (cells && this.following && turn === this.liveAt) this.picture = film.live(cells.step, cells.numbers);
          else if (!cells && !this.picture && film.info.steps.length)
            this.picture = await run.frame(film.info.steps.length - 1, signal);
        } catch (error) {
          if (api.isAbort(error)) return;
          this.view.fail(error);
        }
      }
      await new Promise((resolve) => setTimeout(resolve, LIVE_MS));
    }
  }

  // --- a step --------------------------------------------------------------------------------------------------

  /** Stand at a step: at once with what was recorded, soon with what the step really had. */
  go(step: number, settle = true): void {
    const { info } = this.run;
    if (!info) return;
    const wanted = Math.max(0, Math.min(info.steps_made, Math.round(step)));
    if (wanted === this.step && !this.following && this.opened?.step === wanted) return;
    this.following = false;
    this.leave();
    this.step = wanted;
    this.showNearest();
    if (settle) this.settleSoon();
  }

  /** Show the frame of the film that is nearest to the step. */
  showNearest(): void {
    const { run } = this;
    const { film } = run;
    if (!film || !film.info.steps.length) return;
    const number = film.nearest(this.step, run.info!.steps_made);
    this.pendingFrame = number;
    if (this.playing) run.readAhead(number + 1);
    const known = film.known(number);
    if (known) {
      this.picture = known;
      return;
    }
    run
      .frame(number, run.signal)
      .then((picture) => {
        if (this.pendingFrame === number && run.film === film && !this.following) this.picture = picture;
      })
      .catch((error: unknown) => this.view.fail(error));
  }

  private settleSoon(): void {
    clearTimeout(this.settling);
    const step = this.step;
    this.settling = window.setTimeout(() => void this.settle(step), SETTLE_MS);
  }

  /** Re-run the training up to the step where the page stands, and show its exact numbers. */
  private async settle(step: number): Promise<void> {
    const { run, view } = this;
    const info = run.info!;
    const { signal } = this.leaving!;
    const here = (): boolean => !signal.aborted && this.step === step && run.info?.name === info.name;
    if (step < info.steps_made) void this.cells.load(); // what lies on disk need not be made again
    try {
      if (step < info.steps_made) {
        this.replaying = true;
        void this.pollProgress(info.name, step, signal);
        const phases = await api.getStep(info.name, step, view.row, view.token, signal);
        if (!here() || phases.step !== step) return;
        this.opened = phases;
        view.said = phases.exact ? `Step ${step}, re-run: identical.` : `Step ${step}, re-run, but not identical.`;
      }
    } catch (error) {
      if (here() && !api.isAbort(error)) this.refused = api.sentence(error);
    }
    if (!here()) return;
    this.replaying = false;
    await this.cells.load();
    void this.writing.ask();
  }

  private async pollProgress(run: string, step: number, signal: AbortSignal): Promise<void> {
    while (this.replaying && !signal.aborted) {
      await new Promise((resolve) => setTimeout(resolve, PROGRESS_MS));
      try {
        const progress = await api.getProgress(run, step, signal);
        if (this.replaying && !signal.aborted && (progress.step === step || progress.wanted === step))
          this.progress = progress;
      } catch {
        return;
      }
    }
  }

  /** The four phases again, seen from another token of the batch. */
  async look(row: number, token: number): Promise<void> {
    const { view, step } = this;
    Object.assign(view, { row, token });
    const { signal } = this.leaving!;
    if (!this.run.info || this.atEnd) return;
    try {
      const phases = await api.getStep(this.run.info.name, step, row, token, signal);
      if (!signal.aborted && phases.step === this.step && view.row === row && view.token === token)
        this.opened = phases;
    } catch (error) {
      if (!api.isAbort(error)) this.refused = api.sentence(error);
    }
  }

  setMode(mode: CellMode): void {
    this.view.mode = mode;
    void this.cells.load();
  }

  select(cell: Cell, look = true): void {
    const tensor = this.run.tensor(cell.name);
    if (!tensor) return;
    this.view.cell = {
      name: cell.name,
      row: clamp(cell.row, rowsOf(tensor)),
      column: clamp(cell.column, tensor.shape.at(-1)!),
    };
    if (look) this.view.side = 'number';
    void this.cells.load();
  }

  // --- play ----------------------------------------------------------------------------------------------------

  get playing(): boolean {
    return this.player.playing;
  }

  get frames(): number[] {
    return this.run.film?.info.steps ?? [];
  }

  play(): void {
    if (this.view.name !== 'play') this.view.name = 'map';
    this.player.play();
  }

  /** The film is over. */
  ended(): void {
    const info = this.run.info!;
    if (info.training) this.follow();
    else this.go(info.steps_made);
  }

  /** Stop the film, and enter the step where it stopped. */
  stop(): void {
    if (this.player.stop() && this.run.info && !this.following) this.settleSoon();
  }

  /** The next of the four phases; after the last, the next step. */
  advance(): void {
    const { view } = this;
    const made = this.run.info!.steps_made;
    this.stop();
    if (view.name !== 'step') {
      Object.assign(view, { name: 'step', phase: 0 });
      if (this.following || this.atEnd) this.go(Math.max(0, made - 1));
    } else if (view.phase < 3) view.phase++;
    else if (this.step + 1 < made) {
      view.phase = 0;
      this.go(this.step + 1);
    }
  }
}
