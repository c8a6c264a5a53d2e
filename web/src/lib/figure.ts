/** The quantities that the page shows, and how each is written: the same digits wherever it stands. */

import { count, exact, plain, seconds, signed as withSign, tokenWord } from './text';
import type { CellMode, Evaluation } from './types';

interface Quantity {
  unit?: string;
  /**
   * How it is written: in whole numbers, in full, as a share of a hundred (a ratio: up to 1; above, as times), in
   * seconds, minutes or hours, in MB or GB, or with so many digits that count.
   */
  as: 'whole' | 'exact' | 'hyper' | 'percent' | 'ratio' | 'time' | 'bytes' | number;
  /** Where it comes from, in words. */
  from?: string;
}

const RECORDED = 'recorded during training';
const REPLAYED = 'the step was run again';
const PROBED = 'a probing pass over the step’s batch';
const CHOSEN = 'chosen before training';

/** Every quantity by its name, which is also what the reader is told. */
export const QUANTITIES = {
  // --- counted ---
  step: { as: 'whole' },
  'number of': { as: 'whole' },
  parameters: { as: 'whole', from: 'the tensors of the run' },
  tokens: { as: 'whole' },
  place: { as: 'whole' }, // of a row, a column, a token: counted from 0
  // --- chosen ---
  hyperparameter: { as: 'hyper', from: CHOSEN },
  'hyperparameter, a share': { as: 'percent', from: CHOSEN },
  'limit of the hyperparameter': { as: 'hyper', from: 'what Vitrine accepts' },
  'decoding setting': { as: 'exact', from: 'chosen on this page' },
  seed: { as: 'whole', from: CHOSEN },
  'times the standard deviation': { as: 3, from: 'chosen on this page' },
  // --- one parameter ---
  parameter: { as: 'exact', from: REPLAYED },
  'parameter at birth': { as: 'exact', from: 'drawn from the seed, before the first step' },
  'change since birth': { as: 'exact', from: 'the parameter − the parameter at birth' },
  gradient: { unit: 'loss per unit', as: 4, from: REPLAYED },
  update: { as: 4, from: REPLAYED },
  'optimizer state': { as: 4, from: REPLAYED },
  'root mean square': { as: 4, from: 'of neighbouring cells' },
  'update of plain SGD': { as: 4, from: 'learning rate × gradient' },
  'term of the rule': { as: 4, from: 'the optimizer’s rule, for this parameter alone' },
  'update by the rule': { as: 4, from: 'the optimizer’s rule, in double precision' },
  'gradient in double precision': { unit: 'loss per unit', as: 4, from: 'the step was run again in double precision' },
  'change of the parameter': { as: 3, from: 'chosen on this page' },
  'change of the loss': { unit: 'nats per token', as: 3, from: 'the loss of the batch, measured again' },
  'change of the loss by the gradient': { unit: 'nats per token', as: 3, from: 'gradient × change of the parameter' },
  // --- one neuron ---
  activation: { as: 4, from: PROBED },
  product: { as: 4, from: 'input × weight' },
  'output of the neuron': { as: 4, from: 'the products and the bias, added up' },
  'output in training': { as: 4, from: PROBED },
  // --- losses ---
  'loss of the batch': { unit: 'nats per token', as: 4, from: RECORDED },
  'loss of the batch, again': { unit: 'nats per token', as: 4, from: 'the same batch, after the update' },
  'loss of the next batch': { unit: 'nats per token', as: 4, from: 'the next batch, after the update' },
  'loss of a token': { unit: 'nats', as: 4, from: REPLAYED },
  'loss of guessing': { unit: 'nats per token', as: 4, from: 'ln of the number of tokens' },
  'loss before training': { unit: 'nats per token', as: 4, from: 'initialised again, on the first batch' },
  'validation loss, sampled': { unit: 'nats per token', as: 4, from: 'a part of the validation text' },
  'validation loss': { unit: 'nats per token', as: 4, from: 'the whole validation text' },
  'validation loss, last measured': { unit: 'nats per token', as: 4, from: 'all or a part of the validation text' },
  'training loss': { unit: 'nats per token', as: 4, from: RECORDED },
  'bits per byte': { unit: 'bits per byte', as: 4, from: 'the whole validation text' },
  // --- the model, a tensor, a part ---
  'norm of the gradient': { as: 4, from: RECORDED },
  'norm of the gradient, clipped': { as: 4, from: RECORDED },
  'norm of the update': { as: 4, from: REPLAYED },
  'norm of the parameters': { as: 4, from: REPLAYED },
  'update ÷ parameters': { as: 'ratio', from: 'norm of the update ÷ norm of the parameters' },
  'norm of the residual stream': { as: 3, from: PROBED },
  'standard deviation': { as: 3 },
  'learning rate': { as: 4, from: 'the schedule, at this step' },
  share: { as: 'percent' },
  statistic: { as: 3, from: RECORDED },
  // --- predictions ---
  probability: { as: 'percent', from: 'the model’s probabilities' },
  'probability of the lens': { as: 'percent', from: PROBED },
  'largest difference': { as: 2, from: 'the probing pass against training’s own logits' },
  // --- colours, sizes, times ---
  'full colour': { as: 2, from: 'the colour scale of this picture' },
  tick: { as: 3, from: 'the axis of this plot' },
  duration: { unit: 's', as: 'time' },
  bytes: { unit: 'bytes', as: 'bytes' },
  'tokens per second': { unit: 'tokens/s', as: 3, from: RECORDED },
  // --- in a sentence that the server wrote ---
  told: { as: 'exact', from: 'the sentence of the health check' },
  evidence: { as: 3, from: 'the evidence of the health check' },
} as const satisfies Record<string, Quantity>;
export type What = keyof typeof QUANTITIES;

/** One number on the page. */
export interface FigureProps {
  what: What;
  value: number | null | undefined;
  /** Of what: a tensor, a token, a part of the model, a hyperparameter's name. */
  of?: string;
  step?: number | null;
  /** Whose, where it is not the run that is open. */
  run?: string;
  /** Where it comes from, where this is not the usual source of its quantity. */
  from?: string;
  /** Not exact: it gets a ≈. */
  about?: boolean;
  /** Digits that count, where there is less or more room than usual. */
  digits?: number;
  /** With a plus, too. */
  signed?: boolean;
  /** What is written is the value divided by this; the page says so beside it. */
  scale?: number;
  /** As it is written, where it was written elsewhere. */
  text?: string;
}

const MODES: Partial<Record<CellMode, What>> = {
  birth: 'parameter at birth',
  value: 'parameter',
  learned: 'change since birth',
  gradient: 'gradient',
  update: 'update',
  rms: 'root mean square',
};

/** A cell of the map or of the lens. of: its address. step: of the picture; at birth there is none. */
export function cellFigure(
  mode: CellMode,
  of: string,
  step: number | null,
  value: number | null,
  exact: boolean,
): FigureProps {
  const what = MODES[mode] ?? 'optimizer state';
  return {
    what,
    value,
    of: MODES[mode] ? of : `${of}: ${mode.slice('memory:'.length).replaceAll('_', ' ')}`,
    step: mode === 'birth' ? null : step,
    about: !exact,
    signed: mode !== 'rms',
    ...(exact ? {} : { digits: 3, from: 'the film: one byte a cell' }),
  };
}

/** A validation loss: of the whole text, of the large part that the last evaluation measures, or of the usual part. */
export const validationFigure = ({ step, loss, tokens, whole, final }: Evaluation): FigureProps => ({
  what: whole ? 'validation loss' : 'validation loss, sampled',
  value: loss,
  step,
  ...(final ? { of: 'the last evaluation', from: `${count(tokens)} tokens of the validation text` } : {}),
});

/** What the probability of a next token is of. */
export const nextToken = (token: string, prompt: string): string => `${tokenWord(token)} ${following(prompt)}`;
export const following = (prompt: string): string => `after «${prompt.replaceAll('\n', '↵')}»`;

/** A share of 1, in percent: whole percents from 10 on, and no zero for what is not zero. */
export function percent(share: number, digits = 2): string {
  if (!Number.isFinite(share)) return plain(share);
  const hundred = 100 * share;
  if (hundred > 0 && hundred < 0.1) return digits > 2 ? `${plain(hundred, digits)}%` : '<0.1%';
  return `${hundred < 10 ** (digits - 1) - 0.05 ? hundred.toFixed(Math.max(0, digits - 1)) : hundred.toFixed(Math.max(0, digits - 2))}%`;
}

/** The number as it is written. */
export function write({ what, value, digits, signed, scale = 1, about, text }: FigureProps): string {
  if (text !== undefined) return text;
  const { as } = QUANTITIES[what] as Quantity;
  const mark = about ? '≈ ' : '';
  if (value === undefined) return '…'; // not known yet
  if (value === null) return '–';
  const shown = value / scale;
  if (as === 'ratio' && shown >= 1) return `${mark}${plain(shown, digits ?? 2)}×`;
  if (as === 'percent' && scale === 0.01) return mark + percent(value, digits).slice(0, -1); // the page says «in percent»
  if (as === 'percent' || as === 'ratio') return mark + percent(shown, digits);
  if (as === 'time' && digits === undefined) return (about && shown >= 1 ? 'about ' : '') + seconds(shown);
  if (as === 'bytes')
    return mark + (shown >= 1e9 ? `${plain(shown / 1e9, digits ?? 3)} GB` : `${plain(shown / 1e6, digits ?? 3)} MB`);
  if (as === 'whole') return mark + (scale === 1 ? count(shown) : plain(shown, 3));
  if (as === 'hyper') return Number.isInteger(shown) ? count(shown) : exact(shown);
  if (as === 'exact' && digits === undefined) return mark + (signed && shown > 0 ? '+' : '') + exact(shown);
  const many = digits ?? (typeof as === 'number' ? as : 9);
  return mark + (signed ? withSign(shown, many).trim() : plain(shown, many));
}

/** What a number is, in words: for those who point at it. */
export function describe({ what, value, of, step, from, about }: FigureProps, run = ''): string {
  const { unit, from: usual } = QUANTITIES[what] as Quantity;
  const known = value === null || value === undefined ? 'not known' : `${about ? 'about ' : ''}${exact(value)}`;
  const name =
    what === 'told' && of
      ? of
      : what === 'number of' || what === 'share'
        ? `${what === 'share' ? 'share of ' : 'number of '}${of}`
        : of
          ? `${what} of ${of}`
          : what;
  return [
    `${name}: ${known}${unit ? ` ${unit}` : ''}`,
    step === null || step === undefined ? '' : `at step ${count(step)}`,
    run && `run ${run}`,
    from ?? usual,
  ]
    .filter(Boolean)
    .join(' · ');
}

/** A sentence in pieces: words, numbers, and words that are a name or a text of the run. to: the place of the page to show. */
export type Piece = string | ((FigureProps | { text: string }) & { to?: string });

/** A sentence with numbers in it. */
export const say = (words: TemplateStringsArray, ...pieces: (Piece | Piece[])[]): Piece[] =>
  words.flatMap((text, i) => [text, ...(i < pieces.length ? [pieces[i]!].flat() : [])]).filter((piece) => piece !== '');
export const textOf = (pieces: Piece[]): string =>
  pieces.map((piece) => (typeof piece === 'string' ? piece : 'what' in piece ? write(piece) : piece.text)).join('');

/** Attributes of the element that holds a number: what it is, for people and for tests. */
export function marks(figure: FigureProps, run: string): Record<string, string | undefined> {
  const { what, value, of, step, scale } = figure;
  return {
    'data-figure': what,
    'data-of': of,
    'data-step': step === null || step === undefined ? undefined : String(step),
    'data-run': run,
    'data-value': value === null || value === undefined ? undefined : String(value),
    'data-scale': scale === undefined ? undefined : String(scale),
    title: describe(figure, run),
  };
}
