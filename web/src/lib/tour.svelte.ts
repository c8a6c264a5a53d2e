/** The state of the tour: its current station, the reader's answers, and the values measured for it. */

import * as api from './api';
import { firstMatrix, rowsOf } from './address';
import { NEEDS } from './article';
import { stations } from './stations';
import type { Navigator } from './navigator.svelte';
import type { Run } from './run.svelte';
import {
  against,
  deviation,
  lengthOf,
  readStop,
  rises,
  stationOf,
  TARGETS,
  writeStop,
  type At,
  type FactName,
  type Station,
  type Target,
  type Values,
} from './tour';
import type { Birth } from './types';
import type { Side, View, ViewName } from './view.svelte';

const LARGEST = 65536; // cells in one tile
const MOST_STEPS = 10_000; // of a curve at full resolution
const CHAT = 24; // tokens, to see that writing changes nothing

/** How a fact is measured, and what it is of: with another key it is another fact. A key of null: not yet. */
type Measure<K extends FactName> = { key: () => string | null; measure: (signal: AbortSignal) => Promise<Values[K]> };

export class Tour {
  reinits = $state.raw<Birth[]>([]);
  trouble = $state('');
  flashed = $state<{ target: Target; number: number } | null>(null);
  private answered = $state<Record<string, number>>({});
  private doneTasks = $state<Record<string, boolean>>({});
  private known = $state.raw<Partial<Record<FactName, { key: string; value: unknown }>>>({});
  private asking = new Map<FactName, { key: string; leave: AbortController }>();
  /** where the page stood, if a station could not look there */
  moved = $state.raw<{ from: number; to: number } | null>(null);
  private before: { prompt: string; sampling: api.Sampling } | null = null; // the tour began
  private last = '';
  private looked: { identity: string; step: number } | null = null;
  /** how the page stood when the station began: what a task asks for is a change of it */
  private began = { temperature: 0, prompt: '', token: 0, row: 0, step: 0, shown: 0 };

  constructor(
    private readonly run: Run,
    private readonly navigator: Navigator,
    private readonly view: View,
  ) {}

  get stop() {
    return readStop(this.view.tour);
  }
  get station(): Station | null {
    const stop = this.stop;
    return stop && stop.number > 0 ? stations[stationOf(stop) - 1]! : null;
  }
  private get place(): string {
    const stop = this.stop;
    return `${this.run.info?.identity}/${stop ? stationOf(stop) : 0}`;
  }
  get answer(): number | undefined {
    return this.answered[this.place];
  }
  set answer(value: number) {
    this.answered[this.place] = value;
  }
  get done(): boolean {
    return this.doneTasks[this.place] === true;
  }

  start(): void {
    if (this.view.tour) this.leave();
    else this.view.tour = 'start';
  }
  begin(short: boolean): void {
    const { prompt, sampling } = this.navigator.writing;
    this.before = { prompt, sampling: { ...sampling } };
    this.view.tour = writeStop({ short, number: 1 });
  }
  move(by: number): void {
    const stop = this.stop;
    if (!stop || stop.number === 0) return;
    const number = stop.number + by;
    if (number >= 1 && number <= lengthOf(stop)) this.view.tour = writeStop({ ...stop, number });
    else if (number > lengthOf(stop)) this.leave();
    else this.view.tour = 'start';
  }
  leave(): void {
    this.last = '';
    this.looked = null;
    this.view.tour = '';
    this.answered = {};
    this.doneTasks = {};
    if (!this.before) return;
    const { prompt, sampling } = this.before; // as the tour found them
    this.before = null;
    Object.assign(this.navigator.writing.sampling, sampling);
    if (this.navigator.writing.prompt !== prompt) {
      this.navigator.writing.prompt = prompt;
      void this.navigator.writing.ask();
    }
  }

  /** Put the page where the station speaks of. */
  enter(): void {
    const [station, run] = [this.station, this.run.info];
    if (!station || !run) return;
    const { stand } = station;
    this.navigator.stop();
    this.trouble = '';
    const from = this.navigator.step;
    if (this.last === 'made' && !this.navigator.following && !this.navigator.atEnd)
      this.looked = { identity: run.identity, step: this.navigator.step };
    if (stand.step === 'birth') this.navigator.go(0);
    else if (stand.step === 'end') {
      if (run.training) this.navigator.follow();
      else this.navigator.go(run.steps_made);
    } else if (stand.step === 'made') this.goToMade();
    const to = this.navigator.step;
    this.moved = stand.step === 'made' && from !== to && from >= run.steps_made ? { from, to } : null;
    this.last = stand.step;
    if (stand.phase !== undefined) this.view.phase = stand.phase;
    const cell = this.run.tensor(this.view.cell.name);
    if (
      this.stop &&
      [1, 7, 8].includes(stationOf(this.stop)) &&
      !(cell && cell.block !== null && cell.shape.length === 2)
    ) {
      const other = firstMatrix(run.tensors) ?? run.tensors.find((tensor) => tensor.shape.length === 2)!;
      this.navigator.select({ name: other.name, row: 3, column: 7 }, false);
    }
    if (stand.mode) this.navigator.setMode(stand.mode);
    this.view.name = stand.view;
    if (stand.side) this.view.side = stand.side;
    this.began = {
      temperature: this.navigator.writing.sampling.temperature,
      prompt: this.navigator.writing.prompt,
      token: this.view.token,
      row: this.view.row,
      step: this.navigator.step,
      shown: this.flashed?.number ?? 0,
    };
    this.view.said = `Tour, station ${this.stop!.number} of ${lengthOf(this.stop!)}: ${station.title}.`;
  }

  /** All stations that look into a step look into the same one: where the page stood, or where the last of them left it. */
  goToMade(): void {
    if (this.looked?.identity === this.run.info!.identity) this.navigator.go(this.looked.step);
    else if (this.navigator.following || this.navigator.atEnd) this.navigator.go(this.fitting());
  }

  /** A step that was made, of a keyframe if there is one: such a step is there at once. About a third of the way. */
  private fitting(): number {
    const run = this.run.info!;
    const made = run.keyframes.filter((step) => step > 0 && step < run.steps_made);
    const wish = run.steps_made / 3;
    return made.length ? made.reduce((best, step) => (Math.abs(step - wish) < Math.abs(best - wish) ? step : best)) : 0;
  }

  /** Show where a number stands: the view that has it, and a ring around it. */
  show(target: Target): void {
    const place = TARGETS[target] as { view?: ViewName; side?: Side };
    if (place.view) this.view.name = place.view;
    if (place.side) this.view.side = place.side;
    this.flashed = { target, number: (this.flashed?.number ?? 0) + 1 };
  }

  // --- tasks ---------------------------------------------------------------------------------------------------

  /** Whether what the station asks for has been done; once done, it stays so. */
  look(): void {
    const stop = this.stop;
    if (!stop || stop.short || stop.number === 0 || this.done) return;
    if (this.tried(stationOf(stop))) {
      this.doneTasks[this.place] = true;
      this.view.said = 'Done.';
    }
  }

  private tried(number: number): boolean {
    const { began } = this;
    const has = (selector: string): boolean => document.querySelector(selector) !== null;
    const kind = this.run.tensor(this.view.cell.name)?.kind;
    const slider = document.querySelector<HTMLInputElement>('[data-nudge] ~ input[type=range]');
    const seeds = this.reinits.filter((birth) => birth.spread === 1).map((birth) => birth.seed);
    const spreads = this.reinits.map((birth) => birth.spread);
    const { writing } = this.navigator;
    return [
      () => has('[data-neuron]'),
      () => kind === 'bias' || kind === 'gain',
      () => writing.sampling.temperature !== began.temperature,
      () => seeds.join().includes('1,2,1') && spreads.includes(0) && spreads.includes(50),
      () =>
        writing.prompt !== began.prompt &&
        writing.prompt !== this.fact('prediction')?.prompt &&
        writing.next?.step === this.navigator.writingStep,
      () => this.view.token !== began.token || this.view.row !== began.row,
      () => slider !== null && Number(slider.value) !== 0,
      () => this.navigator.step !== began.step,
      () => this.navigator.playing,
      () => this.flashed !== null && this.flashed.number > began.shown,
    ][number - 1]!();
  }

  async reinit(seed: number, spread: number): Promise<void> {
    const run = this.run.info!;
    try {
      const birth = await api.postReinit(run.name, seed, spread);
      if (this.run.info === run || this.run.info?.identity === run.identity)
        this.reinits = [...this.reinits, birth].slice(-8);
    } catch (error) {
      this.trouble = api.sentence(error);
    }
  }

  // --- what is measured ----------------------------------------------------------------------------------------

  fact<K extends FactName>(name: K): Values[K] | undefined {
    const kept = this.known[name];
    return kept && kept.key === this.measures[name].key() ? (kept.value as Values[K]) : undefined;
  }

  get at(): At | null {
    const { info: run } = this.run;
    const { cell } = this.view;
    const { step, opened, writing } = this.navigator;
    const tensor = this.run.tensor(cell.name);
    if (!run || !tensor) return null;
    const names = Object.keys(this.measures) as FactName[];
    const facts = Object.fromEntries(names.map((name) => [name, this.fact(name)]));
    const next = writing.next?.step === this.navigator.writingStep ? writing.next : null;
    return {
      run,
      step,
      cell,
      address: this.navigator.cellText,
      tensor,
      opened: opened?.step === step ? opened : null,
      next,
      prompt: writing.prompt,
      sampling: writing.sampling,
      facts,
    };
  }

  /** What has to be measured now, as one text: another text, and `load` has something to do. */
  get wanted(): string {
    return this.needed.map((name) => `${name} ${this.measures[name].key()}`).join('; ');
  }
  private get needed(): FactName[] {
    const station = this.station;
    const asked = station ? [...station.needs, ...(this.answer !== undefined ? (station.reveals ?? []) : [])] : [];
    return [...new Set([...asked, ...(this.view.name === 'article' ? NEEDS : [])])];
  }

  load(): void {
    for (const name of this.needed) {
      const key = this.measures[name].key();
      if (key === null || this.known[name]?.key === key || this.asking.get(name)?.key === key) continue;
      this.asking.get(name)?.leave.abort();
      const leave = new AbortController();
      this.asking.set(name, { key, leave });
      this.measures[name].measure(leave.signal).then(
        (value) => {
          if (!leave.signal.aborted) this.known = { ...this.known, [name]: { key, value } };
        },
        (error: unknown) => {
          if (api.isAbort(error)) return;
          this.asking.delete(name);
          this.trouble = api.sentence(error);
        },
      );
    }
  }

  private readonly measures: { [K in FactName]: Measure<K> } = {
    life: {
      key: () => this.here(this.navigator.cellText),
      measure: (signal) => api.getBiography(this.run.info!.name, this.navigator.cellText, this.navigator.step, signal),
    },
    neuron: {
      key: () => this.here(this.navigator.cellText, this.view.row, this.navigator.opened?.forward.token),
      measure: (signal) =>
        api.getNeuron(
          this.run.info!.name,
          `${this.view.cell.name.replace(/\.weight$/, '')}[${this.view.cell.row}]`,
          this.navigator.step,
          { row: this.view.row, token: this.navigator.opened!.forward.token },
          signal,
        ),
    },
    nudge: {
      key: () => this.here(this.navigator.cellText),
      measure: (signal) =>
        api.postNudge(
          this.run.info!.name,
          this.navigator.cellText,
          this.navigator.step,
          [0.1 * (this.run.scales.of(this.view.cell.name, 'value').full || 0.1)],
          signal,
        ),
    },
    newborn: {
      key: () => this.run.info?.identity ?? null,
      measure: (signal) =>
        api.postReinit(this.run.info!.name, Number(this.run.info!.config.training?.seed ?? 0), 1, signal),
    },
    spread: {
      key: () => `${this.run.info?.identity}/${this.view.cell.name}`,
      measure: async (signal) => {
        const { numbers } = await this.tile(this.view.cell.name, 0, 'birth', signal);
        return { std: deviation(numbers), cells: numbers.length };
      },
    },
    doubled: { key: () => this.run.info?.identity ?? null, measure: (signal) => this.doubled(signal) },
    prediction: { key: () => this.run.info?.identity ?? null, measure: (signal) => this.prediction(signal) },
    digest: {
      key: () => `${this.run.info?.identity}/${this.navigator.writingStep}/${this.navigator.writing.prompt}`,
      measure: async (signal) => (await this.write(1, signal)).digest.before,
    },
    share: {
      key: () => this.here(this.view.cell.name),
      measure: async (signal) => {
        const { name } = this.view.cell;
        const [gradient, moved] = await Promise.all([
          this.tile(name, this.navigator.step, 'gradient', signal),
          this.tile(name, this.navigator.step, 'update', signal),
        ]);
        return against(gradient.numbers, moved.numbers, gradient.numbers.length === this.run.tensor(name)!.parameters);
      },
    },
    rises: {
      key: () => `${this.run.info?.identity}/${this.run.info?.steps_made}`,
      measure: async (signal) =>
        rises(
          (
            await api.getSeries(
              this.run.info!.name,
              'loss',
              0,
              Math.min(this.run.info!.steps_made, MOST_STEPS) - 1,
              MOST_STEPS,
              signal,
            )
          ).low,
        ),
    },
    chat: {
      key: () => `${this.run.info?.identity}/${this.navigator.writingStep}`,
      measure: async (signal) => ({ tokens: CHAT, ...(await this.write(CHAT, signal)).digest }),
    },
  };

  /** A key for what belongs to the step that is open. */
  private here(...parts: unknown[]): string | null {
    return this.run.info && this.navigator.opened?.step === this.navigator.step
      ? [this.run.info.identity, this.navigator.step, ...parts].join('/')
      : null;
  }

  /** The cells of a tensor, or as many rows of it as one answer takes. */
  private tile(name: string, step: number, mode: 'birth' | 'gradient' | 'update', signal: AbortSignal) {
    const tensor = this.run.tensor(name)!;
    const columns = Math.min(tensor.shape.at(-1)!, LARGEST);
    const rows = Math.min(rowsOf(tensor), Math.max(1, Math.floor(LARGEST / columns)));
    return api.getTile(
      this.run.info!.name,
      { tensor: name, step, mode, every: 1, v: this.run.info!.identity, row: 0, column: 0, rows, columns },
      signal,
    );
  }

  /** Plans of this very model, on some of its text and on twice as much. */
  private async doubled(signal: AbortSignal): Promise<Values['doubled']> {
    const run = this.run.info!;
    const model = run.config.model!;
    const settings: Record<string, unknown> = {};
    for (const key of [
      'architecture',
      'n_layers',
      'n_heads',
      'n_kv_heads',
      'd_model',
      'd_ff',
      'context',
      'bias',
      'tie_embeddings',
    ])
      settings[`model.${key}`] = model[key];
    for (const key of ['batch_size', 'accumulation']) settings[`training.${key}`] = run.config.training![key];
    const held = Number(run.config.data?.validation);
    const measured = run.evaluations.find((evaluation) => evaluation.whole);
    const known = measured && held > 0 && held < 1 ? (measured.tokens * (1 - held)) / held : 20_000;
    const some = Math.max(1000, Math.floor(known / 2000) * 1000);
    const found: Values['doubled'] = [];
    for (const tokens of [some, 2 * some]) {
      const plan = await api.postPlan(
        {
          corpus: run.name,
          preset: 'demo',
          steps: run.steps,
          settings: { ...settings, 'data.tokenizer': run.config.data?.tokenizer, 'data.max_tokens': tokens },
        },
        signal,
      );
      found.push({ tokens, parameters: plan.parameters, steps: Math.ceil(tokens / plan.tokens_per_step) });
    }
    return found;
  }

  /** A prompt out of the run's own text, and what the model predicts. */
  private async prediction(signal: AbortSignal): Promise<Values['prediction']> {
    const run = this.run.info!;
    const step = run.keyframes.filter((known) => known < run.steps_made).at(-1) ?? 0;
    const phases = await api.getStep(run.name, step, 0, -1, signal);
    const { tokens, probabilities, batch } = phases.forward;
    if (!run.vocab) return { prompt: tokens.join('').trimStart(), step, next: null, likely: probabilities };
    const text = batch[0]![0]!.trimStart().slice(0, 24);
    const prompt = text.includes(' ') ? text.slice(0, text.lastIndexOf(' ') + 3) : text;
    return { prompt, step, next: await api.postNext(run.name, prompt, this.navigator.writingStep, signal), likely: [] };
  }

  /** Let the model write a little: what it answers has the digests of its parameters before and after. */
  private write(tokens: number, signal: AbortSignal): Promise<api.Written> {
    return api.generate(
      this.run.info!.name,
      {
        prompt: this.navigator.writing.prompt,
        step: this.navigator.writingStep,
        max_new_tokens: tokens,
        seed: 1,
        ...this.navigator.writing.sampling,
      },
      () => {},
      signal,
    );
  }
}
