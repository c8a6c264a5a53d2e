/**
 * The page: its parts, made once and handed to every component by Svelte's context, and what concerns all of them:
 * opening a run, the address, and the line to a run that trains.
 */

import { createContext } from 'svelte';
import { readAddress, writeAddress } from './address';
import * as api from './api';
import { type About, inReport, openBundle } from './bundle';
import { Camera } from './camera.svelte';
import { Dropped } from './dropped.svelte';
import { Line } from './line.svelte';
import { Navigator } from './navigator.svelte';
import { Opening } from './opening.svelte';
import { Preferences } from './preferences.svelte';
import { Run } from './run.svelte';
import { Sharing } from './sharing.svelte';
import { token } from './token';
import { Tour } from './tour.svelte';
import type { RunInfo, RunSummary, StreamState } from './types';
import { View } from './view.svelte';

export class Page {
  runs = $state.raw<RunSummary[]>([]);
  report = $state.raw<About | null>(null); // what this file says of itself, if the page is a report

  readonly preferences = new Preferences();
  readonly view = new View();
  readonly run = new Run(this.view);
  readonly navigator = new Navigator(this.run, this.view, this.preferences, () => this.reopen());
  readonly camera = new Camera();
  readonly opening = new Opening();
  readonly tour = new Tour(this.run, this.navigator, this.view);
  readonly dropped = new Dropped(this.run, this.view);
  readonly sharing = new Sharing(this.run, this.navigator, () => this.address);
  readonly line = new Line({
    run: () => this.run.info,
    news: (state) => this.grow(state),
    back: (info) => this.regain(info),
  });

  private reading = 0;

  async start(): Promise<void> {
    this.preferences.listen();
    document.addEventListener('visibilitychange', () => this.line.attend());
    // The address in the event, since the page's own may stand in the bar by now.
    window.addEventListener('hashchange', (event) => this.leave(new URL(event.newURL).hash));
    token.arrived = () => this.admitted();
    try {
      if (inReport) this.report = (await openBundle()).about;
      this.runs = (await api.getRuns()).runs;
      await this.readAddress();
    } catch (error) {
      this.view.fail(error);
    }
    this.run.opening = false;
  }

  /** An address was typed or clicked: the studio's own with a new token, or another place of the page. */
  private leave(hash: string): void {
    if (token.take(hash) === null) void this.readAddress(hash);
    else {
      history.replaceState(null, '', `#${this.written}`);
      this.admitted();
    }
  }

  /** There is a new token: what was refused without it is asked for again. */
  private admitted(): void {
    if (!this.run.info) location.reload();
    else if (this.line.broken) void this.line.look(0);
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
    return this.run.info ? writeAddress(this.run.info, this.view, this.navigator) : '';
  }

  keepAddress(address: string): void {
    if (!address || address === this.written) return;
    this.written = address;
    history.replaceState(null, '', `#${address}`);
  }

  private async readAddress(hash = location.hash): Promise<void> {
    const text = hash.slice(1);
    if (text === this.written && this.run.info) return;
    this.written = text;
    const parts = new URLSearchParams(text);
    const name = parts.get('run') ?? this.newest();
    if (!name) return;
    if (name !== this.run.info?.name) await this.open(name, parts);
    else this.take(parts, this.run.info);
  }

  private newest(): string | undefined {
    return [...this.runs].sort((a, b) => Number(b.training) - Number(a.training) || b.modified_s - a.modified_s)[0]
      ?.name;
  }

  /** Stand where an address says. */
  private take(parts: URLSearchParams, info: RunInfo): void {
    const { step, prompt, sampling, ...place } = readAddress(parts, info);
    const { writing } = this.navigator;
    Object.assign(this.view, place);
    if (prompt !== null) writing.prompt = prompt;
    Object.assign(writing.sampling, sampling);
    if (info.training && typeof step !== 'number') this.navigator.follow();
    else this.navigator.go(typeof step === 'number' ? step : (this.report?.begin ?? info.steps_made));
    void this.navigator.cells.load(); // of another mode or cell, although the step may be the same
  }

  // --- a run ---------------------------------------------------------------------------------------------------

  async open(name: string, parts = new URLSearchParams()): Promise<void> {
    const { run, view, navigator, line } = this;
    navigator.clear();
    line.begin();
    view.trouble = '';
    const { step } = navigator;
    const reading = run.read(name);
    const { signal } = run;
    try {
      const info = await reading;
      if (signal.aborted) return;
      if (run.info?.name === name && navigator.step !== step) parts.set('step', String(navigator.step)); // gone there meanwhile
      run.show(info);
      navigator.writing.begin(info);
      this.take(parts, info);
      void run.loadCurve();
      void run.loadHeadline();
      const measured = run.measure(true);
      if (inReport) await measured;
      await this.loadFilm();
      if (signal.aborted) return;
      line.attend();
      view.said = `${name}: ${info.parameters} learned numbers, ${info.steps_made} steps made.`;
    } catch (error) {
      if (!signal.aborted) this.unopened(name, error);
    }
    if (!signal.aborted) run.opening = false;
  }

  /** The run was resumed, or made anew. */
  reopen(): void {
    void this.open(this.run.info!.name, new URLSearchParams(this.address));
  }

  /** A run that was shown is waited for; of another, only the reason is left. */
  private unopened(name: string, error: unknown): void {
    if (this.run.info?.name === name) {
      void this.line.look(0);
      return;
    }
    this.run.info = null;
    this.view.trouble = api.sentence(error);
    void this.refreshRuns();
  }

  private async loadFilm(): Promise<void> {
    await this.run.loadFilm();
    if (!this.navigator.following) this.navigator.showNearest();
  }

  // --- the stream ----------------------------------------------------------------------------------------------

  private grow(state: StreamState): void {
    const { run, navigator } = this;
    const before = run.info!;
    if (state.identity && state.identity !== before.identity) {
      this.reopen();
      return;
    }
    run.grow(state);
    if (navigator.following) navigator.step = state.steps_made;
    const kept = state.evaluations?.length || state.film_steps?.length || !before.film;
    const ended = before.training && !state.training;
    if (ended || (state.steps_made > before.steps_made && kept)) void this.reread(ended);
  }

  /** The line is whole again. */
  private regain(info: RunInfo): void {
    const { run, navigator, view } = this;
    view.said = 'The studio is back.';
    view.trouble = '';
    if (info.identity !== run.info!.identity || (info.film && !run.film)) {
      this.reopen();
      return;
    }
    this.line.attend();
    if (!navigator.following && navigator.opened?.step !== navigator.step) navigator.go(navigator.step);
    void this.reread();
  }

  /** Read the run's keyframes and result again. ended: it trained until now. Of several readings, the last one counts. */
  private async reread(ended = false): Promise<void> {
    const { run, navigator, view } = this;
    const { signal } = run;
    const reading = ++this.reading;
    try {
      const info = await api.getRun(run.info!.name, signal);
      if (signal.aborted || reading !== this.reading) return;
      if (navigator.following) navigator.step = info.steps_made;
      run.renew(info);
      void run.measure();
      void run.loadHeadline();
      if (!info.training) {
        if (ended || navigator.following) view.said = `${info.name} has ended after ${info.steps_made} steps.`;
        if (navigator.following) navigator.go(info.steps_made);
      }
      if (!run.film && info.film) await this.loadFilm();
      const { following, writing, writingStep } = navigator;
      if (following && writing.next?.step !== writingStep) void writing.ask();
    } catch (error) {
      view.fail(error);
    }
  }
}

/** The page, in any component: `const { run, view } = usePage();` */
export const [usePage, setPage] = createContext<Page>();
