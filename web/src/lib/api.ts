/** The only place that speaks with the server; or, in a report, with what the file itself holds. */

import { inReport, openBundle } from './bundle';
import type {
  Biography,
  Birth,
  CellMode,
  Cells,
  Comparison,
  Health,
  Hyperparameter,
  Layers,
  Neuron,
  Next,
  Nudge,
  Phases,
  Plan,
  Progress,
  RunInfo,
  RunSummary,
  Series,
  Settings,
  StreamState,
  TensorStep,
} from './types';

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

async function ask(path: string, init: RequestInit = {}): Promise<Response> {
  const answer = inReport ? await fromReport(path, init) : await fetch(path, { credentials: 'same-origin', ...init });
  if (answer.ok) return answer;
  let text = `The studio answered with ${answer.status}.`;
  try {
    const body = (await answer.json()) as { error?: string };
    if (body.error) text = body.error;
  } catch {
    // no JSON: the status must do
  }
  if (answer.status === 401) text = 'This tab has no key to the studio. Open the address that vitrine studio printed.';
  throw new ServerError(answer.status, text);
}

async function fromReport(path: string, init: RequestInit): Promise<Response> {
  const answer = await (await openBundle()).answer(path, init);
  init.signal?.throwIfAborted();
  return answer;
}

const json = async <T>(path: string, signal?: AbortSignal): Promise<T> =>
  (await ask(path, { signal })).json() as Promise<T>;

async function post<T>(path: string, body: unknown, signal?: AbortSignal): Promise<T> {
  const headers = { 'Content-Type': 'application/json' };
  return (await ask(path, { method: 'POST', headers, body: JSON.stringify(body), signal })).json() as Promise<T>;
}

const of = (run: string): string => `/api/runs/${encodeURIComponent(run)}`;
const query = (values: Record<string, string | number>): string =>
  new URLSearchParams(Object.entries(values).map(([key, value]) => [key, String(value)])).toString();

export const getRuns = (): Promise<{ runs: RunSummary[] }> => json('/api/runs');
export const getRun = (run: string, signal?: AbortSignal): Promise<RunInfo> => json(of(run), signal);
export const getSeries = (
  run: string,
  name: string,
  first: number,
  last: number,
  pixels: number,
  signal?: AbortSignal,
): Promise<Series> => json(`${of(run)}/series?${query({ name, first, last, pixels })}`, signal);
export const getLayers = (
  run: string,
  statistic: string,
  by: 'part' | 'tensor',
  pixels: number,
  signal?: AbortSignal,
): Promise<Layers> => json(`${of(run)}/layers?${query({ statistic, by, pixels })}`, signal);

/** Numbers of one step. What says that it is of another step, or is not as long as it must be, is not shown. */
async function numbers(path: string, step: number, shape: number[], signal?: AbortSignal): Promise<Cells> {
  const answer = await ask(path, { signal });
  const cells = new Float32Array(await answer.arrayBuffer());
  const [at, form] = [Number(answer.headers.get('X-Step')), answer.headers.get('X-Shape')];
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
  return { step, exact: answer.headers.get('X-Exact') === 'true', numbers: cells };
}

// `version` says which run of this name is meant: what is fixed may then be kept by the browser.
export async function getBirth(run: string, version: string, signal?: AbortSignal): Promise<Float32Array> {
  return new Float32Array(
    await (await ask(`${of(run)}/film/birth?${query({ v: version })}`, { signal })).arrayBuffer(),
  );
}
export async function getFrame(
  run: string,
  number: number,
  version: string,
  signal?: AbortSignal,
): Promise<ArrayBuffer> {
  return (await ask(`${of(run)}/film/${number}?${query({ v: version })}`, { signal })).arrayBuffer();
}

/** The live picture, or null while there is none. */
export async function getLive(run: string, signal?: AbortSignal): Promise<Cells | null> {
  const answer = await ask(`${of(run)}/live`, { signal });
  if (answer.status === 204) return null;
  return {
    step: Number(answer.headers.get('X-Step')),
    exact: true,
    numbers: new Float32Array(await answer.arrayBuffer()),
  };
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
  window: Window & { step: number; mode: CellMode },
  signal?: AbortSignal,
): Promise<Cells> =>
  numbers(
    `${of(run)}/tile?${query({ ...window })}`,
    window.mode === 'birth' ? 0 : window.step,
    squaresOf(window),
    signal,
  );
/** The same of all tensors, one after the other: so many numbers. */
export const getTiles = (
  run: string,
  asked: { step: number; mode: CellMode; every: number; v: string },
  size: number,
  signal?: AbortSignal,
): Promise<Cells> =>
  numbers(`${of(run)}/tiles?${query({ ...asked })}`, asked.mode === 'birth' ? 0 : asked.step, [size], signal);
/** The places in the flattened tensor of the cells that a window has. */
export async function getPlaces(run: string, window: Window, signal?: AbortSignal): Promise<Uint32Array> {
  return new Uint32Array(await (await ask(`${of(run)}/picks?${query({ ...window })}`, { signal })).arrayBuffer());
}
const squaresOf = ({ rows, columns, every }: Window): number[] => [Math.ceil(rows / every), Math.ceil(columns / every)];

export const getTensor = (run: string, name: string, step: number, signal?: AbortSignal): Promise<TensorStep> =>
  json(`${of(run)}/tensor?${query({ name, step })}`, signal);

export async function getStep(
  run: string,
  step: number,
  row: number,
  token: number,
  signal?: AbortSignal,
): Promise<Phases> {
  const phases = await json<Phases>(`${of(run)}/step/${step}?${query({ row, token })}`, signal);
  return { ...phases, exact: proved(phases) };
}
/** Whether a re-run step may be called identical: not on the server's word alone, but by the comparisons that it shows. */
export const proved = ({ exact, compared, differs }: Phases): boolean =>
  exact && compared.length > 0 && compared.every(({ made, equal }) => made === equal) && differs.length === 0;

export const getBiography = (run: string, name: string, step: number, signal?: AbortSignal): Promise<Biography> =>
  json(`${of(run)}/parameter?${query({ name, step })}`, signal);
export const getNeuron = (
  run: string,
  name: string,
  step: number,
  row: number,
  token: number,
  signal?: AbortSignal,
): Promise<Neuron> => json(`${of(run)}/neuron?${query({ name, step, row, token })}`, signal);
export const postNudge = (
  run: string,
  parameter: string,
  step: number,
  sizes: number[],
  signal?: AbortSignal,
): Promise<Nudge> => post(`${of(run)}/nudge`, { parameter, step, sizes }, signal);
export const getProgress = (run: string, step: number, signal?: AbortSignal): Promise<Progress> =>
  json(`${of(run)}/progress?${query({ step })}`, signal);
export const postNext = (run: string, prompt: string, step: number, signal?: AbortSignal): Promise<Next> =>
  post(`${of(run)}/next`, { prompt, step }, signal);
export const postBirth = (run: string, seed: number, spread: number, signal?: AbortSignal): Promise<Birth> =>
  post(`${of(run)}/births`, { seed, spread }, signal);
export const getHealth = (run: string, signal?: AbortSignal): Promise<Health> => json(`${of(run)}/health`, signal);
export const getComparison = (runs: string[], pixels: number, signal?: AbortSignal): Promise<Comparison> =>
  json(
    `/api/compare?${new URLSearchParams([...runs.map((run) => ['run', run]), ['pixels', String(pixels)]]).toString()}`,
    signal,
  );
export const getHyperparameters = (): Promise<{
  hyperparameters: Hyperparameter[];
  presets: Record<string, Settings>;
}> => json('/api/hyperparameters');
export const postPlan = (body: unknown, signal?: AbortSignal): Promise<Plan> => post('/api/plan', body, signal);
export const postRun = (body: unknown): Promise<{ name: string; started: boolean }> => post('/api/runs', body);
export const getStarting = (): Promise<{ starting: { name: string; error: string | null }[] }> => json('/api/starting');
/** Have a report written, as a file. `here`: a step that is kept in full beside those at hand. */
export async function postReport(
  run: string,
  body: { cell: string; here: number | null; prompt: string },
  signal: AbortSignal,
): Promise<Blob> {
  const headers = { 'Content-Type': 'application/json' };
  return (await ask(`${of(run)}/report`, { method: 'POST', headers, body: JSON.stringify(body), signal })).blob();
}
/** What is being done for a report. */
export const getReport = (run: string): Promise<{ doing: string }> => json(`${of(run)}/report`);
export const postRequest = (run: string, action: string): Promise<{ acknowledged: boolean }> =>
  post(`${of(run)}/requests`, { action });

export interface Sampling {
  temperature: number;
  top_k: number;
  top_p: number;
  min_p: number;
  repetition_penalty: number;
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
  body: { prompt: string; step: number; max_new_tokens: number; seed: number } & Sampling,
  onText: (text: string) => void,
  signal: AbortSignal,
): Promise<Written> {
  const headers = { 'Content-Type': 'application/json' };
  const answer = await ask(`${of(run)}/generate`, { method: 'POST', headers, body: JSON.stringify(body), signal });
  const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new ServerError(503, 'The writing broke off. Try it again.');
    waiting += value;
    const events = waiting.split('\n\n');
    waiting = events.pop()!;
    for (const event of events) {
      const line = event.split('\n').find((part) => part.startsWith('data: '));
      if (!line) continue;
      const data = JSON.parse(line.slice(6)) as Partial<Written> & { done?: boolean; error?: string };
      if (data.error) throw new ServerError(503, data.error);
      if (data.done) return data as Written;
      if (data.text) onText(data.text);
    }
  }
}

/** What is new of a run, until it is closed; `onBroken` once, when the line breaks. */
export function listen(
  run: string,
  cursor: string,
  onState: (state: StreamState) => void,
  onBroken: () => void,
): () => void {
  if (inReport) return () => undefined; // nothing more will come
  const source = new EventSource(`${of(run)}/stream?${query({ cursor })}`, { withCredentials: true });
  source.onmessage = (event: MessageEvent<string>) => onState(JSON.parse(event.data) as StreamState);
  source.onerror = () => {
    source.close();
    onBroken();
  };
  return () => source.close();
}
