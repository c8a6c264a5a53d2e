/**
 * What the page stands on: one run, one step, one cell. Everything that is shown carries its own step; an answer that
 * comes late, for a step that the page has left, is dropped.
 */

import * as api from './api';
import { type Axis, type Cell, clamp, readAddress, rowsOf, type Side, type View, writeAddress } from './address';
import { type About, inReport, openBundle } from './bundle';
import { Cells } from './cells.svelte';
import { begun, longer, type LossCurve, NO_CURVE } from './curve';
import { sources } from './field';
import { Film, type Picture } from './film';
import { grown } from './growth';
import { Line } from './line.svelte';
import { measureFilm, readStatistics } from './measure';
import { Places } from './places.svelte';
import { Player } from './player.svelte';
import { Scales } from './scales.svelte';
import type { CellMode, Phases, Progress, RunInfo, RunSummary, Sample, StreamState, TensorInfo } from './types';
import { address as cellAddress } from './text';
import { Writing } from './writing.svelte';

const LIVE_MS = 1200; // between two live pictures: each takes the training a little
const SETTLE_MS = 160;
class Studio {
  runs = $state.raw<RunSummary[]>([]);
  run = $state.raw<RunInfo | null>(null);
  trouble = $state(''); // what went wrong, and what to do
  said = $state(''); // for the live region
  opening = $state(true);
  report = $state.raw<About | null>(null); // what this file says of itself, if the page is a report
  step = $state(0);
  following = $state(false); // the newest step of a run that trains
  mode = $state<CellMode>('value');
  cell = $state.raw<Cell>({ name: '', row: 0, column: 0 });
  view = $state<View>('cabinet');
  side = $state<Side>('writes');
  phase = $state(0);
  row = $state(0);
  token = $state(-1);
  others = $state.raw<string[]>([]);
  axis = $state<Axis>('steps');
  dialog = $state(false);
  parent = $state.raw<{ run: string; step: number } | null>(null); // what a new run goes on from
  tour = $state(''); // the station, as it is in the address

  film = $state.raw<Film | null>(null);
  picture = $state.raw<Picture | null>(null);
  opened = $state.raw<Phases | null>(null);
  progress = $state.raw<Progress | null>(null);
  replaying = $state(false);
  refused = $state(''); // why this step could not be opened
  scales = $state.raw(new Scales());
  readonly places = new Places(() => this.run);

  curve = $state.raw<LossCurve>(NO_CURVE);
  dark = $state(false);
  still = $state(false); // a person asked for less motion

  readonly writing = new Writing(
    () => this.run,
    () => this.writingStep,
  );
  readonly cells = new Cells(this);
  readonly player = new Player(this);
  readonly line = new Line({ run: () => this.run, news: (state) => this.grow(state), back: (run) => this.regain(run) });

  leaving: AbortController | null = null; // ends what belongs to the step that the page stands at
  private runLeaving: AbortController | null = null;
  private settling = 0;
  private liveAt = 0;
  private pendingFrame = -1;

  tensor(name: string): TensorInfo | undefined {
    return this.run?.tensors.find((tensor) => tensor.name === name);
  }

  get cellText(): string {
    const tensor = this.tensor(this.cell.name);
    return tensor ? cellAddress(tensor.name, tensor.shape, this.cell.row, this.cell.column) : '';
  }

  /** Where the page stands is the end of the run: no step was made from there. */
  get atEnd(): boolean {
    return this.run !== null && this.step >= this.run.steps_made;
  }

  /** What the cabinet shows: the step of its numbers, and whether they are exact. */
  get shown(): { step: number; exact: boolean; source: 'birth' | 'film' | 'live' | 'replay' } | null {
    const [source] = sources(this.mode);
    if (!source) return null;
    const found = this.mode === 'birth' ? 'birth' : 'mode' in source ? 'replay' : this.picture!.source;
    return { step: source.step, exact: source.exact, source: found };
  }

  async start(): Promise<void> {
    const media = matchMedia('(prefers-color-scheme: dark)');
    const motion = matchMedia('(prefers-reduced-motion: reduce)');
    this.dark = media.matches;
    this.still = motion.matches;
    media.addEventListener('change', () => (this.dark = media.matches));
    motion.addEventListener('change', () => (this.still = motion.matches));
    document.addEventListener('visibilitychange', () => this.line.attend());
    window.addEventListener('hashchange', (event) => void this.readAddress(new URL(event.newURL).hash)); // the page's own may stand there by now
    try {
      if (inReport) this.report = (await openBundle()).about;
      this.runs = (await api.getRuns()).runs;
      await this.readAddress();
    } catch (error) {
      this.trouble = api.sentence(error);
    }
    this.opening = false;
  }

  async refreshRuns(): Promise<void> {
    try {
      this.runs = (await api.getRuns()).runs;
    } catch {
      // the list can wait
    }
  }

  // --- the address ---------------------------------------------------------------------------------------------

  private written = '';

  get address(): string {
    return this.run ? writeAddress(this, this.run) : '';
  }

  private take(parts: URLSearchParams): void {
    const run = this.run!;
    const { step, prompt, sampling, ...place } = readAddress(parts, run);
    Object.assign(this, place);
    if (prompt !== null) this.writing.prompt = prompt;
    Object.assign(this.writing.sampling, sampling);
    if (run.training && typeof step !== 'number') this.follow();
    else this.go(typeof step === 'number' ? step : (this.report?.begin ?? run.steps_made));
  }

  keepAddress(address: string): void {
    if (!address || address === this.written) return;
    this.written = address;
    history.replaceState(null, '', `#${address}`);
  }

  private async readAddress(hash = location.hash): Promise<void> {
    const text = hash.slice(1);
    if (text === this.written && this.run) return;
    this.written = text;
    const parts = new URLSearchParams(text);
    const name = parts.get('run') ?? this.newest();
    if (!name) return;
    if (name !== this.run?.name) await this.open(name, parts);
    else this.take(parts);
  }

  private newest(): string | undefined {
    return [...this.runs].sort((a, b) => Number(b.training) - Number(a.training) || b.modified_s - a.modified_s)[0]
      ?.name;
  }

  // --- a run ---------------------------------------------------------------------------------------------------

  async open(name: string, parts = new URLSearchParams()): Promise<void> {
    this.stop();
    this.runLeaving?.abort();
    this.leaving?.abort();
    this.line.begin();
    const { signal } = (this.runLeaving = new AbortController());
    this.opening = true;
    this.trouble = '';
    Object.assign(this, { film: null, picture: null, opened: null, following: false });
    this.curve = NO_CURVE;
    this.cells.clear();
    this.places.clear();
    try {
      const run = await api.getRun(name, signal);
      if (signal.aborted) return;
      this.scales = new Scales(run.tensors);
      this.run = run;
      this.writing.begin(run);
      this.take(parts);
      void this.loadCurve(signal);
      const measured = this.measure(signal, true);
      if (inReport) await measured;
      await this.loadFilm(signal);
      this.line.attend();
      this.said = `${name}: ${run.parameters} learned numbers, ${run.steps_made} steps made.`;
    } catch (error) {
      if (!signal.aborted) this.unopened(name, error);
    }
    if (!signal.aborted) this.opening = false;
  }

  /** A run that was shown is waited for; of another, only the reason is left. */
  private unopened(name: string, error: unknown): void {
    if (this.run?.name === name) {
      void this.line.look(0);
      return;
    }
    this.run = null;
    this.trouble = api.sentence(error);
    void this.refreshRuns();
  }

  private async loadFilm(signal: AbortSignal): Promise<void> {
    const run = this.run!;
    if (!run.film) return;
    const birth = await api.getBirth(run.name, run.identity, signal);
    if (signal.aborted) return;
    this.film = new Film(run.film, run.tensors, birth);
    if (inReport && run.film.steps.length)
      measureFilm(this.scales, this.film, await this.frame(run.film.steps.length - 1, signal));
    if (!this.following) this.showNearest();
  }

  /** What the colours stand for, by what was recorded of the run; it can only grow. */
  private async measure(signal: AbortSignal, fresh = false): Promise<void> {
    const run = this.run!;
    if (!run.statistics_every || !run.steps_made) return;
    try {
      const statistics = await readStatistics(run, signal);
      if (signal.aborted) return;
      this.scales.take(statistics, run.steps_made, fresh);
    } catch (error) {
      if (!api.isAbort(error)) this.trouble = api.sentence(error);
    }
  }

  /** The run was resumed, or made anew. */
  reopen(): void {
    void this.open(this.run!.name, new URLSearchParams(this.address));
  }

  /** One frame of the film. */
  async frame(number: number, signal?: AbortSignal): Promise<Picture> {
    const film = this.film!;
    return (
      film.known(number) ?? film.decode(number, await api.getFrame(this.run!.name, number, this.run!.identity, signal))
    );
  }

  private async loadCurve(signal: AbortSignal): Promise<void> {
    const run = this.run!;
    if (!run.steps_made) return;
    try {
      const series = await api.getSeries(run.name, 'loss', 0, run.steps_made, 1200, signal);
      if (signal.aborted) return;
      this.curve = begun(series, this.curve);
    } catch (error) {
      if (!api.isAbort(error)) this.trouble = api.sentence(error);
    }
  }

  // --- the stream ----------------------------------------------------------------------------------------------

  private grow(state: StreamState): void {
    const run = this.run!;
    if (state.identity && state.identity !== run.identity) {
      this.reopen();
      return;
    }
    this.curve = longer(this.curve, state.steps);
    const ended = run.training && !state.training;
    this.run = grown(run, state);
    if (this.following) this.step = state.steps_made;
    if (ended) void this.finish();
    else if (state.steps_made > run.steps_made && (state.evaluations?.length || state.film_steps?.length || !run.film))
      void this.reread();
  }

  /** The line is whole again. */
  private regain(run: RunInfo): void {
    this.said = 'The studio is back.';
    this.trouble = '';
    if (run.identity !== this.run!.identity || (run.film && !this.film)) {
      void this.open(run.name, new URLSearchParams(this.address));
      return;
    }
    this.line.attend();
    if (!this.following && this.opened?.step !== this.step) this.go(this.step);
    void this.reread();
  }

  /** The run has come to its end: its keyframes and result are read again. */
  private async finish(): Promise<void> {
    await this.reread();
    this.said = `${this.run!.name} has ended after ${this.run!.steps_made} steps.`;
    if (this.following) {
      this.following = false;
      this.go(this.run!.steps_made);
    }
  }

  private async reread(): Promise<void> {
    const { signal } = this.runLeaving!;
    try {
      const run = await api.getRun(this.run!.name, signal);
      if (signal.aborted) return;
      if (this.following) this.step = run.steps_made;
      const hadFilm = this.film !== null;
      if (hadFilm && run.film && this.film) this.film.info.steps = run.film.steps;
      this.run = hadFilm && this.film ? { ...run, film: this.film.info } : run;
      void this.measure(signal);
      if (!hadFilm && run.film) await this.loadFilm(signal);
      if (this.following && this.writing.next?.step !== this.writingStep) void this.writing.ask();
    } catch (error) {
      if (!api.isAbort(error)) this.trouble = api.sentence(error);
    }
  }

  /** Stay at the newest step while the run trains. */
  follow(): void {
    this.stop();
    this.leave();
    this.following = true;
    this.step = this.run!.steps_made;
    void this.watchLive(++this.liveAt);
    void this.writing.ask();
  }

  private async watchLive(turn: number): Promise<void> {
    const { signal } = this.runLeaving!;
    while (this.following && turn === this.liveAt && !signal.aborted) {
      if (this.film && !document.hidden) {
        try {
          const cells = await api.getLive(this.run!.name, signal);
          if (cells && this.following && turn === this.liveAt) {
            this.picture = this.film.live(cells.step, cells.numbers);
          } else if (!cells && !this.picture && this.film.info.steps.length) {
            this.picture = await this.frame(this.film.info.steps.length - 1, signal);
          }
        } catch (error) {
          if (api.isAbort(error)) return;
          this.trouble = api.sentence(error);
        }
      }
      await new Promise((resolve) => setTimeout(resolve, LIVE_MS));
    }
  }

  /** The step whose model answers: where the page stands, or, while it trains, the newest keyframe. */
  get writingStep(): number {
    return this.following ? (this.run!.keyframes.at(-1) ?? 0) : this.step;
  }

  /** What the model wrote at birth, and what it wrote last before the step where the page stands. */
  get writings(): { birth: Sample | undefined; now: Sample | undefined } {
    const samples = this.run?.samples ?? [];
    const before = samples.filter((sample) => sample.step <= this.step);
    const best = before.filter((sample) => sample.temperature > 0);
    return {
      birth: samples.find((s) => s.step === 0 && s.temperature > 0) ?? samples[0],
      now: (best.length ? best : before).at(-1),
    };
  }

  // --- a step --------------------------------------------------------------------------------------------------

  private leave(): void {
    this.leaving?.abort();
    this.leaving = new AbortController();
    clearTimeout(this.settling);
    this.liveAt++;
    Object.assign(this, { opened: null, progress: null, replaying: false, refused: '' });
  }

  /** Stand at a step: at once with what was recorded, soon with what the step really had. */
  go(step: number, settle = true): void {
    const run = this.run;
    if (!run) return;
    const wanted = Math.max(0, Math.min(run.steps_made, Math.round(step)));
    if (wanted === this.step && !this.following && this.opened?.step === wanted) return;
    this.following = false;
    this.leave();
    this.step = wanted;
    this.showNearest();
    if (settle) this.settling = window.setTimeout(() => void this.settle(wanted), SETTLE_MS);
  }

  private showNearest(): void {
    const film = this.film;
    if (!film || !film.info.steps.length) return;
    const number = film.nearest(this.step, this.run!.steps_made);
    this.pendingFrame = number;
    const known = film.known(number);
    if (known) {
      this.picture = known;
      return;
    }
    this.frame(number, this.runLeaving?.signal)
      .then((picture) => {
        if (this.pendingFrame === number && this.film === film && !this.following) this.picture = picture;
      })
      .catch((error: unknown) => {
        if (!api.isAbort(error)) this.trouble = api.sentence(error);
      });
  }

  /** Re-run the training up to the step where the page stands, and show its exact numbers. */
  private async settle(step: number): Promise<void> {
    const run = this.run!;
    const { signal } = this.leaving!;
    const here = (): boolean => !signal.aborted && this.step === step && this.run?.name === run.name;
    if (step < run.steps_made) void this.cells.load(); // what lies on disk need not be made again
    try {
      if (step < run.steps_made) {
        this.replaying = true;
        void this.pollProgress(run.name, step, signal);
        const phases = await api.getStep(run.name, step, this.row, this.token, signal);
        if (!here() || phases.step !== step) return;
        this.opened = phases;
        this.said = phases.exact ? `Step ${step}, re-run: identical.` : `Step ${step}, re-run, but not identical.`;
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
      await new Promise((resolve) => setTimeout(resolve, 150));
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
    this.row = row;
    this.token = token;
    const step = this.step;
    const { signal } = this.leaving!;
    if (!this.run || this.atEnd) return;
    try {
      const phases = await api.getStep(this.run.name, step, row, token, signal);
      if (!signal.aborted && phases.step === this.step && this.row === row && this.token === token)
        this.opened = phases;
    } catch (error) {
      if (!api.isAbort(error)) this.refused = api.sentence(error);
    }
  }

  setMode(mode: CellMode): void {
    this.mode = mode;
    void this.cells.load();
  }

  select(cell: Cell, look = true): void {
    const tensor = this.tensor(cell.name);
    if (!tensor) return;
    this.cell = {
      name: cell.name,
      row: clamp(cell.row, rowsOf(tensor)),
      column: clamp(cell.column, tensor.shape.at(-1)!),
    };
    if (look) this.side = 'number';
    void this.cells.load();
  }

  // --- play ----------------------------------------------------------------------------------------------------

  get playing(): boolean {
    return this.player.playing;
  }

  get frames(): number[] {
    return this.film?.info.steps ?? [];
  }

  play(): void {
    if (this.view !== 'play') this.view = 'cabinet';
    this.player.play();
  }

  /** The film is over. */
  ended(): void {
    if (this.run?.training) this.follow();
    else this.go(this.run!.steps_made);
  }

  /** Stop the film, and enter the step where it stopped. */
  stop(): void {
    if (!this.player.stop() || !this.run || this.following) return;
    clearTimeout(this.settling);
    const step = this.step;
    this.settling = window.setTimeout(() => void this.settle(step), SETTLE_MS);
  }

  /** The next of the four phases; after the last, the next step. */
  advance(): void {
    this.stop();
    if (this.view !== 'step') {
      this.view = 'step';
      this.phase = 0;
      if (this.following || this.atEnd) this.go(Math.max(0, this.run!.steps_made - 1));
      return;
    }
    if (this.phase < 3) this.phase++;
    else if (this.step + 1 < this.run!.steps_made) {
      this.phase = 0;
      this.go(this.step + 1);
    }
  }
}

export const studio = new Studio();
