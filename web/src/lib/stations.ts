/** The texts and questions of the tour's stations; every number comes from the open run. */

import { say, type Piece } from './figure';
import { filterLogits } from './sampling';
import { KIND_WORDS, tokenWord } from './text';
import { byKind, live, number, threeSurprises, type At, type Station, type Values } from './tour';
import type { Likely, Next } from './types';

const text = (at: At, section: string, key: string): string => String(at.run.config[section]?.[key] ?? '');
/** A hyperparameter, as it was chosen. */
const chosen = (at: At, section: string, key: string): Piece => {
  const value = at.run.config[section]?.[key];
  const of = `${section}.${key}`;
  return typeof value === 'number'
    ? number('hyperparameter', value, 'hyperparameters', { of })
    : live(text(at, section, key), 'hyperparameters');
};
const all = (at: At): Piece => number('parameters', at.run.parameters, 'count');
const step = (at: At): Piece => number('step', at.step, 'timeline');
const counted = (value: number | null | undefined, of: string, to?: Parameters<typeof number>[2]): Piece =>
  to ? number('number of', value, to, { of }) : { what: 'number of', value, of };
const tokens = (at: At): number => Math.round(Math.exp(at.run.guessing_loss));
const vocabulary = (at: At, to?: Parameters<typeof number>[2]): Piece =>
  counted(tokens(at), 'tokens in the vocabulary', to);
const guessing = (at: At, to?: Parameters<typeof number>[2]): Piece => ({
  what: 'loss of guessing',
  value: at.run.guessing_loss,
  ...(to ? { to } : {}),
});
const value = (at: At, which: 'birth' | 'before'): Piece => {
  const { life } = at.facts;
  return which === 'birth'
    ? number('parameter at birth', life?.birth, 'number', { of: at.address })
    : number('parameter', life?.before, 'number', { of: at.address, step: at.step });
};
const here = (at: At): { of: string; step: number } => ({ of: at.address, step: at.step });
const short = (digest: string | null | undefined): string | undefined => digest?.slice(0, 8);
const parent = (at: At): string => text(at, 'training', 'parent');
/** What is not finite has overflowed. */
const lossAs = (
  what: 'loss of a token' | 'loss before training',
  loss: number | null | undefined,
  to: Parameters<typeof number>[2],
  more = {},
): Piece => (loss === null ? live('not a number any more', to) : number(what, loss, to, more));

/** What the optimizer's rule adds to plain SGD. */
function ruleOf(at: At): { name: string; adds: string; remembers: boolean } {
  const { rule: name, memory } = at.tensor;
  const pull = Number(at.run.config.optimizer?.weight_decay ?? 0) > 0 ? ' It also pulls weights towards zero.' : '';
  return { name, adds: at.run.rules[name] + pull, remembers: memory.length > 0 };
}

const one: Station = {
  title: 'One parameter is one number',
  stand: { view: 'map', side: 'number', mode: 'value', step: 'made' },
  points: ['number', 'lens'],
  needs: ['life', 'neuron'],
  first: (at) =>
    say`A parameter is one number. This one, ${{ text: at.address }}, is ${value(at, 'before')} at step ${step(at)}; it was born as ${value(at, 'birth')}. The ring on the map shows where it is among its neighbours.`,
  short: (at) =>
    say`A parameter is one number. This one is ${value(at, 'before')} at step ${step(at)}, and was born as ${value(at, 'birth')}.`,
  question: (at) => {
    const inputs = at.tensor.shape[1] ?? 1;
    const { neuron } = at.facts;
    return {
      ask: say`It belongs to one neuron${neuron ? say`, which here reads the token ${{ text: tokenWord(neuron.text) }}` : ''}. How many numbers does that neuron take in, each with its own weight?`,
      options: [
        [counted(1, 'numbers')],
        [counted(inputs, 'inputs of the neuron')],
        [{ what: 'parameters', value: at.run.parameters }],
      ],
      right: 1,
      reveal: neuron
        ? say`${counted(inputs, 'inputs of the neuron', 'lens')}: a row of this matrix. Each input times its weight, all added up${neuron.bias ? say`, plus the bias ${number('product', neuron.bias_added, 'number', { of: `the bias of ${neuron.neuron}, as it was added`, step: at.step, digits: 3, signed: true })}` : ''}: together ${number('output of the neuron', neuron.total, 'number', { of: neuron.neuron, step: at.step, signed: true })}.`
        : say`${counted(inputs, 'inputs of the neuron', 'lens')}: a row of this matrix.`,
    };
  },
  second: (at) => {
    const { neuron } = at.facts;
    const j = at.cell.column;
    return neuron
      ? say`So a weight is the strength of a connection. Here the input is ${number('activation', neuron.inputs[j], 'number', { of: `input ${j}`, step: at.step, digits: 3 })}; times the weight ${number('parameter', neuron.weights[j], 'number', here(at))} it adds ${number('product', neuron.products[j], 'number', { of: `input ${j} × weight`, step: at.step, digits: 3, signed: true })} to the sum. Inputs come from the text and are gone afterwards. The weight stays.`
      : say`So a weight is the strength of a connection: how much of one input goes into the sum.`;
  },
  task: { say: 'Open this neuron: click «neuron» above the number.' },
};

const census: Station = {
  title: 'All of them',
  stand: { view: 'map', side: 'writes', mode: 'value', step: 'stay' },
  points: ['map', 'count'],
  needs: [],
  first: (at) => {
    const kinds = byKind(at.run.tensors);
    return say`The model is ${all(at)} such numbers, drawn to scale. Weights are not the only ones. ${kinds.embedding ? say`Embeddings: a row of ${chosen(at, 'model', 'd_model')} numbers for each of ${vocabulary(at, 'hyperparameters')} tokens. ` : ''}Gains: volume knobs of the norms. ${kinds.bias ? say`Biases: one number per output, added to its sum, and learned as well.` : ''}`;
  },
  short: (at) =>
    say`All of them are ${all(at)} numbers: weights, and other numbers that are learned too: embeddings (a row per token), gains${byKind(at.run.tensors).bias ? ', and biases (one number per output, added to its sum)' : ''}.`,
  question: (at) => {
    const kinds = byKind(at.run.tensors);
    const rest = (['embedding', 'bias', 'gain'] as const).map(
      (kind) => say`${number('parameters', kinds[kind], 'map', { of: KIND_WORDS[kind][1] })} ${KIND_WORDS[kind][1]}`,
    );
    return {
      ask: say`What share of the ${all(at)} are weights?`,
      truth: kinds.weight / at.run.parameters,
      reveal: say`${number('parameters', kinds.weight, 'map', { of: 'weights' })} weights: ${{ what: 'share', value: kinds.weight / at.run.parameters, of: 'weights among the parameters' }}. And ${rest[0]!}, ${rest[1]!}, ${rest[2]!}.`,
    };
  },
  second: (at) => {
    const kinds = byKind(at.run.tensors);
    const family = text(at, 'model', 'architecture');
    const left = kinds.bias
      ? `This family, ${family}, has biases; many modern models leave most of them out.`
      : `This family, ${family}, leaves biases out, as many modern models do.`;
    const qk = at.run.tensors.some((tensor) => tensor.name.includes('query_norm'))
      ? ' It has gains on queries and keys too.'
      : '';
    const tied = at.run.tied
      ? ' The output uses the table of tokens a second time: these numbers are tied, and counted once.'
      : ' The output has its own matrix: a row per token.';
    return say`${left}${qk}${tied}`;
  },
  task: {
    say: 'Find one that is not a weight: click one of the thin strips, which are gains and, in some models, biases.',
  },
};

const chose: Station = {
  title: 'What a person chose',
  stand: { view: 'map', side: 'writes', mode: 'value', step: 'stay' },
  points: ['hyperparameters', 'writes'],
  needs: [],
  reveals: ['doubled'],
  first: (at) =>
    say`Hyperparameters are chosen by a person; learning never changes them. Here: ${chosen(at, 'model', 'n_layers')} blocks, a width of ${chosen(at, 'model', 'd_model')}, batches of ${chosen(at, 'training', 'batch_size')}, a learning rate of ${chosen(at, 'optimizer', 'learning_rate')}. They decide how many parameters there are, and how these learn.`,
  short: (at) =>
    say`Hyperparameters are chosen by a person: ${chosen(at, 'model', 'n_layers')} blocks, a learning rate of ${chosen(at, 'optimizer', 'learning_rate')}. Learning never changes them.`,
  question: (at) => {
    const { doubled } = at.facts;
    const row = (i: number): Piece[] => {
      const of = `the plan ${i + 1}`;
      return say`${counted(doubled![i]!.tokens, `tokens, ${of}`)} tokens: ${number('parameters', doubled![i]!.parameters, 'count', { of })} parameters, ${counted(doubled![i]!.steps, `steps, ${of}`)} steps to read them once`;
    };
    return {
      ask: say`The amount of text is a hyperparameter too. With twice the text, made of the same tokens, how many parameters does the model have?`,
      options: [['as many'], ['twice as many'], ['four times as many']],
      right: 0,
      reveal: doubled
        ? say`Both were just planned on this computer. ${row(0)}. ${row(1)}. More text means more steps, but the same number of parameters.`
        : say`Planning both on this computer…`,
    };
  },
  second: () =>
    say`Temperature, top-k and top-p, below, are chosen by a person too. But they act after training, on the probabilities of the next token, and change no weight.`,
  task: { say: 'Move the temperature, and watch the bars at the right.' },
};

const birth: Station = {
  title: 'Birth: drawn at random',
  stand: { view: 'map', side: 'writes', mode: 'birth', step: 'birth' },
  points: ['map', 'timeline'],
  needs: ['newborn', 'spread'],
  first: (at) => {
    const zeros = at.run.tensors.some((tensor) => tensor.kind === 'weight' && tensor.birth === 'zeros');
    const start = parent(at)
      ? say`This run continued from ${{ text: parent(at) }}; a new model is made like this. `
      : [];
    return say`${start}A seed, here ${chosen(at, 'training', 'seed')}, draws the weights at random${zeros ? ', except for some projections, which begin at zero' : ''}. ${spread(at)} Gains begin at exactly one${byKind(at.run.tensors).bias ? ', biases at zero' : ''}.`;
  },
  short: (at) =>
    say`At birth a seed, here ${chosen(at, 'training', 'seed')}, draws the weights at random. The model knows nothing.`,
  question: (at) => {
    const { newborn } = at.facts;
    return {
      ask: say`It knows nothing, and there are ${vocabulary(at, 'hyperparameters')} tokens. About how large will its first loss be?`,
      options: [[counted(0, 'losses')], say`ln ${vocabulary(at)} = ${guessing(at)}`, [vocabulary(at)]],
      right: 1,
      reveal: say`${lossAs('loss before training', newborn && newborn.loss, 'timeline', { of: `seed ${text(at, 'training', 'seed')}` })}. Pure guessing gives each token a probability of one in ${vocabulary(at)}; minus the logarithm of that is ln ${vocabulary(at)} = ${guessing(at, 'timeline')}, the dashed line.`,
    };
  },
  second: () =>
    say`Another seed draws other numbers, and the first seed draws the first numbers again, bit for bit. Their standard deviation was chosen with care: if it were zero, all units would be equal, and all would learn the same.`,
  task: {
    say: 'Initialise it again, on the same first batch: seeds 1, 2, 1, then a standard deviation of ×0 and ×50.',
    lab: 'reinit',
  },
};

const forward: Station = {
  title: 'Forward: predict the next token',
  stand: { view: 'play', step: 'end' },
  points: ['bars', 'prompt'],
  needs: ['prediction', 'digest'],
  first: (at) => {
    const best = at.next ? predictionsOf(at, at.next)[0] : undefined;
    return say`The text becomes tokens, and each token becomes its row of the table. The blocks mix these rows and add to them. At the end there is one bar for each of ${vocabulary(at, 'bars')} tokens. After «${live(shown(at.prompt), 'prompt')}» the longest is ${live(best && tokenWord(best[0]), 'bars')}, with ${number('probability', best?.[1], 'bars', { of: best && `${tokenWord(best[0])} after «${shown(at.prompt)}»`, step: at.next?.step, from: 'the model’s probabilities, after temperature and cuts' })} (at a temperature of ${number('decoding setting', at.sampling.temperature, 'decoding', { of: 'temperature' })}).`;
  },
  short: (at) => say`Forward: from the text to one bar for each of ${vocabulary(at, 'bars')} tokens.`,
  question: (at) => {
    const { prediction } = at.facts;
    const likely = prediction?.next ? predictionsOf(at, prediction.next) : (prediction?.likely ?? []);
    if (!prediction || likely.length < 3) return null;
    const best = likely[0]!;
    const at_step = prediction.next?.step ?? prediction.step;
    const chance = ([text, p]: Likely): Piece[] =>
      say`${{ text: tokenWord(text) }}: ${number('probability', p, 'bars', { of: `${tokenWord(text)} after «${shown(prediction.prompt)}»`, step: at_step })}`;
    const options = [best, likely[Math.min(3, likely.length - 2)]!, likely[Math.min(7, likely.length - 1)]!].sort(
      (a, b) => (a[0] < b[0] ? -1 : 1),
    );
    return {
      ask: say`And after ${{ text: `«${shown(prediction.prompt)}»` }}, which is in your text: which token ${prediction.next ? 'does it rank' : say`did it rank at step ${{ what: 'step', value: prediction.step }}`} first?`,
      options: options.map(([text]) => [{ text: tokenWord(text) }]),
      right: options.indexOf(best),
      reveal: say`${chance(best)}. ${options
        .filter((option) => option !== best)
        .flatMap((option, i) => [i ? '; ' : '', ...chance(option)])}.`,
    };
  },
  second: (at) =>
    say`The numbers computed on the way are activations. Another text gives other activations; the parameters stay the same.${at.facts.digest === null ? '' : say` The fingerprint of all ${all(at)} of them, as they write here, is ${live(short(at.facts.digest), 'prompt')}. It stays the same while you type.`}`,
  task: { say: 'Type something else, and see the bars change.' },
};

const loss: Station = {
  title: 'Loss: how surprised it was',
  stand: { view: 'step', phase: 1, step: 'made' },
  points: ['batch', 'out'],
  needs: [],
  first: (at) => {
    const { opened } = at;
    return say`This is your own text, from the batch of step ${step(at)}. The highlighted token is followed by ${{ text: opened ? tokenWord(opened.forward.target) : '…' }}. The model had given it ${given(at)}: the loss is minus the logarithm of that, ${cost(at)}. A prediction that is certain and right has a loss of zero.`;
  },
  short: (at) =>
    say`In your text, the highlighted token is followed by ${{ text: at.opened ? tokenWord(at.opened.forward.target) : '…' }}; the model had given it ${given(at)}. The loss is minus the logarithm of that: ${cost(at)}. Nobody wrote the answers: they are in the text.`,
  question: (at) => {
    const { opened } = at;
    const three = opened ? threeSurprises(opened.loss.tokens) : [];
    if (!opened || three.length < 3) return null;
    const costs = three.map((i) => opened.loss.tokens[i]!);
    const texts = three.map(
      (i) =>
        [
          {
            text: `${shown(opened.forward.tokens.slice(Math.max(0, i - 9), i + 1).join(''))}|${shown(followerOf(opened, i))}`,
          },
        ] as Piece[],
    );
    return {
      ask: say`Here are three places in this window: the text before, a bar, and what came next. Which surprised the model most?`,
      options: texts,
      right: costs.indexOf(Math.max(...costs)),
      reveal: say`Their losses: ${costs.flatMap((cost, i) => [i ? '; ' : '', number('loss of a token', cost, 'batch', { of: tokenWord(followerOf(opened, three[i]!)), step: at.step })])}.`,
    };
  },
  second: (at) =>
    say`The loss of the step is the mean over all ${counted(at.opened && at.opened.forward.batch.flat().length * at.opened.loss.tokens.length, 'tokens in the batch', 'batch')} tokens of the batch: ${number('loss of the batch', at.opened?.loss.value, 'timeline', { step: at.step })}. Nobody wrote the answers: they are the text itself, shifted by one token.`,
  task: { say: 'Click another token of the text at the left.' },
};

const backward: Station = {
  title: 'Backward: a slope for each',
  stand: { view: 'map', side: 'number', mode: 'gradient', step: 'made' },
  points: ['number', 'map'],
  needs: ['life', 'nudge'],
  first: (at) =>
    say`The computation is followed backwards from the loss, and each of the ${all(at)} numbers gets a gradient: how much the loss of this batch would change per unit if this number grew. For ${{ text: at.address }} it is ${number('gradient', at.facts.life?.gradient, 'number', here(at))}. All are computed at once; nothing is tried out.`,
  short: (at) =>
    say`Backwards, each of the ${all(at)} numbers gets a gradient: the slope of the loss. For this one: ${number('gradient', at.facts.life?.gradient, 'number', here(at))}.`,
  question: (at) => {
    const move = at.facts.nudge?.moves[0];
    if (!move) return null;
    const right = move.measured === 0 ? 2 : move.measured > 0 ? 0 : 1;
    return {
      ask: say`Now raise this one number by ${{ what: 'change of the parameter', value: move.size, of: at.address }}, and nothing else. What does the loss of the batch do?`,
      options: [['it rises'], ['it falls'], ['it stays']],
      right,
      reveal: say`Measured: ${number('change of the loss', move.measured, 'number', { of: `${at.address}, moved by ${move.size}`, step: at.step, signed: true })}. Gradient times move had predicted ${number('change of the loss by the gradient', move.predicted, 'number', { of: `${at.address}, moved by ${move.size}`, step: at.step, signed: true })}. A slope is exact only for small moves: the larger the move, the larger the error.`,
    };
  },
  second: () =>
    say`The colours of the parameter map now show the gradients. Orange: the loss would fall if the number grew. Blue: it would rise. They are discarded after the update; the next batch has its own.`,
  task: { say: 'Nudge it yourself: click «nudge» above the number, and move the slider.' },
};

const update: Station = {
  title: 'Update: a small move for each',
  stand: { view: 'map', side: 'number', mode: 'update', step: 'made' },
  points: ['number', 'map'],
  needs: ['life', 'share'],
  reveals: ['rises'],
  first: (at) => {
    const rule = ruleOf(at);
    const { life } = at.facts;
    return say`Plain SGD moves a number against its gradient, by minus the learning rate times the gradient: ${number('update of plain SGD', life?.plain_sgd, 'number', { ...here(at), signed: true })} here. ${rule.remembers ? `This run uses ${rule.name}, which` : 'That is the rule of this run; it'} moved it by ${number('update', life?.update, 'number', { ...here(at), signed: true })}. ${{ text: rule.adds }}`;
  },
  short: (at) =>
    say`The update moves each number a little: this one by ${number('update', at.facts.life?.update, 'number', { ...here(at), signed: true })}. No one chose that.`,
  question: (at) => {
    const { share } = at.facts;
    if (!share) return null;
    const rule = ruleOf(at);
    return {
      ask: say`In this step, what share of ${share.whole ? 'the' : 'the first'} ${counted(share.cells, `cells of ${at.tensor.name}`)} numbers of ${{ text: at.tensor.name }} moved in the opposite direction to plain SGD, along their gradient?`,
      truth: share.along / share.cells,
      reveal: say`${number('number of', share.along, 'map', { of: `cells of ${at.tensor.name} that moved along their gradient`, step: at.step })} of ${counted(share.cells, `cells of ${at.tensor.name}`)}: ${{ what: 'share', value: share.along / share.cells, of: `the cells of ${at.tensor.name} that moved along their gradient`, step: at.step, digits: 3 }}. ${share.along === 0 ? 'Each went against its gradient, or did not move.' : rule.remembers ? 'For these, what the rule remembers and adds outweighed the gradient of this batch.' : 'For these, the pull towards zero outweighed the gradient.'}`,
    };
  },
  second: (at) => {
    const { rises } = at.facts;
    return say`The loss does not fall at every step either: in ${counted(rises?.rose, 'steps in which the loss rose', 'timeline')} of ${counted(rises?.of, 'steps whose loss is known', 'timeline')} steps it was higher than in the one before. Each step uses another batch, and a step that helps with one batch need not help with the next.`;
  },
  task: { say: 'Go to another step: drag the time line, or type a step into the top bar.' },
};

const learning: Station = {
  title: 'It learned by itself',
  stand: { view: 'map', side: 'writes', mode: 'value', step: 'end' },
  points: ['writes', 'timeline', 'play'],
  needs: [],
  reveals: ['chat'],
  first: (at) => {
    const read =
      at.run.steps_made *
      Number(at.run.config.model?.context ?? 0) *
      Number(at.run.config.training?.batch_size ?? 0) *
      Number(at.run.config.training?.accumulation ?? 1);
    const samples = at.run.samples.filter((sample) => sample.temperature > 0);
    const [from, to] = [samples[0], samples.at(-1)];
    const wrote =
      from && to && to !== from
        ? say` From «${live(shown(from.text.trim().slice(0, 18)), 'writes')}» it came to «${live(shown(to.text.trim().slice(0, 28)), 'writes')}».`
        : [];
    return say`Forward, loss, backward, update: ${counted(at.run.steps_made, 'steps made', 'timeline')} times, over ${counted(read, 'tokens read')} tokens of the text. No one set a weight, and no one wrote an answer.${wrote}`;
  },
  short: (at) =>
    say`${counted(at.run.steps_made, 'steps made', 'timeline')} such steps, and no one set a weight. What people chose: the text, the hyperparameters, the rule, and when to stop.`,
  question: (at) => {
    const { chat } = at.facts;
    return {
      ask: say`Now you chat with it for an hour. How many of its ${all(at)} parameters change?`,
      options: [[counted(0, 'parameters that change')], ['a few'], ['all']],
      right: 0,
      reveal: chat ? wrote(chat) : say`Generating text, and comparing the parameters…`,
    };
  },
  second: (at) => {
    const best = at.run.best_step;
    return say`What people chose: the text, the hyperparameters, the rule, and when to stop.${best !== null && at.run.evaluations.length ? say` On the text held back from training, step ${number('step', best, 'timeline')} was the best.` : ''} Everything else is in the ${all(at)} numbers.`;
  },
  task: { say: 'Watch it once more from birth: press ▶ at the top.' },
};

const article: Station = {
  title: 'What the article says',
  stand: { view: 'article', step: 'made' },
  points: [],
  needs: [],
  first: () =>
    say`This page began with an article about «LLM parameters». It ends: «please let me know if I have twisted anything». You have seen all that it takes to judge: its claims are behind this card, each with numbers of this run.`,
  short: () => say`The article's claims, one by one.`,
  question: () => ({
    ask: say`Which of these does the article get wrong?`,
    options: [
      ['weights can change while it learns'],
      ['temperature frames what it learns'],
      ['parameters are random at first'],
    ],
    right: 1,
    reveal: say`Temperature, top-k and top-p act after training, on the probabilities of the next token: they change no weight.`,
  }),
  second: () =>
    say`The rest is right, or right but incomplete: most often because there is more than weights, or because the rule decides how far a number moves.`,
  task: { say: 'Click a number of the article, and see where it stands.' },
};

export const stations: readonly Station[] = [
  one,
  census,
  chose,
  birth,
  forward,
  loss,
  backward,
  update,
  learning,
  article,
];

const wrote = ({ tokens, before, after }: Values['chat']): Piece[] =>
  before === null || after === null
    ? say`It just wrote ${counted(tokens, 'tokens written')} tokens. To write, it reads its parameters and changes none of them.`
    : say`It just wrote ${counted(tokens, 'tokens written')} tokens. Fingerprint of its parameters before: ${live(short(before), 'count')}; after: ${live(short(after), 'count')}. ${before === after ? 'None changed: writing teaches it nothing.' : 'They differ, and should not: please report it.'}`;

/** The probability that training gave to the token that really came next, and the loss that this costs. */
const given = ({ opened }: At): Piece =>
  number('probability', opened?.forward.target_probability, 'out', {
    of: opened ? tokenWord(opened.forward.target) : '',
    step: opened?.step,
  });
const cost = ({ opened }: At): Piece =>
  lossAs('loss of a token', opened ? (opened.loss.tokens[opened.forward.token] ?? null) : undefined, 'out', {
    of: opened ? tokenWord(opened.forward.target) : '',
    step: opened?.step,
  });

/** How widely a tensor was drawn, where it was drawn at random. */
function spread(at: At): Piece[] {
  const { name, birth, std } = at.tensor;
  const tensor = { text: name };
  if (birth !== 'normal') return say`All of ${tensor}, which you chose, begin at ${birth}.`;
  const of = name;
  return say`In ${tensor} their standard deviation is ${number('standard deviation', at.facts.spread?.std, 'map', { of, from: 'the numbers drawn' })}, ${{ what: 'standard deviation', value: std, of: `${of}, asked for` }} was asked for.`;
}

/** White space that can be seen, at the ends, too. */
export const shown = (text: string): string =>
  text.replaceAll('\n', '↵').replace(/^ +| +$/g, (spaces) => '␣'.repeat(spaces.length));

function followerOf(opened: NonNullable<At['opened']>, i: number): string {
  return opened.forward.tokens[i + 1] ?? opened.forward.target;
}

/** The tokens that could come next, likeliest first, as the bars on the page show them: temperature and cuts included. */
function predictionsOf(at: At, next: Next): Likely[] {
  const { kept } = filterLogits(next.logits, at.sampling, next.tokens);
  const name = (id: number): string => at.run.vocab?.[id] ?? `token ${id}`;
  return Array.from(kept, (p, id): Likely => [name(id), p]).sort((a, b) => b[1] - a[1]);
}
