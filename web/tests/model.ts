/** A small model, as the studio describes it. */
import type { RunInfo, TensorInfo } from '../src/lib/types';

export const tensor = (name: string, shape: number[], kind: TensorInfo['kind'] = 'weight'): TensorInfo => ({
  name,
  shape,
  kind,
  parameters: shape.reduce((a, b) => a * b, 1),
  birth: 'normal',
  std: 0.02,
  block: name.startsWith('blocks.') ? Number(name.split('.')[1]) : null,
  part: name.replace(/^blocks\.\d+\./, '').replace(/\.\w+$/, ''),
  memory: [],
  rule: 'AdamW',
});

export const MODEL = [
  tensor('embedding.weight', [61, 24], 'embedding'),
  tensor('blocks.0.attention_norm.gain', [24], 'gain'),
  tensor('blocks.0.attention.query.weight', [24, 24]),
  tensor('blocks.0.attention.query.bias', [24], 'bias'),
  tensor('blocks.0.mlp.expand.weight', [96, 24]),
  tensor('blocks.0.mlp.expand.bias', [96], 'bias'),
  tensor('blocks.0.mlp.shrink.weight', [24, 96]),
  tensor('blocks.0.mlp.shrink.bias', [24], 'bias'),
  tensor('final_norm.gain', [24], 'gain'),
];

export const run = (more: Partial<RunInfo> = {}): RunInfo =>
  ({
    name: 'small',
    identity: 'abc',
    tensors: MODEL,
    tied: true,
    steps_made: 300,
    training: false,
    keyframes: [0, 150, 300],
    samples: [],
    config: { sampling: { temperature: 0.8, top_k: 0, top_p: 1, min_p: 0, repetition_penalty: 1 } },
    ...more,
  }) as unknown as RunInfo;
