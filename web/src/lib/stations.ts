/** The texts and questions of the tour's nine stations; every number comes from the open run. */

import { filterLogits } from './sampling';
import { count, exact, KIND_WORDS, plain, signed, tokenWord } from './text';
import { byKind, live, say, threeSurprises, type At, type Piece, type Station, type Values } from './tour';
import type { Likely, Next } from './types';

const percent = (share: number): string =>
  share > 0 && share < 0.001 ? 'under 0.1%' : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;
const all = (at: At): string => count(at.run.parameters);
const chosen = (at: At, section: string, key: string): string => {
  const value = at.run.config[section]?.[key];
  return typeof value === 'number' ? (Number.isInteger(value) ? count(value) : plain(value, 3)) : String(value ?? '');
};
const tokens = (at: At): number => Math.round(Math.exp(at.run.guessing_loss));
const short = (digest: string | null | undefined): string | undefined => digest?.slice(0, 8);
const parent = (at: At): string => chosen(at, 'training', 'parent');
const after = (loss: number | null | undefined, digits = 3): string =>
  loss === null || loss === undefined ? 'not a number any more' : plain(loss, digits);

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
    say`A parameter is one number. This one, ${at.address}, is ${live(at.facts.life && exact(at.facts.life.before), 'number')} at step ${live(count(at.step), 'timeline')}; it was born as ${live(at.facts.life && exact(at.facts.life.birth), 'number')}. The ring on the map shows where it is among its neighbours.`,
  short: (at) =>
    say`A parameter is one number. This one is ${live(at.facts.life && exact(at.facts.life.before), 'number')} at step ${live(count(at.step), 'timeline')}, and was born as ${live(at.facts.life && exact(at.facts.life.birth), 'number')}.`,
  question: (at) => {
    const inputs = at.tensor.shape[1] ?? 1;
    const { neuron } = at.facts;
    return {
      ask: say`It belongs to one neuron${neuron ? `, which here reads the token ${tokenWord(neuron.text)}` : ''}. How many numbers does that neuron take in, each with its own weight?`,
      options: ['1', count(inputs), all(at)],
      right: 1,
      reveal: neuron
        ? say`${live(count(inputs), 'lens')}: a row of this matrix. Each input times its weight, all added up${neuron.bias ? ', and a bias' : ''}: ${live(signed(neuron.total, 4).trim(), 'number')}.`
        : say`${live(count(inputs), 'lens')}: a row of this matrix.`,
    };
  },
  second: (at) => {
    const { neuron } = at.facts;
    const j = at.cell.column;
    return neuron
      ? say`So a weight is the strength of a connection. Here the input is ${live(plain(neuron.inputs[j], 3), 'number')}; times the weight ${live(plain(neuron.weights[j], 3), 'number')} it adds ${live(signed(neuron.products[j]!, 3).trim(), 'number')} to the sum. Inputs come from the text and are gone afterwards. The weight stays.`
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
    return say`The model is ${live(all(at), 'count')} such numbers, drawn to scale. Weights are not the only ones. ${kinds.embedding ? say`Embeddings: a row of ${live(chosen(at, 'model', 'd_model'), 'hyperparameters')} numbers for each of ${live(count(tokens(at)), 'hyperparameters')} tokens. ` : ''}Gains: volume knobs of the norms. ${kinds.bias ? say`Biases: one number per output, added to its sum, and learned as well.` : ''}`;
  },
  short: (at) =>
    say`All of them are ${live(all(at), 'count')} numbers: weights, and other numbers that are learned too: embeddings (a row per token), gains${byKind(at.run.tensors).bias ? ', and biases (one number per output, added to its sum)' : ''}.`,
  question: (at) => {
    const kinds = byKind(at.run.tensors);
    const rest = (['embedding', 'bias', 'gain'] as const).map(
      (kind) => say`${live(count(kinds[kind]), 'map')} ${KIND_WORDS[kind][1]}`,
    );
    return {
      ask: say`What share of the ${live(all(at), 'count')} are weights?`,
      truth: kinds.weight / at.run.parameters,
      reveal: say`${live(count(kinds.weight), 'map')} weights: ${percent(kinds.weight / at.run.parameters)}. And ${rest[0]!}, ${rest[1]!}, ${rest[2]!}.`,
    };
  },
  second: (at) => {
    const kinds = byKind(at.run.tensors);
    const family = chosen(at, 'model', 'architecture');
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
    say`Hyperparameters are chosen by a person; learning never changes them. Here: ${live(chosen(at, 'model', 'n_layers'), 'hyperparameters')} blocks, a width of ${live(chosen(at, 'model', 'd_model'), 'hyperparameters')}, batches of ${live(chosen(at, 'training', 'batch_size'), 'hyperparameters')}, a learning rate of ${live(chosen(at, 'optimizer', 'learning_rate'), 'hyperparameters')}. They decide how many parameters there are, and how these learn.`,
  short: (at) =>
    say`Hyperparameters are chosen by a person: ${live(chosen(at, 'model', 'n_layers'), 'hyperparameters')} blocks, a learning rate of ${live(chosen(at, 'optimizer', 'learning_rate'), 'hyperparameters')}. Learning never changes them.`,
  question: (at) => {
    const { doubled } = at.facts;
    const row = (i: number): Piece[] =>
      say`${count(doubled![i]!.tokens)} tokens: ${live(count(doubled![i]!.parameters), 'count')} parameters, ${count(doubled![i]!.steps)} steps to read them once`;
    return {
      ask: say`The amount of text is a hyperparameter too. With twice the text, made of the same tokens, how many parameters does the model have?`,
      options: ['as many', 'twice as many', 'four times as many'],
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
    const start = parent(at) ? say`This run continued from ${parent(at)}; a new model is made like this. ` : [];
    return say`${start}A seed, here ${live(chosen(at, 'training', 'seed'), 'hyperparameters')}, draws the weights at random${zeros ? ', except for some projections, which begin at 0' : ''}. In ${at.tensor.name} their standard deviation is ${live(at.facts.spread && plain(at.facts.spread.std, 3), 'map')}${at.tensor.birth === 'normal' ? `, ${plain(at.tensor.std, 3)} was asked for` : ''}. Gains begin at exactly 1${byKind(at.run.tensors).bias ? ', biases at 0' : ''}.`;
  },
  short: (at) =>
    say`At birth a seed, here ${live(chosen(at, 'training', 'seed'), 'hyperparameters')}, draws the weights at random. The model knows nothing.`,
  question: (at) => {
    const { newborn } = at.facts;
    const guess = at.run.guessing_loss;
    return {
      ask: say`It knows nothing, and there are ${live(count(tokens(at)), 'hyperparameters')} tokens. About how large will its first loss be?`,
      options: ['0', `ln ${count(tokens(at))} = ${guess.toFixed(2)}`, count(tokens(at))],
      right: 1,
      reveal: say`${live(newborn && after(newborn.loss, 4), 'timeline')}. Pure guessing gives each token a probability of 1/${count(tokens(at))}; minus the logarithm of that is ln ${count(tokens(at))} = ${live(guess.toFixed(3), 'timeline')}, the dashed line.`,
    };
  },
  second: () =>
    say`Another seed draws other numbers, and the first seed draws the first numbers again, bit for bit. Their standard deviation was chosen with care: if it were 0, all units would be equal, and all would learn the same.`,
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
    return say`The text becomes tokens, and each token becomes its row of the table. The blocks mix these rows and add to them. At the end there is one bar for each of ${live(count(tokens(at)), 'bars')} tokens. After «${live(shown(at.prompt), 'prompt')}» the longest is ${live(best && tokenWord(best[0]), 'bars')}, with ${live(best && percent(best[1]), 'bars')} (at a temperature of ${live(at.sampling.temperature.toFixed(2), 'decoding')}).`;
  },
  short: (at) => say`Forward: from the text to one bar for each of ${live(count(tokens(at)), 'bars')} tokens.`,
  question: (at) => {
    const { prediction } = at.facts;
    const likely = prediction?.next ? predictionsOf(at, prediction.next) : (prediction?.likely ?? []);
    if (!prediction || likely.length < 3) return null;
    const best = likely[0]!;
    const options = [best, likely[Math.min(3, likely.length - 2)]!, likely[Math.min(7, likely.length - 1)]!].sort(
      (a, b) => (a[0] < b[0] ? -1 : 1),
    );
    return {
      ask: say`And after «${shown(prediction.prompt)}», which is in your text: which token ${prediction.next ? 'does it rank' : `did it rank at step ${count(prediction.step)}`} first?`,
      options: options.map(([text]) => tokenWord(text)),
      right: options.indexOf(best),
      reveal: say`${tokenWord(best[0])}, with ${live(percent(best[1]), 'bars')}. ${options
        .filter((option) => option !== best)
        .map(([text, p]) => `${tokenWord(text)}: ${percent(p)}`)
        .join('; ')}.`,
    };
  },
  second: (at) =>
    say`The numbers computed on the way are activations. Another text gives other activations; the parameters stay the same.${at.facts.digest === null ? '' : say` The fingerprint of all ${live(all(at), 'count')} of them, as they write here, is ${live(short(at.facts.digest), 'prompt')}. It stays the same while you type.`}`,
  task: { say: 'Type something else, and see the bars change.' },
};

const loss: Station = {
  title: 'Loss: how surprised it was',
  stand: { view: 'step', phase: 1, step: 'made' },
  points: ['batch', 'out'],
  needs: [],
  first: (at) => {
    const { opened } = at;
    const here = opened && opened.loss.tokens[opened.forward.token];
    return say`This is your own text, from the batch of step ${live(count(at.step), 'timeline')}. The highlighted token is followed by ${opened ? tokenWord(opened.forward.target) : '…'}. The model had given it ${live(opened ? percent(opened.forward.target_probability) : undefined, 'out')}: the loss is minus the logarithm of that, ${live(opened ? after(here, 3) : undefined, 'out')}. A prediction that is certain and right has a loss of 0.`;
  },
  short: (at) =>
    say`In your text, the highlighted token is followed by ${at.opened ? tokenWord(at.opened.forward.target) : '…'}; the model had given it ${live(at.opened ? percent(at.opened.forward.target_probability) : undefined, 'out')}. The loss is minus the logarithm of that: ${live(at.opened ? after(at.opened.loss.tokens[at.opened.forward.token], 3) : undefined, 'out')}. Nobody wrote the answers: they are in the text.`,
  question: (at) => {
    const { opened } = at;
    const three = opened ? threeSurprises(opened.loss.tokens) : [];
    if (!opened || three.length < 3) return null;
    const costs = three.map((i) => opened.loss.tokens[i]!);
    const texts = three.map(
      (i) =>
        `${shown(opened.forward.tokens.slice(Math.max(0, i - 9), i + 1).join(''))}|${shown(followerOf(opened, i))}`,
    );
    return {
      ask: say`Here are three places in this window: the text before, a bar, and what came next. Which surprised the model most?`,
      options: texts,
      right: costs.indexOf(Math.max(...costs)),
      reveal: say`Their losses: ${costs.flatMap((cost, i) => [i ? '; ' : '', live(plain(cost, 3), 'batch')])}.`,
    };
  },
  second: (at) =>
    say`The loss of the step is the mean over all ${live(at.opened ? count(at.opened.forward.batch.flat().length * at.opened.loss.tokens.length) : undefined, 'batch')} tokens of the batch: ${live(at.opened ? plain(at.opened.loss.value, 5) : undefined, 'timeline')}. Nobody wrote the answers: they are the text itself, shifted by one token.`,
  task: { say: 'Click another token of the text at the left.' },
};

const backward: Station = {
  title: 'Backward: a slope for each',
  stand: { view: 'map', side: 'number', mode: 'gradient', step: 'made' },
  points: ['number', 'map'],
  needs: ['life', 'nudge'],
  first: (at) =>
    say`The computation is followed backwards from the loss, and each of the ${live(all(at), 'count')} numbers gets a gradient: how much the loss of this batch would change per unit if this number grew. For ${at.address} it is ${live(at.facts.life && plain(at.facts.life.gradient, 4), 'number')}. All are computed at once; nothing is tried out.`,
  short: (at) =>
    say`Backwards, each of the ${live(all(at), 'count')} numbers gets a gradient: the slope of the loss. For this one: ${live(at.facts.life && plain(at.facts.life.gradient, 4), 'number')}.`,
  question: (at) => {
    const move = at.facts.nudge?.moves[0];
    if (!move) return null;
    const right = move.measured === 0 ? 2 : move.measured > 0 ? 0 : 1;
    return {
      ask: say`Now raise this one number by ${plain(move.size, 2)}, and nothing else. What does the loss of the batch do?`,
      options: ['it rises', 'it falls', 'it stays'],
      right,
      reveal: say`Measured: ${live(signed(move.measured, 3).trim(), 'number')}. Gradient times move had predicted ${live(signed(move.predicted, 3).trim(), 'number')}. A slope is exact only for small moves: the larger the move, the larger the error.`,
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
    return say`Plain SGD moves a number against its gradient, by minus the learning rate times the gradient: ${live(life && signed(life.plain_sgd, 3).trim(), 'number')} here. ${rule.remembers ? `This run uses ${rule.name}, which` : 'That is the rule of this run; it'} moved it by ${live(life && signed(life.update, 3).trim(), 'number')}. ${rule.adds}`;
  },
  short: (at) =>
    say`The update moves each number a little: this one by ${live(at.facts.life && signed(at.facts.life.update, 3).trim(), 'number')}. No one chose that.`,
  question: (at) => {
    const { share } = at.facts;
    if (!share) return null;
    const rule = ruleOf(at);
    return {
      ask: say`In this step, what share of ${share.whole ? 'the' : 'the first'} ${count(share.cells)} numbers of ${at.tensor.name} moved in the opposite direction to plain SGD, along their gradient?`,
      truth: share.along / share.cells,
      reveal: say`${live(count(share.along), 'map')} of ${count(share.cells)}: ${percent(share.along / share.cells)}. ${share.along === 0 ? 'Each went against its gradient, or did not move.' : rule.remembers ? 'For these, what the rule remembers and adds outweighed the gradient of this batch.' : 'For these, the pull towards zero outweighed the gradient.'}`,
    };
  },
  second: (at) => {
    const { rises } = at.facts;
    return say`The loss does not fall at every step either: in ${live(rises && count(rises.rose), 'timeline')} of ${live(rises && count(rises.of), 'timeline')} steps it was higher than in the one before. Each step uses another batch, and a step that helps with one batch need not help with the next.`;
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
    return say`Forward, loss, backward, update: ${live(count(at.run.steps_made), 'timeline')} times, over ${count(read)} tokens of the text. No one set a weight, and no one wrote an answer.${wrote}`;
  },
  short: (at) =>
    say`${live(count(at.run.steps_made), 'timeline')} such steps, and no one set a weight. What people chose: the text, the hyperparameters, the rule, and when to stop.`,
  question: (at) => {
    const { chat } = at.facts;
    return {
      ask: say`Now you chat with it for an hour. How many of its ${live(all(at), 'count')} parameters change?`,
      options: ['0', 'a few', 'all'],
      right: 0,
      reveal: chat ? wrote(chat) : say`Generating text, and comparing the parameters…`,
    };
  },
  second: (at) => {
    const best = at.run.best_step;
    return say`What people chose: the text, the hyperparameters, the rule, and when to stop.${best !== null && at.run.evaluations.length ? say` On the text held back from training, step ${live(count(best), 'timeline')} was the best.` : ''} Everything else is in the ${live(all(at), 'count')} numbers.`;
  },
  task: { say: 'Watch it once more from birth: press ▶ at the top.' },
};

export const stations: readonly Station[] = [one, census, chose, birth, forward, loss, backward, update, learning];

const wrote = ({ tokens, before, after }: Values['chat']): Piece[] =>
  before === null || after === null
    ? say`It just wrote ${count(tokens)} tokens. To write, it reads its parameters and changes none of them.`
    : say`It just wrote ${count(tokens)} tokens. Fingerprint of its parameters before: ${live(short(before), 'count')}; after: ${live(short(after), 'count')}. ${before === after ? '0 changed: writing teaches it nothing.' : 'They differ, and should not: please report it.'}`;

/** White space that can be seen. */
export const shown = (text: string): string => text.replaceAll('\n', '↵');

function followerOf(opened: NonNullable<At['opened']>, i: number): string {
  return opened.forward.tokens[i + 1] ?? opened.forward.target;
}

/** The tokens that could come next, likeliest first, as the bars on the page show them: temperature and cuts included. */
function predictionsOf(at: At, next: Next): Likely[] {
  const { kept } = filterLogits(next.logits, at.sampling, next.tokens);
  const name = (id: number): string => at.run.vocab?.[id] ?? `token ${id}`;
  return Array.from(kept, (p, id): Likely => [name(id), p]).sort((a, b) => b[1] - a[1]);
}
