/** Types of the server's answers, from its schema (openapi.json, from which schema.d.ts is generated). */

import type { components } from './schema';

type Schemas = components['schemas'];

export type RunSummary = Schemas['RunSummary'];
export type TensorInfo = Schemas['TensorInfo'];
export type Kind = TensorInfo['kind'];
export type Evaluation = Schemas['Evaluation'];
export type Sample = Schemas['SampleRecord'];
export type RunEvent = Schemas['EventRecord'];
export type FilmInfo = Schemas['FilmInfo'];
export type Settings = Plan['config'];
export type RunInfo = Schemas['RunInfo'];
export type Series = Schemas['Series'];
export type Layers = Schemas['Layers'];
export type Phases = Schemas['Phases'];
export type Likely = Phases['forward']['probabilities'][number];
export type Compared = Schemas['Compared'];
export type Norm = Schemas['Norm'];
export type Biography = Schemas['Biography'];
export type Nudge = Schemas['Nudge'];
export type Neuron = Schemas['Neuron'];
export type Progress = Schemas['Progress'];
export type Next = Schemas['Next'] & { computed?: boolean }; // by this page: see forward/alive.ts
export type Birth = Schemas['Birth'];
export type Verdict = Schemas['Verdict'];
export type EvidencePlot = Schemas['Plot'];
export type Health = Schemas['Health'];
export type Headline = Schemas['Headline'];
export type Comparison = Schemas['Comparison'];
export type ComparedRun = Schemas['ComparedRun'];
export type Hyperparameter = Schemas['Hyperparameter'];
export type Plan = Schemas['Plan'];
export type TensorStep = Schemas['TensorView'];

// What is no JSON answer: events, and raw numbers.

export type StepRow = [
  step: number,
  loss: number | null,
  gradient: number | null,
  rate: number | null,
  seconds: number,
];

/** One event of a run's stream: what is new, and how the run stands. */
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
  /** seconds to the end, at the training's pace; null: it does not train */
  left_s: number | null;
  disk_bytes: number;
  /** an estimate of disk_bytes at the end; null: it does not train */
  disk_expected_bytes: number | null;
  identity: string;
  error?: string;
}

/** The decoding hyperparameters: they act on the predictions. */
export interface Sampling {
  temperature: number;
  top_k: number;
  top_p: number;
  min_p: number;
  repetition_penalty: number;
}

/** One parameter with another value, on this page only. */
export interface Turned {
  tensor: string;
  place: number; // in the flattened tensor
  value: number;
}

/** What the map shows of each number; `rms` is the one that is a mean. */
export type CellMode = 'birth' | 'value' | 'learned' | 'gradient' | 'update' | 'rms' | `memory:${string}`;

export interface Cells {
  step: number;
  exact: boolean;
  numbers: Float32Array;
}
