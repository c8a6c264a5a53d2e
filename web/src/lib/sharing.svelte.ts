/** Makes what can be shared: a link, a report, a video and a poster. */

import * as api from './api';
import { say, type Piece } from './figure';
import type { Navigator } from './navigator.svelte';
import type { Run } from './run.svelte';
import { chosenFrames, HEIGHT, type Scene, SECONDS, WIDTH } from './timelapse';

export class Sharing {
  /** the film and the poster, before the page */
  showing = $state(false);
  writing = $state(false);
  doing = $state('');
  trouble = $state('');
  done = $state.raw<Piece[]>([]);
  private ending: AbortController | null = null;

  constructor(
    private readonly run: Run,
    private readonly navigator: Navigator,
    private readonly address: () => string,
  ) {}

  get link(): string {
    return `${location.href.split('#')[0]}#${this.address()}`;
  }

  /** Have the studio write a report, and save it. */
  async writeReport(): Promise<void> {
    const { navigator } = this;
    const run = this.run.info!.name;
    const { signal } = (this.ending = new AbortController());
    Object.assign(this, { writing: true, doing: 'looking into the run', trouble: '', done: [] });
    const look = window.setInterval(() => {
      void api.getReport(run).then(
        (state) => (this.doing = state.doing || this.doing),
        () => undefined,
      );
    }, 400);
    try {
      const cell = navigator.cellText;
      const here = navigator.following ? null : navigator.step;
      const { prompt } = navigator.writing;
      const file = await api.postReport(run, { cell, here, prompt }, signal);
      save(file, `${run}.html`);
      const size: Piece = { what: 'bytes', value: file.size, of: 'the report', from: 'the file' };
      this.done = say`${{ text: `${run}.html` }}, ${size}: saved where your browser puts its downloads.`;
    } catch (error) {
      if (!api.isAbort(error)) this.trouble = api.sentence(error);
    }
    clearInterval(look);
    this.writing = false;
  }

  cancel(): void {
    this.ending?.abort();
  }
}

export function save(file: Blob, name: string): void {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(file);
  link.download = name.replace(/[/\\<>:"|?*\p{Cc}]/gu, '_');
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** All that the film and the poster show of the run on the page. */
export async function sceneOf(run: Run, dark: boolean, signal: AbortSignal): Promise<Scene> {
  const { info, film, scales } = run;
  const frames: Scene['frames'] = [];
  for (const number of film ? chosenFrames(film.info.steps.length) : []) {
    const raw = await run.rawFrame(number, signal);
    frames.push({ step: film!.info.steps[number]!, values: () => film!.unfold(raw).values });
  }
  // The curve may come later than the film.
  return {
    run: info!,
    film,
    frames,
    dark,
    scales,
    get curve() {
      return run.curve;
    },
  };
}

/** Whether this browser can turn a canvas into a film; if so, as what. */
export function filmType(): string {
  if (typeof MediaRecorder === 'undefined') return '';
  return (
    ['video/webm;codecs=vp9', 'video/webm;codecs=vp8', 'video/webm', 'video/mp4'].find((type) =>
      MediaRecorder.isTypeSupported(type),
    ) ?? ''
  );
}

/** Record a canvas while something plays on it. */
export async function record(
  canvas: HTMLCanvasElement,
  play: (signal: AbortSignal) => Promise<void>,
  signal: AbortSignal,
): Promise<Blob> {
  const type = filmType();
  const parts: Blob[] = [];
  const recorder = new MediaRecorder(canvas.captureStream(30), { mimeType: type, videoBitsPerSecond: 8_000_000 });
  recorder.ondataavailable = (event) => parts.push(event.data);
  const ended = new Promise((resolve) => (recorder.onstop = resolve));
  recorder.start();
  try {
    await play(signal);
  } finally {
    recorder.stop();
    await ended;
  }
  return new Blob(parts, { type: type.split(';')[0] });
}

export { HEIGHT, SECONDS, WIDTH };
