/** Where the tour stands, what was answered and done, and what is measured for it: always for where the page stands. */

import * as api from './api';
import { rowsOf } from './address';
import { stations } from './stations';
import { studio } from './studio.svelte';
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

const LARGEST = 65536; // cells in one tile
const MOST_STEPS = 10_000; // of a curve at full resolution
const CHAT = 24; // tokens, to see that writing changes nothing

/** How a fact is measured, and what it is of: with another key it is another fact. A key of null: not yet. */
type Measure<K extends FactName> = { key: () => string | null; measure: (signal: AbortSignal) => Promise<Values[K]> };

class Tour {
  births = $state.raw<Birth[]>([]);
  trouble = $state('');
  flashed = $state<{ target: Target; number: number } | null>(null);
  private answered = $state<Record<string, number>>({});
  private doneTasks = $state<Record<string, boolean>>({});
  private known = $state.raw<Partial<Record<FactName, { key: string; value: unknown }>>>({});
  private asking = new Map<FactName, { key: string; leave: AbortController }>();
  private last = '';
  private looked: { identity: string; step: number } | null = null;
  /** how the page stood when the station began: what a task asks for is a change of it */
  private began = { temperature: 0, prompt: '', token: 0, row: 0, step: 0 };

  get stop() {
    return readStop(studio.tour);
  }
  get station(): Station | null {
    const stop = this.stop;
    return stop && stop.number > 0 ? stations[stationOf(stop) - 1]! : null;
  }
  private get place(): string {
    const stop = this.stop;
    return `${studio.run?.identity}/${stop ? stationOf(stop) : 0}`;
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
    studio.tour = studio.tour ? '' : 'start';
  }
  begin(short: boolean): void {
    studio.tour = writeStop({ short, number: 1 });
  }
  move(by: number): void {
    const stop = this.stop;
    if (!stop || stop.number === 0) return;
    const number = stop.number + by;
    if (number >= 1 && number <= lengthOf(stop)) studio.tour = writeStop({ ...stop, number });
    else if (number > lengthOf(stop)) this.leave();
    else studio.tour = 'start';
  }
  leave(): void {
    this.last = '';
    this.looked = null;
    studio.tour = '';
  }

  /** Put the page where the station speaks of. */
  enter(): void {
    const [station, run] = [this.station, studio.run];
    if (!station || !run) return;
    const { stand } = station;
    studio.stop();
    this.trouble = '';
    if (this.last === 'made' && !studio.following && !studio.atEnd)
      this.looked = { identity: run.identity, step: studio.step };
    if (stand.step === 'birth') studio.go(0);
    else if (stand.step === 'end') {
      if (run.training) studio.follow();
      else studio.go(run.steps_made);
    } else if (stand.step === 'made') this.goToMade();
    this.last = stand.step;
    if (stand.phase !== undefined) studio.phase = stand.phase;
    const cell = studio.tensor(studio.cell.name);
    if (
      this.stop &&
      [1, 7, 8].includes(stationOf(this.stop)) &&
      !(cell && cell.name.startsWith('blocks.') && cell.shape.length === 2)
    ) {
      const other =
        run.tensors.find((tensor) => tensor.name === 'blocks.0.attention.query.weight') ??
        run.tensors.find((tensor) => tensor.shape.length === 2)!;
      studio.select({ name: other.name, row: 3, column: 7 }, false);
    }
    if (stand.mode) studio.setMode(stand.mode);
    studio.view = stand.view;
    if (stand.side) studio.side = stand.side;
    this.began = {
      temperature: studio.writing.sampling.temperature,
      prompt: studio.writing.prompt,
      token: studio.token,
      row: studio.row,
      step: studio.step,
    };
    studio.said = `Tour, station ${this.stop!.number} of ${lengthOf(this.stop!)}: ${station.title}.`;
  }

  /** All stations that look into a step look into the same one: where the page stood, or where the last of them left it. */
  private goToMade(): void {
    if (this.looked?.identity === studio.run!.identity) studio.go(this.looked.step);
    else if (studio.following || studio.atEnd) studio.go(this.fitting());
  }

  /** A step that was made, of a keyframe if there is one: such a step is there at once. About a third of the way. */
  private fitting(): number {
    const run = studio.run!;
    const made = run.keyframes.filter((step) => step > 0 && step < run.steps_made);
    const wish = run.steps_made / 3;
    return made.length ? made.reduce((best, step) => (Math.abs(step - wish) < Math.abs(best - wish) ? step : best)) : 0;
  }

  /** Show where a number stands: the view that has it, and a ring around it. */
  show(target: Target): void {
    const place = TARGETS[target] as { view?: typeof studio.view; side?: typeof studio.side };
    if (place.view) studio.view = place.view;
    if (place.side) studio.side = place.side;
    this.flashed = { target, number: (this.flashed?.number ?? 0) + 1 };
  }

  // --- tasks ---------------------------------------------------------------------------------------------------

  /** Whether what the station asks for has been done; once done, it stays so. */
  look(): void {
    const stop = this.stop;
    if (!stop || stop.short || stop.number === 0 || this.done) return;
    if (this.tried(stationOf(stop))) {
      this.doneTasks[this.place] = true;
      studio.said = 'Done.';
    }
  }

  private tried(number: number): boolean {
    const { began } = this;
    const has = (selector: string): boolean => document.querySelector(selector) !== null;
    const kind = studio.tensor(studio.cell.name)?.kind;
    const slider = document.querySelector<HTMLInputElement>('[data-nudge] ~ input[type=range]');
    const seeds = this.births.filter((birth) => birth.spread === 1).map((birth) => birth.seed);
    const spreads = this.births.map((birth) => birth.spread);
    const { writing } = studio;
    return [
      () => has('[data-neuron]'),
      () => kind === 'bias' || kind === 'gain',
      () => writing.sampling.temperature !== began.temperature,
      () => seeds.join().includes('1,2,1') && spreads.includes(0) && spreads.includes(50),
      () =>
        writing.prompt !== began.prompt &&
        writing.prompt !== this.fact('bet')?.prompt &&
        writing.next?.step === studio.writingStep,
      () => studio.token !== began.token || studio.row !== began.row,
      () => slider !== null && Number(slider.value) !== 0,
      () => studio.step !== began.step,
      () => studio.playing,
    ][number - 1]!();
  }

  async bear(seed: number, spread: number): Promise<void> {
    const run = studio.run!;
    try {
      const birth = await api.postBirth(run.name, seed, spread);
      if (studio.run === run || studio.run?.identity === run.identity) this.births = [...this.births, birth].slice(-8);
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
    const { run, cell, step, opened, writing } = studio;
    const tensor = studio.tensor(cell.name);
    if (!run || !tensor) return null;
    const names = Object.keys(this.measures) as FactName[];
    const facts = Object.fromEntries(names.map((name) => [name, this.fact(name)]));
    const next = writing.next?.step === studio.writingStep ? writing.next : null;
    return {
      run,
      step,
      cell,
      address: studio.cellText,
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
    return station ? [...station.needs, ...(this.answer !== undefined ? (station.reveals ?? []) : [])] : [];
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
      key: () => here(studio.cellText),
      measure: (signal) => api.getBiography(studio.run!.name, studio.cellText, studio.step, signal),
    },
    neuron: {
      key: () => here(studio.cellText, studio.row, studio.opened?.forward.token),
      measure: (signal) =>
        api.getNeuron(
          studio.run!.name,
          `${studio.cell.name.replace(/\.weight$/, '')}[${studio.cell.row}]`,
          studio.step,
          studio.row,
          studio.opened!.forward.token,
          signal,
        ),
    },
    nudge: {
      key: () => here(studio.cellText),
      measure: (signal) =>
        api.postNudge(
          studio.run!.name,
          studio.cellText,
          studio.step,
          [0.1 * (studio.scales.of(studio.cell.name, 'value').full || 0.1)],
          signal,
        ),
    },
    newborn: {
      key: () => studio.run?.identity ?? null,
      measure: (signal) => api.postBirth(studio.run!.name, Number(studio.run!.config.training?.seed ?? 0), 1, signal),
    },
    spread: {
      key: () => `${studio.run?.identity}/${studio.cell.name}`,
      measure: async (signal) => {
        const { numbers } = await tile(studio.cell.name, 0, 'birth', signal);
        return { std: deviation(numbers), cells: numbers.length };
      },
    },
    doubled: { key: () => studio.run?.identity ?? null, measure: doubled },
    bet: { key: () => studio.run?.identity ?? null, measure: bet },
    digest: {
      key: () => `${studio.run?.identity}/${studio.writingStep}/${studio.writing.prompt}`,
      measure: async (signal) => (await write(1, signal)).digest.before,
    },
    share: {
      key: () => here(studio.cell.name),
      measure: async (signal) => {
        const { name } = studio.cell;
        const [gradient, moved] = await Promise.all([
          tile(name, studio.step, 'gradient', signal),
          tile(name, studio.step, 'update', signal),
        ]);
        return against(gradient.numbers, moved.numbers, gradient.numbers.length === studio.tensor(name)!.parameters);
      },
    },
    rises: {
      key: () => `${studio.run?.identity}/${studio.run?.steps_made}`,
      measure: async (signal) =>
        rises(
          (
            await api.getSeries(
              studio.run!.name,
              'loss',
              0,
              Math.min(studio.run!.steps_made, MOST_STEPS) - 1,
              MOST_STEPS,
              signal,
            )
          ).low,
        ),
    },
    chat: {
      key: () => `${studio.run?.identity}/${studio.writingStep}`,
      measure: async (signal) => ({ tokens: CHAT, ...(await write(CHAT, signal)).digest }),
    },
  };
}

/** A key for what belongs to the step that is open. */
function here(...parts: unknown[]): string | null {
  return studio.run && studio.opened?.step === studio.step
    ? [studio.run.identity, studio.step, ...parts].join('/')
    : null;
}

/** The cells of a tensor, or as many rows of it as one answer takes. */
function tile(name: string, step: number, mode: 'birth' | 'gradient' | 'update', signal: AbortSignal) {
  const tensor = studio.tensor(name)!;
  const columns = Math.min(tensor.shape.at(-1)!, LARGEST);
  const rows = Math.min(rowsOf(tensor), Math.max(1, Math.floor(LARGEST / columns)));
  return api.getTile(
    studio.run!.name,
    { tensor: name, step, mode, every: 1, v: studio.run!.identity, row: 0, column: 0, rows, columns },
    signal,
  );
}

/** Plans of this very model, on some of its text and on twice as much. */
async function doubled(signal: AbortSignal): Promise<Values['doubled']> {
  const run = studio.run!;
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

/** A prompt out of the run's own text, and what the model bets on. */
async function bet(signal: AbortSignal): Promise<Values['bet']> {
  const run = studio.run!;
  const step = run.keyframes.filter((known) => known < run.steps_made).at(-1) ?? 0;
  const phases = await api.getStep(run.name, step, 0, -1, signal);
  const { tokens, probabilities, batch } = phases.forward;
  if (!run.vocab) return { prompt: tokens.join('').trimStart(), step, next: null, likely: probabilities };
  const text = batch[0]![0]!.trimStart().slice(0, 24);
  const prompt = text.includes(' ') ? text.slice(0, text.lastIndexOf(' ') + 3) : text;
  return { prompt, step, next: await api.postNext(run.name, prompt, studio.writingStep, signal), likely: [] };
}

/** Let the model write a little: what it answers has the digests of its parameters before and after. */
const write = (tokens: number, signal: AbortSignal): Promise<api.Written> =>
  api.generate(
    studio.run!.name,
    {
      prompt: studio.writing.prompt,
      step: studio.writingStep,
      max_new_tokens: tokens,
      seed: 1,
      ...studio.writing.sampling,
    },
    () => {},
    signal,
  );

export const tour = new Tour();
