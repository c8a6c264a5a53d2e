/** Formats numbers, names of tensors and tokens for the page. */

import type { CellMode, TensorInfo } from './types';

export const count = (number: number): string => Math.round(number).toLocaleString('en-US');

/** With its sign (a real minus), and about so many digits that count. */
export function signed(value: number, digits = 3): string {
  if (!Number.isFinite(value)) return value > 0 ? '∞' : value < 0 ? '−∞' : 'not a number';
  return (value < 0 ? '−' : value > 0 ? '+' : ' ') + size(Math.abs(value), digits);
}

export function plain(value: number | null | undefined, digits = 3): string {
  if (value === null || value === undefined) return '–';
  if (!Number.isFinite(value)) return signed(value);
  return (value < 0 ? '−' : '') + size(Math.abs(value), digits);
}

function size(value: number, digits: number): string {
  if (value === 0) return '0';
  if (value < 1e-4 || value >= 1e6) {
    const [mantissa, exponent] = value.toExponential(digits - 1).split('e');
    return `${mantissa}e${exponent!.replace('+', '').replace('-', '−')}`;
  }
  return Number(value.toPrecision(digits)).toString() === '0' ? '0' : fixed(value, digits);
}

function fixed(value: number, digits: number): string {
  const whole = Math.floor(Math.log10(value));
  return value.toFixed(Math.max(0, Math.min(8, digits - 1 - whole)));
}

/** In what the cells of a lens are counted: 1, or, where all are small, a power of ten. */
export const unitOf = (full: number): number => (full > 0 && full < 0.0095 ? 10 ** Math.floor(Math.log10(full)) : 1);
export const powerOf = (unit: number): string =>
  `10${String(Math.round(Math.log10(unit)))
    .replace('-', '⁻')
    .replace(/\d/g, (digit) => '⁰¹²³⁴⁵⁶⁷⁸⁹'[Number(digit)]!)}`;

/** For a cell of the lens: at most six characters. */
export function cell(value: number, unit = 1): string {
  if (unit !== 1 && Number.isFinite(value)) {
    const units = value / unit;
    return (
      (units < 0 ? '−' : units > 0 ? '+' : '') +
      (units === 0 ? '0' : Math.abs(units).toFixed(Math.abs(units) >= 99.95 ? 0 : Math.abs(units) >= 9.995 ? 1 : 2))
    );
  }
  if (!Number.isFinite(value)) return Number.isNaN(value) ? 'NaN' : value > 0 ? '+∞' : '−∞';
  const magnitude = Math.abs(value);
  const sign = value < 0 ? '−' : '+';
  if (magnitude === 0) return '0';
  if (magnitude >= 1e4) return sign + magnitude.toExponential(0).replace('e+', 'e');
  if (magnitude >= 100) return sign + magnitude.toFixed(1);
  if (magnitude >= 0.00095)
    return sign + magnitude.toFixed(magnitude >= 10 ? 2 : magnitude >= 1 ? 3 : 4).replace(/^0\./, '.');
  return sign + magnitude.toExponential(0);
}

/** The shortest decimal that gives this float32 back, as the command line prints it. */
export function exact(value: number): string {
  if (!Number.isFinite(value)) return signed(value);
  for (let digits = 1; digits <= 9; digits++) {
    const text = value.toPrecision(digits);
    if (Math.fround(Number(text)) !== value) continue;
    return (Math.abs(value) < 1e9 ? String(Number(text)) : Number(text).toExponential().replace('+', '')).replaceAll(
      '-',
      '−',
    );
  }
  return String(value).replace('-', '−');
}

export const seconds = (value: number): string =>
  value < 1
    ? 'under a second'
    : value < 120
      ? `${Math.round(value)} seconds`
      : value < 7200
        ? `${Math.round(value / 60)} minutes`
        : `${(value / 3600).toFixed(1)} hours`;

/** A token as it can be shown: white space gets a mark. */
export function token(text: string): string {
  return text.replace(/\n/g, '↵').replace(/\t/g, '⇥').replace(/ /g, '␣') || '∅';
}
export function tokenWord(text: string): string {
  return text === ' ' ? 'space' : text === '\n' ? 'new line' : text === '\t' ? 'tab' : `«${text}»`;
}

export const MODES: { mode: CellMode; label: string; says: string }[] = [
  { mode: 'birth', label: 'birth', says: 'the value of each number before training' },
  { mode: 'value', label: 'now', says: 'the value of each number at this step' },
  { mode: 'learned', label: 'learned so far', says: 'how far each number has come since birth: now − birth' },
  { mode: 'gradient', label: 'gradient', says: 'how the loss of this step’s batch would change if the number grew' },
  { mode: 'update', label: 'update', says: 'what this step adds to each number' },
];

/** The modes that are behind «more»: a mean, which is the only one, and what the optimizer remembers. */
export function moreModes(memories: CellMode[]): { mode: CellMode; label: string; says: string }[] {
  const words: Record<string, [string, string]> = {
    'memory:first_moment': [
      'past gradients: first moment',
      'what the optimizer remembers: a fading mean of past gradients',
    ],
    'memory:second_moment': [
      'past squares: second moment',
      'what the optimizer remembers: a fading mean of the squares of past gradients',
    ],
    'memory:momentum': [
      'past gradients: momentum',
      'what the optimizer remembers: past gradients, added up and fading',
    ],
  };
  return [
    ...memories.map((mode) => ({ mode, label: words[mode]?.[0] ?? mode.slice(7), says: words[mode]?.[1] ?? mode })),
    { mode: 'rms', label: 'RMS', says: 'the root mean square of neighbouring cells: the only mode that is a mean' },
  ];
}

type Named = Pick<TensorInfo, 'name' | 'kind' | 'block' | 'part'>;

const ROLES: Record<string, [plain: string, code: string]> = {
  embedding: ['symbol table', 'embedding'],
  positions: ['place table', 'positions'],
  head: ['output: a row per symbol', 'head'],
  'attention.query': ['who looks', 'query'],
  'attention.key': ['at whom', 'key'],
  'attention.value': ['what is passed on', 'value'],
  'attention.output': ['mixed back in', 'output'],
  'mlp.expand': ['pattern finders', 'expand'],
  'mlp.gate': ['their gates', 'gate'],
  'mlp.shrink': ['what patterns add', 'shrink'],
};

/** Where each norm stands. */
const NORMS: Record<string, string> = {
  final_norm: 'before the output',
  attention_norm: 'before attention',
  post_attention_norm: 'after attention',
  mlp_norm: 'before MLP',
  post_mlp_norm: 'after MLP',
  'attention.query_norm': 'of the query',
  'attention.key_norm': 'of the key',
};

/** A tensor in plain words, with its code name second. */
export function roleOf({ name, kind, part }: Named): [plain: string, code: string] {
  const bias = kind === 'bias';
  if (NORMS[part]) return [`${bias ? 'offsets' : 'volume knobs'} ${NORMS[part]}`, name.split('.').slice(-2).join('.')];
  const [words, code] = ROLES[part] ?? [part, part];
  return bias ? [`offsets of ${words}`, `${code}.bias`] : [words, code];
}

export const placeOf = ({ block }: Named): string => (block === null ? '' : `block ${block}`);

const LONG_ROLES: Record<string, string> = {
  'attention.query': 'who looks at whom: query',
  'attention.key': 'who looks at whom: key',
  'attention.value': 'what is passed on: value',
  'attention.output': 'mixed back into the residual stream: output',
  'mlp.expand': 'finds patterns: expand',
  'mlp.gate': 'opens or shuts each pattern: gate',
  'mlp.shrink': 'what each pattern adds: shrink',
};

export function longRole(tensor: Named): string {
  const [words, code] = roleOf(tensor);
  return (tensor.kind === 'weight' && LONG_ROLES[tensor.part]) || (words === code ? words : `${words}: ${code}`);
}

export const KIND_WORDS: Record<TensorInfo['kind'], [one: string, many: string]> = {
  embedding: ['an entry of a table of vectors', 'embeddings'],
  weight: ['a weight: the strength of a connection', 'weights'],
  bias: ['a bias: one number added to an output', 'biases'],
  gain: ['a gain: a volume knob', 'gains'],
};

export const address = (name: string, shape: number[], row: number, column: number): string =>
  shape.length === 1 ? `${name}[${column}]` : `${name}[${row},${column}]`;
