/** What the studio's server answers with. Keys are the server's own. */

export interface RunSummary {
  name: string;
  parameters: number;
  architecture: string;
  steps: number;
  steps_made: number;
  training: boolean;
  val_loss: number | null;
  train_loss: number | null;
  modified_s: number;
}

export type Kind = 'embedding' | 'weight' | 'bias' | 'gain';

export interface TensorInfo {
  name: string;
  shape: number[];
  kind: Kind;
  parameters: number;
  birth: 'normal' | 'zeros' | 'ones';
  std: number;
}

export interface Evaluation {
  step: number;
  loss: number;
  tokens: number;
  whole: boolean;
}

export interface Sample {
  step: number;
  prompt: string;
  text: string;
  temperature: number;
  seed: number;
}

export interface RunEvent {
  step: number;
  time_s: number;
  kind: string;
  text: string;
}

export interface FilmInfo {
  steps: number[];
  value_level: number;
  change_level: number;
  tensors: { name: string; values: [number, number]; changes: [number, number] }[];
}

export type Settings = Record<string, Record<string, unknown>>;

export interface RunInfo {
  name: string;
  identity: string;
  paused: boolean;
  config: Settings;
  tensors: TensorInfo[];
  parameters: number;
  vocab: string[] | null;
  steps: number;
  steps_made: number;
  training: boolean;
  ended: Record<string, unknown> | null;
  keyframes: number[];
  best_step: number | null;
  guessing_loss: number;
  events: RunEvent[];
  evaluations: Evaluation[];
  samples: Sample[];
  film: FilmInfo | null;
  statistics_every: number | null;
  tied: boolean;
}

export interface Series {
  name: string;
  first: number;
  last: number;
  steps: number[];
  low: (number | null)[];
  high: (number | null)[];
}

export type StepRow = [step: number, loss: number | null, gradient: number | null, rate: number | null, seconds: number];

export interface StreamState {
  cursor: string;
  steps: StepRow[];
  evaluations: Evaluation[];
  samples: Sample[];
  events: RunEvent[];
  steps_made: number;
  training: boolean;
  film_steps: number[];
  live_step: number | null;
  paused: boolean;
  identity: string;
  error?: string;
}

export type Likely = [text: string, probability: number];

export interface Compared {
  what: string;
  steps: [number, number];
  made: number;
  equal: number;
}

export interface Norm {
  value: number | null;
  recorded: number | null;
}

export interface Phases {
  step: number;
  exact: boolean;
  compared: Compared[];
  differs: string[];
  forward: {
    batch: string[][];
    row: number;
    /** the text of the row, token by token */
    tokens: string[];
    token: number;
    target: string;
    probabilities: Likely[];
    target_probability: number;
    logit_lens: Likely[][];
    stream_norms: number[];
    dead_units: number[];
    attention: number[][][];
    attention_entropy: number[][];
    from: string;
    largest_difference: { logits: number | null; attention: number | null };
  };
  loss: {
    value: number;
    recorded: number | null;
    tokens: number[];
    same_batch_again: number | null;
    next_batch: number | null;
  };
  backward: { gradient_norm: number; recorded: number | null; clip_factor: number };
  update: { norm: number; recorded: number | null; learning_rate: number };
  tensors: { name: string; weight_norm: Norm; gradient_norm: Norm; update_norm: Norm }[];
}

export interface Biography {
  parameter: string;
  kind: Kind;
  connects: string;
  step: number;
  before: number;
  gradient: number;
  update: number;
  after: number;
  rule: { optimizer: string; formula: string; terms: Record<string, number>; total: number; note: string };
  plain_sgd: number;
  birth: number;
  history: [step: number, value: number, exact: boolean][];
  exact: boolean;
}

export interface Nudge {
  loss: number;
  gradient: number;
  run_gradient: number;
  moves: { size: number; loss: number; measured: number; predicted: number }[];
}

export interface Neuron {
  neuron: string;
  step: number;
  row: number;
  token: number;
  text: string;
  inputs: number[];
  weights: number[];
  products: number[];
  bias: number;
  total: number;
  output: number;
  difference: number;
}

export interface Progress {
  working: boolean;
  step: number | null;
  from: number | null;
  made: number | null;
  of: number | null;
  wanted: number | null;
}

export interface Next {
  step: number;
  tokens: number[];
  logits: number[];
}

export interface Verdict {
  name: string;
  level: 'ill' | 'watch' | 'unknown' | 'ok';
  sentence: string;
  cause: string;
  evidence: Record<string, unknown>;
  step: number | null;
}

export interface Health {
  healthy: boolean;
  verdicts: Verdict[];
}

export interface Hyperparameter {
  section: string;
  key: string;
  description: string;
  default: unknown;
  kind: 'int' | 'float' | 'bool' | 'choice' | 'text';
  choices: string[] | null;
}

export interface Plan {
  parameters: number;
  flops_per_token: number;
  memory_bytes: number;
  available_bytes: number;
  fits: boolean;
  tokens_per_step: number;
  step_s: number | null;
  duration_s: number | null;
  config: Settings;
}

export type CellMode = 'birth' | 'value' | 'learned' | 'gradient' | 'update';

export interface Cells {
  step: number;
  exact: boolean;
  numbers: Float32Array;
}
