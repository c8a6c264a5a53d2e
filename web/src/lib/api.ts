/** The only place that speaks with the server; or, in a report, with what the file itself holds. */

import { EventSourceParserStream } from 'eventsource-parser/stream';
import createClient from 'openapi-fetch';
import { inReport, openBundle } from './bundle';
import type { paths } from './schema';
import { token } from './token';
import type { CellMode, Cells, Next, Phases, Sampling, StreamState, Turned } from './types';

export type { Sampling };

/** A refusal of the server, in its own words. */
export class ServerError extends Error {
  constructor(
    readonly status: number,
    sentence: string,
  ) {
    super(sentence);
  }
}

export const isAbort = (error: unknown): boolean => error instanceof DOMException && error.name === 'AbortError';

/** What to tell a person about any error. */
export function sentence(error: unknown): string {
  if (error instanceof ServerError) return error.message;
  if (error instanceof TypeError)
    return 'The studio does not answer. Is it still running? Start it again with: vitrine studio';
  return error instanceof Error ? error.message : String(error);
}

/** Every request passes here: what all of them carry is added here. */
async function send(request: Request): Promise<Response> {
  if (!inReport) return token.send(request);
  const answer = await (await openBundle()).answer(request);
  request.signal.throwIfAborted();
  return answer;
}

// A report answers for itself: the address only has to be one.
const { GET, POST } = createClient<paths>({ baseUrl: inReport ? 'http://report' : '', fetch: send });

interface Answer<T> {
  data?: T;
  error?: unknown;
  response: Response;
}

/** An answer with its headers, if it is no refusal. */
async function whole<T>(asked: Promise<Answer<T>>): Promise<{ data: T; headers: Headers }> {
  const { data, error, response } = await asked;
  if (response.ok) return { data: data as T, headers: response.headers };
  const told = (error as { error?: string } | undefined)?.error ?? `The studio answered with ${response.status}.`;
  const locked = 'This tab has no token for the studio. Open the address that vitrine studio printed.';
  throw new ServerError(response.status, response.status === 401 ? locked : told);
}

const read = async <T>(asked: Promise<Answer<T>>): Promise<T> => (await whole(asked)).data;

const of = (run: string) => ({ path: { run } });

export const getRuns = () => read(GET('/api/runs'));
export const getRun = (run: string, signal?: AbortSignal) => read(GET('/api/runs/{run}', { params: of(run), signal }));
export const getSeries = (
  run: string,
  name: string,
  first: number,
  last: number,
  pixels: number,
  signal?: AbortSignal,
) => read(GET('/api/runs/{run}/series', { params: { ...of(run), query: { name, first, last, pixels } }, signal }));
export const getLayers = (
  run: string,
  statistic: string,
  by: 'part' | 'tensor',
  pixels: number,
  signal?: AbortSignal,
) => read(GET('/api/runs/{run}/layers', { params: { ...of(run), query: { statistic, by, pixels } }, signal }));

/** Numbers of one step. What says that it is of another step, or is not as long as it must be, is not shown. */
async function numbers(asked: Promise<Answer<ArrayBuffer>>, step: number, shape: number[]): Promise<Cells> {
  const { data, headers } = await whole(asked);
  const cells = new Float32Array(data);
  const [at, form] = [Number(headers.get('X-Step')), headers.get('X-Shape')];
  const size = shape.reduce((product, length) => product * length, 1);
  if (at !== step)
    throw new ServerError(
      502,
      `The studio sent numbers of step ${at} where step ${step} was asked for: they are not shown. Reload the page.`,
    );
  if (form !== shape.join(',') || cells.length !== size)
    throw new ServerError(
      502,
      `The studio sent ${cells.length} numbers, ${form}, where ${shape.join(',')} was asked for: they are not shown. Reload the page.`,
    );
  return { step, exact: headers.get('X-Exact') === 'true', numbers: cells };
}

// `v` says which run of this name is meant: what is fixed may then be kept by the browser.
export async function getBirth(run: string, v: string, signal?: AbortSignal): Promise<Float32Array> {
  const params = { ...of(run), query: { v } };
  return new Float32Array(await read(GET('/api/runs/{run}/film/birth', { params, parseAs: 'arrayBuffer', signal })));
}
export const getFrame = (run: string, number: number, v: string, signal?: AbortSignal) => {
  const params = { path: { run, number }, query: { v } };
  return read(GET('/api/runs/{run}/film/{number}', { params, parseAs: 'arrayBuffer', signal }));
};

/** The live picture, or null while there is none. */
export async function getLive(run: string, signal?: AbortSignal): Promise<Cells | null> {
  const asked = GET('/api/runs/{run}/live', { params: of(run), parseAs: 'arrayBuffer', signal });
  const { data, headers } = await whole<ArrayBuffer | undefined>(asked);
  return data ? { step: Number(headers.get('X-Step')), exact: true, numbers: new Float32Array(data) } : null;
}

/** Cells of a tensor: one of each square of `every` x `every` of them. v: which run of this name is meant. */
export interface Window {
  tensor: string;
  every: number;
  row: number;
  column: number;
  rows: number;
  columns: number;
  v: string;
}
export const getTile = (
  run: string,
  query: Window & { step: number; mode: CellMode },
  signal?: AbortSignal,
): Promise<Cells> =>
  numbers(
    GET('/api/runs/{run}/tile', { params: { ...of(run), query }, parseAs: 'arrayBuffer', signal }),
    query.mode === 'birth' ? 0 : query.step,
    [Math.ceil(query.rows / query.every), Math.ceil(query.columns / query.every)],
  );
/** The same of all tensors, one after the other: so many numbers. */
export const getTiles = (
  run: string,
  query: { step: number; mode: CellMode; every: number; v: string },
  size: number,
  signal?: AbortSignal,
): Promise<Cells> =>
  numbers(
    GET('/api/runs/{run}/tiles', { params: { ...of(run), query }, parseAs: 'arrayBuffer', signal }),
    query.mode === 'birth' ? 0 : query.step,
    [size],
  );
/** The places in the flattened tensor of the cells that a window has. */
export async function getPlaces(run: string, query: Window, signal?: AbortSignal): Promise<Uint32Array> {
  const params = { ...of(run), query };
  return new Uint32Array(await read(GET('/api/runs/{run}/picks', { params, parseAs: 'arrayBuffer', signal })));
}

export const getTensor = (run: string, name: string, step: number, signal?: AbortSignal) =>
  read(GET('/api/runs/{run}/tensor', { params: { ...of(run), query: { name, step } }, signal }));

export async function getStep(run: string, n: number, row: number, token: number, signal?: AbortSignal) {
  const params = { path: { run, n }, query: { row, token } };
  const phases = await read(GET('/api/runs/{run}/step/{n}', { params, signal }));
  return { ...phases, exact: proved(phases) };
}
/** Whether a re-run step may be called identical: not on the server's word alone, but by the comparisons that it shows. */
export const proved = ({ exact, compared, differs }: Phases): boolean =>
  exact && compared.length > 0 && compared.every(({ made, equal }) => made === equal) && differs.length === 0;

export const getBiography = (run: string, name: string, step: number, signal?: AbortSignal) =>
  read(GET('/api/runs/{run}/parameter', { params: { ...of(run), query: { name, step } }, signal }));
/** One unit at one token of a row of the step's batch, or at the last of a prompt. */
export const getNeuron = (
  run: string,
  name: string,
  step: number,
  at: { row: number; token: number } | { prompt: string },
  signal?: AbortSignal,
) => read(GET('/api/runs/{run}/neuron', { params: { ...of(run), query: { name, step, ...at } }, signal }));
export const postNudge = (run: string, parameter: string, step: number, sizes: number[], signal?: AbortSignal) =>
  read(POST('/api/runs/{run}/nudge', { params: of(run), body: { parameter, step, sizes }, signal }));
export const getProgress = (run: string, step: number, signal?: AbortSignal) =>
  read(GET('/api/runs/{run}/progress', { params: { ...of(run), query: { step } }, signal }));
/** turned: in a report that can run the model, a parameter with another value. */
export const postNext = (
  run: string,
  prompt: string,
  step: number,
  signal?: AbortSignal,
  turned?: Turned,
): Promise<Next> =>
  read(POST('/api/runs/{run}/next', { params: of(run), body: { prompt, step, ...(turned && { turned }) }, signal }));
/** Such a parameter as the report has it, and the standard deviation of its tensor; null: it has none of this step. */
export const getTurnable = async (step: number, tensor: string, place: number) =>
  (await openBundle()).parameter(step, tensor, place);
export const postReinit = (run: string, seed: number, spread: number, signal?: AbortSignal) =>
  read(POST('/api/runs/{run}/births', { params: of(run), body: { seed, spread }, signal }));
/** What went wrong, by what was recorded: null if nothing did. */
export const getHeadline = (run: string, signal?: AbortSignal) =>
  read(GET('/api/runs/{run}/headline', { params: of(run), signal }));
export const getHealth = (run: string, signal?: AbortSignal) =>
  read(GET('/api/runs/{run}/health', { params: of(run), signal }));
export const getComparison = (run: string[], pixels: number, signal?: AbortSignal) =>
  read(GET('/api/compare', { params: { query: { run, pixels } }, signal }));
export const getHyperparameters = () => read(GET('/api/hyperparameters'));
export const postPlan = (body: Body<'/api/plan'>, signal?: AbortSignal) => read(POST('/api/plan', { body, signal }));
export const postRun = (body: Body<'/api/runs'>) => read(POST('/api/runs', { body }));
export const getStarting = () => read(GET('/api/starting'));
/** Have a report written, as a file. `here`: a step that is kept in full beside those at hand. */
export const postReport = (run: string, body: Body<'/api/runs/{run}/report'>, signal: AbortSignal): Promise<Blob> =>
  read(POST('/api/runs/{run}/report', { params: of(run), body, parseAs: 'blob', signal }));
/** What is being done for a report. */
export const getReport = (run: string) => read(GET('/api/runs/{run}/report', { params: of(run) }));
export const postRequest = (run: string, action: Body<'/api/runs/{run}/requests'>['action']) =>
  read(POST('/api/runs/{run}/requests', { params: of(run), body: { action } }));

type Body<P extends keyof paths> = paths[P] extends {
  post: { requestBody: { content: { 'application/json': infer B } } };
}
  ? B
  : never;

// --- events ------------------------------------------------------------------------------------------------------

/** What the server sends, event by event. */
async function* events<T>(asked: Promise<Answer<ReadableStream<Uint8Array> | null>>): AsyncGenerator<T> {
  const stream = await read(asked);
  const lines = stream!.pipeThrough(new TextDecoderStream() as TransformStream<Uint8Array, string>);
  const reader = lines.pipeThrough(new EventSourceParserStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield JSON.parse(value.data) as T;
  }
}

/** digest: of the parameters, in the memory of who wrote: before and after. */
export interface Written {
  step: number;
  text: string;
  digest: { before: string | null; after: string | null };
}

/** Let the model write; `onText` gets each piece. Resolves when it is done; abort to stop it. */
export async function generate(
  run: string,
  body: { prompt: string; step: number; max_new_tokens: number; seed: number; turned?: Turned } & Sampling,
  onText: (text: string) => void,
  signal: AbortSignal,
): Promise<Written> {
  const asked = POST('/api/runs/{run}/generate', { params: of(run), body, parseAs: 'stream', signal });
  for await (const event of events<Partial<Written> & { done?: boolean; error?: string }>(asked)) {
    if (event.error) throw new ServerError(503, event.error);
    if (event.done) return event as Written;
    if (event.text) onText(event.text);
  }
  throw new ServerError(503, 'The writing broke off. Try it again.');
}

/** What is new of a run, until it is closed; `onBroken` once, when the line breaks. */
export function listen(
  run: string,
  cursor: string,
  onState: (state: StreamState) => void,
  onBroken: () => void,
): () => void {
  const leaving = new AbortController();
  const { signal } = leaving;
  const params = { ...of(run), query: { cursor } };
  const hear = async (): Promise<void> => {
    for await (const state of events<StreamState>(GET('/api/runs/{run}/stream', { params, parseAs: 'stream', signal })))
      if (!signal.aborted) onState(state);
  };
  const broken = (): void => void (signal.aborted || onBroken());
  if (!inReport) hear().then(broken, broken); // in a report nothing more will come
  return () => leaving.abort();
}
