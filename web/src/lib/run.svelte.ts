/** The open run: its description, film, loss curve and colour scales. */

import * as api from './api';
import { inReport } from './bundle';
import { REQUESTS } from './constants';
import { begun, type Curve, longer, NO_CURVE } from './curve';
import { Film, type Picture } from './film';
import { grown } from './growth';
import { measureFilm, readStatistics } from './measure';
import { Scales } from './scales.svelte';
import type { Headline, RunInfo, StreamState, TensorInfo } from './types';
import type { View } from './view.svelte';

const AHEAD = 6; // frames that are read before they are played

export class Run {
  info = $state.raw<RunInfo | null>(null);
  film = $state.raw<Film | null>(null);
  curve = $state.raw<Curve>(NO_CURVE); // of the loss
  rates = $state.raw<Curve>(NO_CURVE); // of the learning rate
  headline = $state.raw<Headline | null>(null); // what went wrong, if something did
  scales = $state.raw(new Scales());
  opening = $state(true);
  private leaving = new AbortController(); // ends what belongs to the run
  private readonly awaited = new Set<number>(); // frames

  constructor(private readonly view: View) {}

  get signal(): AbortSignal {
    return this.leaving.signal;
  }

  tensor(name: string): TensorInfo | undefined {
    return this.info?.tensors.find((tensor) => tensor.name === name);
  }

  /** Leave the run, and read one by its name. What was read of the old one stays until another is shown. */
  read(name: string): Promise<RunInfo> {
    this.leaving.abort();
    this.leaving = new AbortController();
    Object.assign(this, { opening: true, film: null, curve: NO_CURVE, rates: NO_CURVE, headline: null });
    return api.getRun(name, this.signal);
  }

  show(info: RunInfo): void {
    this.scales = new Scales(info.tensors);
    this.info = info;
  }

  /** The same run, read again. */
  renew(info: RunInfo): void {
    const { film } = this;
    if (info.film && film) film.info.steps = info.film.steps;
    this.info = film ? { ...info, film: film.info } : info;
  }

  /** Take in what the stream brings. */
  grow(state: StreamState): void {
    this.curve = longer(
      this.curve,
      state.steps.map(([step, loss]) => [step, loss]),
    );
    this.rates = longer(
      this.rates,
      state.steps.map(([step, , , rate]) => [step, rate]),
    );
    this.info = grown(this.info!, state);
  }

  async loadFilm(): Promise<void> {
    const { signal } = this;
    const info = this.info!;
    if (!info.film) return;
    const birth = await api.getBirth(info.name, info.identity, signal);
    if (signal.aborted) return;
    this.film = new Film(info.film, info.tensors, birth);
    const last = info.film.steps.length - 1;
    if (inReport && last >= 0) measureFilm(this.scales, this.film, await this.frame(last, signal));
  }

  /** One frame of the film. */
  async frame(number: number, signal?: AbortSignal): Promise<Picture> {
    const film = this.film!;
    const raw = await this.rawFrame(number, signal);
    return film.known(number) ?? film.unfold(raw);
  }

  /** The same as it is sent: about a quarter of the bytes. */
  async rawFrame(number: number, signal?: AbortSignal): Promise<ArrayBuffer> {
    const film = this.film!;
    const { name, identity } = this.info!;
    const known = film.raw.get(number);
    if (known) return known;
    const raw = await api.getFrame(name, number, identity, signal);
    film.keep(number, raw);
    return raw;
  }

  /** Read the frames from this one on, which will be shown soon. */
  readAhead(number: number): void {
    const film = this.film!;
    const end = Math.min(number + AHEAD, film.info.steps.length);
    for (let next = number; next < end; next++)
      if (!film.raw.has(next) && !this.awaited.has(next)) {
        this.awaited.add(next);
        this.frame(next, this.signal)
          .catch(() => undefined) // whoever shows it asks again, and says so
          .finally(() => this.awaited.delete(next));
      }
  }

  /** The loss curve, and the learning rate of each step. */
  async loadCurve(): Promise<void> {
    const { signal } = this;
    const { name, steps_made } = this.info!;
    if (!steps_made) return;
    try {
      const [losses, rates] = await Promise.all(
        ['loss', 'learning_rate'].map((of) => api.getSeries(name, of, 0, steps_made, REQUESTS.curve_pixels, signal)),
      );
      if (signal.aborted) return;
      this.curve = begun(losses!, this.curve);
      this.rates = begun(rates!, this.rates);
    } catch (error) {
      this.view.fail(error);
    }
  }

  /** What went wrong so far; errors only. */
  async loadHeadline(): Promise<void> {
    const { signal } = this;
    try {
      const { headline } = await api.getHeadline(this.info!.name, signal);
      if (!signal.aborted) this.headline = headline?.level === 'ill' ? headline : null;
    } catch {
      // the health view says why
    }
  }

  /** What the colours stand for, by what was recorded of the run; it can only grow. */
  async measure(fresh = false): Promise<void> {
    const { signal } = this;
    const info = this.info!;
    if (!info.statistics_every || !info.steps_made) return;
    try {
      const statistics = await readStatistics(info, signal);
      if (!signal.aborted) this.scales.take(statistics, info.steps_made, fresh);
    } catch (error) {
      this.view.fail(error);
    }
  }
}
