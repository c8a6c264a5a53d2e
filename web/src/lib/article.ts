/** What an article says of «LLM parameters», claim by claim: whether it is right, and a number of the open run that shows it. */

import claims from './article.json' with { type: 'json' };
import { say, type Piece } from './figure';
import { tokenWord } from './text';
import { byKind, number, type At, type FactName } from './tour';

export interface Claim {
  name: string;
  says: string;
  verdict: 'right' | 'incomplete' | 'twisted';
  why: string;
}

export const CLAIMS = claims as Claim[];
/** What biases did to a small model: docs/experiments.md. */
const BIASES = { of: 'a small llama', with: 1.8515, without: 1.869, seeds: 5 };
/** What has to be measured for the numbers below. */
export const NEEDS: readonly FactName[] = ['life', 'neuron', 'share', 'rises', 'chat', 'newborn', 'spread'];

const here = (at: At): { of: string; step: number } => ({ of: at.address, step: at.step });

/** The numbers of this run that show what is meant; empty while they are not known. */
export const SHOWN: Record<string, (at: At) => Piece[]> = {
  'two-kinds': ({ run }) => {
    const kinds = byKind(run.tensors);
    const of = (kind: keyof typeof kinds, words: string): Piece =>
      number('parameters', kinds[kind], 'census', { of: words });
    return say`Of the ${number('parameters', run.parameters, 'count')} parameters here, ${of('weight', 'weights')} are weights, ${of('embedding', 'embeddings')} embeddings, ${of('bias', 'biases')} biases and ${of('gain', 'gains')} gains.`;
  },
  hyperparameters: (at) => {
    const { chat } = at.facts;
    const changed = chat && chat.before !== null ? (chat.before === chat.after ? 0 : null) : undefined;
    const writing =
      chat === undefined
        ? []
        : say` It just wrote ${number('number of', chat.tokens, 'writes', { of: 'tokens written' })} tokens at that temperature, and ${changed === 0 ? number('number of', 0, 'writes', { of: 'parameters changed by writing' }) : 'none'} of its parameters changed.`;
    return say`Here: ${number('hyperparameter', Number(at.run.config.model?.n_layers), 'hyperparameters', { of: 'model.n_layers' })} blocks; a temperature of ${number('decoding setting', at.sampling.temperature, 'decoding', { of: 'temperature' })}.${writing}`;
  },
  weights: (at) => {
    const { life, neuron } = at.facts;
    const activation = neuron
      ? say` Its input was ${number('activation', neuron.inputs[at.cell.column], 'number', { of: `input ${at.cell.column}`, step: at.step, digits: 3 })} at the token ${{ text: tokenWord(neuron.text) }}: another text gives another.`
      : [];
    return say`The weight ${{ text: at.address }} was ${number('parameter at birth', life?.birth, 'number', { of: at.address })} at birth and is ${number('parameter', life?.before, 'number', here(at))} at step ${number('step', at.step, 'timeline')}.${activation}`;
  },
  bias: ({ run }) => {
    const { bias } = byKind(run.tensors);
    const count = number('parameters', bias, 'census', { of: 'biases' });
    const own = bias
      ? say`This model has ${count} biases, ${{ what: 'share', value: bias / run.parameters, of: 'biases among the parameters' }} of its parameters.`
      : say`This model has ${count} biases: its family, ${{ text: String(run.config.model?.architecture) }}, leaves them out.`;
    const { of, with: with_, without, seeds } = BIASES;
    const loss = (value: number, which: string): Piece => ({
      what: 'validation loss',
      value,
      of: `${of} ${which} biases, mean of ${seeds} seeds`,
      run: 'docs/experiments.md',
      from: 'an experiment of this project',
    });
    const experiment = say` In an experiment ${{ text: of }} had a validation loss of ${loss(with_, 'with')} with biases and ${loss(without, 'without')} without.`;
    return [...own, ...experiment];
  },
  forward: (at) => {
    const { opened, run } = at;
    const [best] = opened?.forward.probabilities ?? [];
    return say`It gives ${number('number of', Math.round(Math.exp(run.guessing_loss)), 'bars', { of: 'tokens in the vocabulary' })} probabilities, one for each token. At step ${number('step', at.step, 'timeline')} the likeliest in its batch was ${{ text: best ? tokenWord(best[0]) : '…' }}, with ${number('probability', best?.[0] === opened?.forward.target ? opened?.forward.target_probability : best?.[1], 'out', { of: best && tokenWord(best[0]), step: at.step })}.`;
  },
  loss: ({ opened, step }) => {
    const of = opened ? tokenWord(opened.forward.target) : '…';
    const p = number('probability', opened?.forward.target_probability, 'out', { of, step, digits: 4 });
    const loss = number('loss of a token', opened?.loss.tokens[opened.forward.token], 'out', { of, step });
    return say`In truth ${{ text: of }} came next. It had got ${p}, and −ln ${p} = ${loss}.`;
  },
  backward: (at) => {
    const { life, share } = at.facts;
    return say`The gradient of ${{ text: at.address }} is ${number('gradient', life?.gradient, 'number', here(at))}; its update is ${number('update', life?.update, 'number', { ...here(at), signed: true })}, where plain SGD would have made ${number('update of plain SGD', life?.plain_sgd, 'number', { ...here(at), signed: true })}. In its tensor ${number('share', share && share.along / share.cells, 'map', { of: `the cells of ${at.tensor.name} that moved along their gradient`, step: at.step, digits: 3 })} of the numbers moved along their gradient.`;
  },
  update: ({ facts: { rises } }) =>
    say`The loss was higher than in the step before in ${number('number of', rises?.rose, 'timeline', { of: 'steps in which the loss rose' })} of ${number('number of', rises?.of, 'timeline', { of: 'steps whose loss is known' })} steps of this run.`,
  itself: ({ run, facts: { chat } }) =>
    say`${number('number of', run.steps_made, 'timeline', { of: 'steps made' })} steps set ${number('parameters', run.parameters, 'count')} numbers. ${
      chat?.before && chat.before === chat.after
        ? say`When it wrote ${number('number of', chat.tokens, 'writes', { of: 'tokens written' })} tokens, ${number('number of', 0, 'writes', { of: 'parameters changed by writing' })} changed.`
        : []
    }`,
  random: ({ run, tensor, facts: { newborn, spread } }) =>
    say`Its first loss was ${number('loss before training', newborn?.loss, 'timeline', { of: `seed ${run.config.training?.seed}` })}; pure guessing among ${number('number of', Math.round(Math.exp(run.guessing_loss)), 'bars', { of: 'tokens in the vocabulary' })} tokens has the logarithm of their number, ${number('loss of guessing', run.guessing_loss, 'timeline')}. The numbers of ${{ text: tensor.name }} were drawn with a standard deviation of ${number('standard deviation', spread?.std, 'map', { of: tensor.name, from: 'the numbers drawn' })}, from seed ${number('hyperparameter', Number(run.config.training?.seed), 'hyperparameters', { of: 'training.seed' })}.`,
};
