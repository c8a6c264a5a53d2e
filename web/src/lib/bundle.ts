/**
 * Answers the page's requests in a report, from the data in the file itself; no network is used. A report is the page in
 * one file with the studio's answers; vitrine/studio/report/bundle.py describes the format.
 */

import type { Alive, Head } from './forward/alive';
import { filterLogits } from './sampling';
import type { RunInfo, Sampling, Turned } from './types';

/** What a report says of itself. */
export interface About {
  run: string;
  /** in full: with their four phases, their exact cells around one cell, and its story */
  steps: number[];
  /** where the page stands at first */
  begin: number;
  cell: string;
  /** the steps at which it can run the model, since it carries their parameters; none: `still` says why */
  alive: number[];
  numbers: '' | 'float32' | 'bfloat16';
  still: string;
  made_s: number;
  /** whether the run was being trained while the report was written */
  training: boolean;
  version: string;
  warning: string;
}

interface Kept {
  path: string;
  query: Record<string, string>;
  body: Record<string, unknown> | null;
  status: number;
  headers: Record<string, string>;
}

const element = (id: string): HTMLElement | null =>
  typeof document === 'undefined' ? null : document.getElementById(id);

/** Whether this page is a report. */
export const inReport: boolean = element('answers') !== null;

let opening: Promise<Bundle> | undefined;

/** What this report holds; read once. */
export function openBundle(): Promise<Bundle> {
  return (opening ??= Bundle.open());
}

/** A refusal in the studio's own shape. */
const refuse = (sentence: string): Response => new Response(JSON.stringify({ error: sentence }), { status: 404 });
const outside = (what: string, run: string): Response =>
  refuse(`${what} Open the run itself, where it was trained: vitrine studio runs/${run}`);

/** What `next` and `generate` are asked; `turned` by this page only. */
interface Asked extends Sampling {
  prompt: string;
  step: number;
  max_new_tokens: number;
  seed: number;
  turned?: Turned;
}

class Bundle {
  private film: Promise<Frames | null> | undefined;
  private model: Promise<Alive> | undefined;
  private info: RunInfo | undefined;

  private constructor(
    readonly about: About,
    private readonly answers: { kept: Kept; content: Uint8Array<ArrayBuffer> }[],
  ) {}

  static async open(): Promise<Bundle> {
    const { head, parts } = await unpack<{ about: About; answers: Kept[] }>('answers');
    return new Bundle(
      head.about,
      head.answers.map((kept, i) => ({ kept, content: parts[i]! })),
    );
  }

  /** The answer to a request, as the studio would give it. */
  async answer(request: Request): Promise<Response> {
    const url = new URL(request.url);
    const path = url.pathname.replace(/^\/api/, '');
    const run = this.about.run;
    const found = /^\/runs\/([^/]+)\/?(.*)$/.exec(path);
    if (found && decodeURIComponent(found[1]!) !== run) return refuse(`This report holds only the run ${run}.`);
    const query = Object.fromEntries(url.searchParams);
    const body = request.method === 'POST' ? ((await request.json()) as Record<string, unknown>) : null;
    if (path === '/compare') return outside('A report holds only one run.', run);
    if (!found) return this.look(path, query, body) ?? outside('A report cannot start or control a training.', run);
    const name = found[2]!;
    if (name === 'live') return new Response(null, { status: 204 });
    if (name.startsWith('film/')) return this.frame(name.slice(5));
    if (name === 'picks') return this.picks(query);
    if (name === 'tiles') return this.tiles(query);
    if (name === 'tile') return (await this.atBirth(query)) ?? this.tile(query);
    if (name === 'next' || name === 'generate')
      return this.look(name, query, body) ?? this.compute(name, body as unknown as Asked, request.signal);
    if (name === 'nudge' && body) delete body.sizes; // those that were measured, whatever is asked for
    return this.look(name, query, body) ?? this.missing(name, query, body);
  }

  /** A parameter of the model that this report runs, and the standard deviation of its tensor. */
  async parameter(step: number, tensor: string, place: number): Promise<{ value: number; std: number } | null> {
    return this.about.alive.includes(step) ? (await this.alive()).parameter(step, tensor, place) : null;
  }

  private alive(): Promise<Alive> {
    return (this.model ??= (async () => {
      const { Alive } = globalThis.vitrineForward ?? (await import('./forward/alive'));
      const { head, parts } = await unpack<Head>('model');
      return new Alive(head, parts, this.run, filterLogits);
    })());
  }

  /** What was not recorded is computed on the page, where the parameters are at hand. */
  private async compute(name: string, asked: Asked, signal: AbortSignal): Promise<Response> {
    const { alive, still, run } = this.about;
    const { prompt, step, turned = null } = asked;
    if (!alive.length) return outside(`This report cannot run the model. ${still}`, run);
    if (!alive.includes(step))
      return outside(
        `This report can run the model at step${alive.length > 1 ? 's' : ''} ${alive.join(' and ')} only.`,
        run,
      );
    const model = await this.alive();
    try {
      if (name === 'next') return new Response(JSON.stringify(await model.next(prompt, step, turned, signal)));
      const pieces = model.write(prompt, step, asked.max_new_tokens, asked.seed, asked, turned, signal);
      return stream(await pieces.next(), pieces, asked);
    } catch (error) {
      if (isRefusal(error)) return refuse(error.message);
      throw error;
    }
  }

  private look(path: string, query: Record<string, string>, body: Record<string, unknown> | null): Response | null {
    const found = this.answers.find(
      ({ kept }) => kept.path === path && same(kept.query, query, WAYS) && same(kept.body ?? {}, body ?? {}, SIZES),
    );
    return found ? respond(found.kept, cut(path, query, found.content)) : null;
  }

  /** Cells from the rectangle that is kept around one cell. */
  private tile(query: Record<string, string>): Response {
    const at = (q: Record<string, string>): number[] =>
      ['row', 'column', 'rows', 'columns'].map((key) => Number(q[key]));
    const [row, column, rows, columns] = at(query) as [number, number, number, number];
    for (const { kept, content } of this.answers) {
      if (
        kept.path !== 'tile' ||
        kept.status !== 200 ||
        (query.every ?? '1') !== '1' ||
        query.mode !== kept.query.mode ||
        query.tensor !== kept.query.tensor
      )
        continue;
      if (query.mode !== 'birth' && query.step !== kept.query.step) continue;
      const [top, left] = at(kept.query) as [number, number];
      const [height, width] = kept.headers['x-shape']!.split(',').map(Number) as [number, number];
      if (row < top || column < left || row + rows > top + height || column + columns > left + width) continue;
      const whole = new Float32Array(content.slice().buffer);
      const part = new Float32Array(rows * columns);
      for (let i = 0; i < rows; i++)
        part.set(whole.subarray((row - top + i) * width + column - left).subarray(0, columns), i * columns);
      return respond({ ...kept, headers: { ...kept.headers, 'x-shape': `${rows},${columns}` } }, part);
    }
    return outside(`This report has exact cells around ${this.about.cell}, at ${this.where()}.`, this.about.run);
  }

  /** Cells of every tensor: kept where there is no film, as values at birth and at the end. */
  private tiles(query: Record<string, string>): Response {
    const at = (step: string): { kept: Kept; content: Uint8Array<ArrayBuffer> } | undefined =>
      this.answers.find(
        ({ kept }) =>
          kept.path === 'tiles' && kept.status === 200 && kept.query.step === step && kept.query.every === query.every,
      );
    const [birth, now] = [at('0'), at(query.mode === 'birth' ? '0' : query.step!)];
    if (!birth || !now || !['birth', 'value', 'learned'].includes(query.mode!))
      return outside('This report has no such picture.', this.about.run);
    if (query.mode !== 'learned') return respond(now.kept, now.content);
    const [first, here] = [birth, now].map(({ content }) => new Float32Array(content.slice().buffer)) as [
      Float32Array,
      Float32Array,
    ];
    return respond(now.kept, here.map((value, i) => value - first[i]!) as Float32Array<ArrayBuffer>);
  }

  /** Which cells of a tensor a window of the film shows. */
  private async picks(query: Record<string, string>): Promise<Response> {
    const { info, film } = await this.movie();
    const every = Number(query.every);
    const of =
      every === 2 ** (info?.value_level ?? -1)
        ? 'values'
        : every === 2 ** (info?.change_level ?? -1)
          ? 'changes'
          : null;
    const tensor = this.run.tensors.find(({ name }) => name === query.tensor);
    if (!tensor || !info || !film || (!of && every !== 1))
      return outside('This report has no such cells.', this.about.run);
    const [, width] = tensor.shape.length === 1 ? [1, tensor.shape[0]!] : [tensor.shape[0]!, tensor.shape[1]!];
    const all = of && new Uint32Array(film.picks.slice().buffer).subarray(startOf(info, of, query.tensor!));
    const [, columns] = of ? info.tensors.find(({ name }) => name === query.tensor)![of] : [0, width];
    return squares(query, (i, j) => (all ? all[i * columns + j]! : i * width + j), Uint32Array);
  }

  /** Cells at birth, where they are asked for as the film has them. */
  private async atBirth(query: Record<string, string>): Promise<Response | null> {
    const { info, film } = await this.movie();
    const every = Number(query.every ?? 1);
    if (query.mode !== 'birth' || !info || !film || every !== 2 ** info.value_level) return null;
    const all = new Float32Array(film.birth.slice().buffer).subarray(startOf(info, 'values', query.tensor!));
    const columns = info.tensors.find(({ name }) => name === query.tensor)!.values[1];
    return squares(query, (i, j) => all[i * columns + j]!, Float32Array);
  }

  private get run(): RunInfo {
    return (this.info ??= JSON.parse(
      new TextDecoder().decode(this.answers.find(({ kept }) => kept.path === '')!.content),
    ) as RunInfo);
  }

  private async movie(): Promise<{ info: RunInfo['film']; film: Frames | null }> {
    const info = this.run.film;
    return { info, film: info && (await (this.film ??= Frames.open(info))) };
  }

  private missing(path: string, query: Record<string, string>, body: Record<string, unknown> | null): Response {
    const { run, cell, steps } = this.about;
    const step = Number(path.startsWith('step/') ? path.slice(5) : (query.step ?? body?.step));
    if (path.startsWith('step/') && steps.includes(step))
      return outside('This report shows the last token of the first window.', run);
    if (Number.isFinite(step) && !steps.includes(step))
      return outside(`This report has ${this.where()} in full; of step ${step}, the curves and the film.`, run);
    if (['parameter', 'nudge', 'neuron', 'tensor'].includes(path))
      return outside(`This report tells the story of ${cell} only.`, run);
    return outside('This was not put into the report.', run);
  }

  private where(): string {
    const { steps } = this.about;
    return steps.length ? `step${steps.length > 1 ? 's' : ''} ${steps.join(', ')}` : 'no step';
  }

  private async frame(name: string): Promise<Response> {
    const { film } = await this.movie();
    if (!film) return refuse('No film was recorded of this run.');
    const content = name === 'picks' ? film.picks : name === 'birth' ? film.birth : film.frame(Number(name));
    if (!content) return refuse(`The film in this report has ${film.steps.length} frames.`);
    const step = name === 'picks' || name === 'birth' ? 0 : film.steps[Number(name)]!;
    return new Response(content, { headers: { 'X-Step': String(step), 'X-Exact': String(name === 'birth') } });
  }
}

/** By its name, since its class is in a script that may not have been loaded. */
const isRefusal = (error: unknown): error is Error => error instanceof Error && error.name === 'PromptError';

/** The events of a text that is being written, as the studio sends them. */
function stream(first: IteratorResult<string>, pieces: AsyncGenerator<string>, { prompt, step }: Asked): Response {
  let text = prompt;
  let next: IteratorResult<string> | null = first;
  const event = (content: object): Uint8Array => new TextEncoder().encode(`data: ${JSON.stringify(content)}\n\n`);
  const body = new ReadableStream<Uint8Array>({
    async pull(controller) {
      try {
        const { done, value } = next ?? (await pieces.next());
        next = null;
        if (!done) {
          text += value;
          controller.enqueue(event({ text: value }));
          return;
        }
        controller.enqueue(event({ done, step, text, digest: { before: null, after: null } }));
      } catch (error) {
        if (!isRefusal(error)) throw error;
        controller.enqueue(event({ error: error.message }));
      }
      controller.close();
    },
    cancel: () => void pieces.return(undefined),
  });
  return new Response(body, { headers: { 'content-type': 'text/event-stream' } });
}

/** Where the picks of a tensor begin, among all: those of the values stand before those of the changes. */
function startOf(info: NonNullable<RunInfo['film']>, of: 'values' | 'changes', name: string): number {
  const count = (key: 'values' | 'changes', upTo: number): number =>
    info.tensors.slice(0, upTo).reduce((sum, t) => sum + t[key][0]! * t[key][1]!, 0);
  const at = info.tensors.findIndex((tensor) => tensor.name === name);
  return (of === 'changes' ? count('values', info.tensors.length) : 0) + count(of, at);
}

/** A window, one number for each of its squares. */
function squares(
  query: Record<string, string>,
  number: (i: number, j: number) => number,
  Kind: typeof Uint32Array | typeof Float32Array,
): Response {
  const [row, column, rows, columns, every] = ['row', 'column', 'rows', 'columns', 'every'].map((key) =>
    Number(query[key]),
  ) as [number, number, number, number, number];
  const [down, across] = [Math.ceil(rows / every), Math.ceil(columns / every)];
  const found = new Kind(down * across);
  for (let i = 0; i < down; i++)
    for (let j = 0; j < across; j++) found[i * across + j] = number(row / every + i, column / every + j);
  return new Response(found, { headers: { 'X-Step': '0', 'X-Exact': 'true', 'X-Shape': `${down},${across}` } });
}

const WAYS = ['v', 'cursor', 'pixels', 'first', 'last']; // of the query: they say how much of an answer, not which
const SIZES = ['sizes'];

function same(kept: Record<string, unknown>, asked: Record<string, unknown>, but: string[]): boolean {
  const keys = new Set([...Object.keys(kept), ...Object.keys(asked)]);
  return [...keys].every((key) => but.includes(key) || kept[key] === asked[key]);
}

const respond = (kept: Kept, content: BodyInit): Response =>
  new Response(content, { status: kept.status, headers: kept.headers });

/** A part of a curve, where one is asked for: it is kept whole. */
function cut(path: string, query: Record<string, string>, content: Uint8Array<ArrayBuffer>): BodyInit {
  const [first, last] = [Number(query.first ?? 0), Number(query.last ?? -1)];
  if (path !== 'series' || (first <= 0 && last < 0)) return content; // layers are kept whole
  const curve = JSON.parse(new TextDecoder().decode(content)) as { steps?: number[]; low: unknown[]; high: unknown[] };
  if (!curve.steps) return content;
  const inside = curve.steps.map((step) => step >= first && (last < 0 || step <= last));
  const part = <T>(list: T[]): T[] => list.filter((_, i) => inside[i]);
  return JSON.stringify({ ...curve, first, steps: part(curve.steps), low: part(curve.low), high: part(curve.high) });
}

/** The film, unfolded into frames as a run has them (docs/run-format.md). */
class Frames {
  private constructor(
    readonly steps: number[],
    readonly picks: Uint8Array<ArrayBuffer>,
    readonly birth: Uint8Array<ArrayBuffer>,
    private readonly frames: Uint8Array<ArrayBuffer>[],
  ) {}

  frame(number: number): Uint8Array<ArrayBuffer> | undefined {
    return this.frames[number];
  }

  static async open(info: NonNullable<RunInfo['film']>): Promise<Frames> {
    const { head, parts } = await unpack<{ frames: number }>('film');
    const sizes = info.tensors.map(({ values: [rows, columns] }) => rows * columns);
    const values = sizes.reduce((sum, size) => sum + size, 0);
    const frames: Uint8Array<ArrayBuffer>[] = [];
    let cells: Int8Array = new Int8Array(values);
    let scales: Float32Array = new Float32Array(sizes.length).fill(1);
    for (let k = 0; k < head.frames; k++) {
      const scale = parts[2 + k]!;
      const packed = parts[2 + head.frames + k]!;
      const now = new Float32Array(scale.slice().buffer);
      const rest = new Int8Array(packed.buffer, packed.byteOffset, values);
      const here = new Int8Array(values);
      let i = 0;
      sizes.forEach((size, t) => {
        const [before, after] = [scales[t]!, now[t]!];
        for (const end = i + size; i < end; i++) here[i] = rest[i]! + foretold(cells[i]!, before, after);
      });
      const frame = new Uint8Array(16 + scale.length + packed.length);
      new DataView(frame.buffer).setBigInt64(0, BigInt(info.steps[k]!), true);
      new DataView(frame.buffer).setUint32(12, frame.length, true);
      frame.set(scale, 16);
      frame.set(packed, 16 + scale.length);
      frame.set(new Uint8Array(here.buffer), 16 + scale.length);
      frames.push(frame);
      [cells, scales] = [here, now];
    }
    return new Frames(info.steps, parts[0]!, parts[1]!, frames);
  }
}

/** The byte of the next frame, if nothing changed but the scale. As in bundle.py, to the bit. */
function foretold(cell: number, before: number, now: number): number {
  const same = Math.floor((cell * before) / now + 0.5);
  return Number.isFinite(same) ? Math.max(-127, Math.min(127, same)) : 0;
}

/** A line of JSON, then the parts whose sizes it gives; compressed, in base64. */
async function unpack<T>(id: string): Promise<{ head: T; parts: Uint8Array<ArrayBuffer>[] }> {
  const text = element(id)?.textContent?.trim() ?? '';
  if (!text) throw new Error('This report is incomplete: it was cut off when it was copied. Get it again.');
  if (typeof DecompressionStream === 'undefined')
    throw new Error('This browser is too old to open the report: use one of 2023 or later.');
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  const whole = new Uint8Array(await new Response(stream).arrayBuffer());
  const end = whole.indexOf(10);
  const { sizes, ...head } = JSON.parse(new TextDecoder().decode(whole.subarray(0, end))) as { sizes: number[] };
  let at = end + 1;
  const parts = sizes.map((size) => whole.slice(at, (at += size)));
  return { head: head as T, parts };
}
