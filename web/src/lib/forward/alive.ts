/**
 * A report that carries the parameters of its run lets the page run the model: predictions after any prompt, and writing.
 * Loaded only where it is used. It imports nothing from the rest of the page, so that it is one script: see
 * vitrine/studio/report/html.py.
 */

import type { filterLogits } from '../sampling';
import type { Next, RunInfo, Sampling, Turned } from '../types';
import { type Cache, emptyCache, type Family, logitsOf, type Model, read, type Shape } from './decoder';
import { Decoder, encode, PromptError, type Tokenizer } from './tokenize';

/** As vitrine/studio/report/parameters.py packs it. */
export interface Head {
  numbers: 'float32' | 'bfloat16';
  steps: number[];
  family: Family;
  tokenizer: Tokenizer;
}

const BUSY_MS = 30; // without letting the page answer
const NOT_FINITE =
  'The model’s logits are not finite: its parameters are damaged, the training diverged, or one was turned too far.';

export class Alive {
  private readonly values: Map<number, Map<string, Float32Array>>;
  private readonly shape: Shape & { vocab_size: number };

  constructor(
    private readonly head: Head,
    parts: Uint8Array[],
    private readonly run: Pick<RunInfo, 'config' | 'tensors'>,
    private readonly filter: typeof filterLogits,
  ) {
    this.shape = run.config.model as unknown as Shape & { vocab_size: number };
    this.values = new Map(head.steps.map((step, i) => [step, this.split(numbersOf(parts[i], head.numbers))]));
  }

  /** The value of one parameter at a step, and the standard deviation of its tensor there. */
  parameter(step: number, tensor: string, place: number): { value: number; std: number } {
    const values = this.values.get(step)!.get(tensor)!;
    const mean = values.reduce((sum, value) => sum + value / values.length, 0);
    const square = values.reduce((sum, value) => sum + (value - mean) ** 2 / values.length, 0);
    return { value: values[place], std: Math.sqrt(square) };
  }

  /** What the studio answers to `next`; `computed`: by this page. */
  async next(prompt: string, step: number, turned: Turned | null, signal: AbortSignal): Promise<Next> {
    const tokens = this.idsOf(prompt);
    const text = new Text(this.model(step, turned));
    return {
      step,
      tokens,
      logits: Array.from(this.finite(await text.begin(tokens, signal))),
      exact: false,
      computed: true,
    };
  }

  /** Continue a prompt, piece by piece: the loop of vitrine/generation/generate.py, with random numbers of its own. */
  async *write(
    prompt: string,
    step: number,
    length: number,
    seed: number,
    sampling: Sampling,
    turned: Turned | null,
    signal: AbortSignal,
  ): AsyncGenerator<string> {
    const ids = this.idsOf(prompt);
    const text = new Text(this.model(step, turned));
    const decoder = new Decoder(this.head.tokenizer);
    let logits = await text.begin(ids, signal);
    for (let i = 0; i < length; i++) {
      const { kept } = this.filter(this.finite(logits), sampling, ids);
      const id = draw(kept, uniform(seed, i));
      if (id === this.head.tokenizer.end) break;
      ids.push(id);
      const piece = decoder.add(id);
      if (piece) yield piece;
      if (i + 1 < length) logits = await text.add(id, signal);
    }
    const rest = decoder.end();
    if (rest) yield rest;
  }

  private model(step: number, turned: Turned | null): Model {
    const tensors = new Map(this.values.get(step)!);
    if (turned) {
      const changed = tensors.get(turned.tensor)!.slice();
      changed[turned.place] = turned.value;
      tensors.set(turned.tensor, changed);
    }
    return { family: this.head.family, shape: this.shape, tensors };
  }

  private idsOf(prompt: string): number[] {
    const ids = encode(this.head.tokenizer, prompt);
    const beyond = ids.find((id) => id >= this.shape.vocab_size);
    if (beyond !== undefined)
      throw new PromptError(
        `The prompt holds the token id ${beyond}, but the model knows ${this.shape.vocab_size} tokens.`,
      );
    return ids;
  }

  /** Of the rows that stand for a token; a padded vocabulary has more. */
  private finite(logits: Float32Array): Float32Array {
    const own = logits.subarray(0, this.head.tokenizer.tokens.length);
    if (!own.every(Number.isFinite)) throw new PromptError(NOT_FINITE);
    return own;
  }

  private split(whole: Float32Array): Map<string, Float32Array> {
    let at = 0;
    return new Map(this.run.tensors.map(({ name, parameters }) => [name, whole.subarray(at, (at += parameters))]));
  }
}

/** One text before the model, with its cache; the same window as vitrine/generation/engine.py has. */
class Text {
  private cache: Cache;
  private window: number[] = [];
  private busySince = performance.now();

  constructor(private readonly model: Model) {
    this.cache = emptyCache(model);
  }

  /** The logits after a whole prompt, of which the last tokens count. */
  begin(ids: number[], signal: AbortSignal): Promise<Float32Array> {
    this.window = ids.slice(-this.model.shape.context);
    this.cache.length = 0;
    return this.readAll(this.window, signal);
  }

  /** The logits after one more token. When the context is full, the older half is let go. */
  add(id: number, signal: AbortSignal): Promise<Float32Array> {
    const { context } = this.model.shape;
    this.window.push(id);
    if (this.window.length <= context) return this.readAll([id], signal);
    return this.begin(this.window.slice(-Math.max(1, Math.floor(context / 2))), signal);
  }

  private async readAll(ids: number[], signal: AbortSignal): Promise<Float32Array> {
    let x = new Float32Array();
    for (const id of ids) {
      if (performance.now() - this.busySince > BUSY_MS) {
        await new Promise((resolve) => setTimeout(resolve));
        this.busySince = performance.now();
      }
      signal.throwIfAborted();
      x = read(this.model, this.cache, id) as Float32Array<ArrayBuffer>;
    }
    return logitsOf(this.model, x);
  }
}

/** The token at which the running sum of the probabilities passes a share of the whole. */
export function draw(probabilities: Float64Array, share: number): number {
  let left = share * probabilities.reduce((sum, p) => sum + p, 0);
  const found = probabilities.findIndex((p) => (left -= p) < 0);
  return found >= 0 ? found : probabilities.findLastIndex((p) => p > 0);
}

/** A number from 0 up to 1, by seed and place only; not the numbers that Python draws. Mixer: C. Wellons, hash-prospector. */
export function uniform(seed: number, place: number): number {
  const mix = (x: number): number => {
    x = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
    x = Math.imul(x ^ (x >>> 15), 0x735a2d97);
    return x ^ (x >>> 15);
  };
  const key = mix(mix(seed >>> 0) + Math.floor(seed / 2 ** 32));
  return (mix(key + Math.imul(place, 0x9e3779b9)) >>> 0) / 2 ** 32;
}

/** Float32 out of their bytes, of which the lowest of all come first; of bfloat16 there are the two highest only. */
function numbersOf(planes: Uint8Array, numbers: Head['numbers']): Float32Array {
  const lacking = numbers === 'bfloat16' ? 2 : 0;
  const count = planes.length / (4 - lacking);
  const bits = new Uint32Array(count);
  for (let plane = 0, at = 0; plane < 4 - lacking; plane++)
    for (let i = 0; i < count; i++) bits[i] |= planes[at++] << (8 * (plane + lacking));
  return new Float32Array(bits.buffer);
}

declare global {
  var vitrineForward: { Alive: typeof Alive } | undefined;
}
// In a report, this script stands in the page, where nothing can import it by name.
globalThis.vitrineForward = { Alive };
