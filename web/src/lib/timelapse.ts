/** Draws the time-lapse of a training, ten seconds long, and a poster of the model at birth and now. */

import { firstMatrix } from './address';
import { palette, SHADES, shader } from './colour';
import { type Colours, colours, FONTS } from './constants';
import type { Film } from './film';
import { arrange, shape2, type Layout, type Piece } from './layout';
import type { Scales } from './scales.svelte';
import { validationFigure, write } from './figure';
import { count, roleOf } from './text';
import type { RunInfo, Sample } from './types';

export const WIDTH = 1280;
export const HEIGHT = 720;
export const SECONDS = 10;
const LEAD = 0.9; // seconds at birth, and at the end
const TAIL = 1.8;
const MOST_FRAMES = 100;
/** A frame of the film; its numbers are unfolded when they are asked for, since all together are too many. */
interface Frame {
  step: number;
  values: () => Float32Array;
}

/** All that the pictures show. */
export interface Scene {
  run: RunInfo;
  film: Film | null;
  frames: Frame[]; // in order; none without a film
  scales: Scales;
  curve: { steps: number[]; low: (number | null)[]; high: (number | null)[] };
  dark: boolean;
}

type Context = CanvasRenderingContext2D;
interface Box {
  x: number;
  y: number;
  width: number;
  height: number;
}

/** Which frames of a film are shown: the first, the last, and so many between them. */
export function chosenFrames(frames: number): number[] {
  const shown = Math.min(frames, MOST_FRAMES);
  return [...new Set(Array.from({ length: shown }, (_, i) => Math.round((i * (frames - 1)) / Math.max(1, shown - 1))))];
}

/** Where the film stands after so many seconds: the number of its frame. */
export function frameAt(seconds: number, frames: number): number {
  const share = (seconds - LEAD) / (SECONDS - LEAD - TAIL);
  return Math.max(0, Math.min(frames - 1, Math.round(share * (frames - 1))));
}

/** What the model had last written at a step, with the sampling that a run is looked at with. */
export function writtenAt(run: RunInfo, step: number): Sample | undefined {
  const before = run.samples.filter((sample) => sample.step <= step);
  const drawn = before.filter((sample) => sample.temperature > 0);
  return (drawn.length ? drawn : before).at(-1);
}
export const writtenFirst = (run: RunInfo): Sample | undefined =>
  run.samples.find((s) => s.step === 0 && s.temperature > 0) ?? run.samples[0];
/** As it can be drawn: a control character is a dot. */
export const textOf = (sample: Sample | undefined): string =>
  sample ? (sample.prompt + sample.text).trim().replace(/[^\P{Cc}\n\t]/gu, '·') : 'It has not written yet.';

/** The step of the moment that is shown, and the map then: painted once, as long as the frame stays. */
export class Projector {
  private readonly shot = new OffscreenCanvas(WIDTH, HEIGHT);
  private shown = -1;
  private readonly room: Box = { x: 24, y: 66, width: 836, height: 470 };
  private readonly layout: Layout;

  constructor(private readonly scene: Scene) {
    this.layout = arrange(scene.run.tensors, scene.run.tied, this.room.width, this.room.height);
  }

  /** The moment so many seconds after the beginning. Returns the step that it shows. */
  draw(context: Context, seconds: number): number {
    const { scene, room } = this;
    const { run, frames } = scene;
    const number = frameAt(seconds, Math.max(1, frames.length));
    const step = frames[number]?.step ?? Math.round((frameAt(seconds, 1001) / 1000) * run.steps_made);
    const ink = colours(scene.dark);
    ground(context, ink);
    heading(context, ink, run, 24, 40);
    text(context, `step ${count(step)} of ${count(run.steps_made)}`, WIDTH - 24, 40, ink.ink, 22, {
      align: 'right',
      weight: 650,
    });
    if (number !== this.shown && frames[number]) {
      const inside = this.shot.getContext('2d')! as unknown as Context;
      inside.clearRect(0, 0, WIDTH, HEIGHT);
      drawMap(inside, scene, frames[number], this.layout, room, ink);
      this.shown = number;
    }
    if (frames.length) context.drawImage(this.shot, 0, 0);
    else text(context, 'No film was recorded of this run.', room.x, room.y + 30, ink.soft, 16);
    const [first, now] = [writtenFirst(run), writtenAt(run, step)];
    const right = { x: 884, width: WIDTH - 884 - 24 };
    text(context, 'at birth it wrote', right.x, 82, ink.faint, 14);
    paragraph(context, textOf(first), { ...right, y: 88, height: 150 }, ink.soft, 15);
    text(context, now ? `at step ${count(now.step)} it wrote` : 'now', right.x, 268, ink.faint, 14);
    paragraph(context, textOf(now), { ...right, y: 274, height: 262 }, ink.ink, 17);
    curve(context, scene, step, { x: 24, y: 556, width: WIDTH - 48, height: 130 }, ink);
    text(context, about(scene), 24, 708, ink.faint, 12);
    text(context, 'made with Vitrine', WIDTH - 24, 708, ink.faint, 12, { align: 'right' });
    return step;
  }
}

/** Birth beside now: every tensor to scale, and the first sentence against the last. */
export function drawPoster(context: Context, scene: Scene): void {
  const { run, frames } = scene;
  const ink = colours(scene.dark);
  ground(context, ink);
  heading(context, ink, run, 24, 40);
  text(context, `${count(run.steps_made)} steps, no number set by hand`, WIDTH - 24, 40, ink.soft, 18, {
    align: 'right',
  });
  const width = (WIDTH - 48 - 24) / 2;
  const layout = arrange(run.tensors, run.tied, width, 372);
  const last = frames.at(-1);
  const sides = [
    { x: 24, title: 'birth', words: 'before the first step', picture: frames[0], sample: writtenFirst(run) },
    {
      x: 24 + width + 24,
      title: 'now',
      words: `after ${count(last?.step ?? run.steps_made)} steps`,
      picture: last,
      sample: writtenAt(run, run.steps_made),
    },
  ];
  sides.forEach(({ x, title, words, picture, sample }, side) => {
    const wide = text(context, title, x, 84, ink.ink, 22, { weight: 650 });
    text(context, words, x + wide + 10, 84, ink.soft, 15);
    if (picture) drawMap(context, scene, picture, layout, { x, y: 98, width, height: 372 }, ink);
    else text(context, 'No film was recorded of this run.', x, 130, ink.soft, 15);
    text(context, sample ? `wrote at step ${count(sample.step)}` : '', x, 500, ink.faint, 14);
    paragraph(
      context,
      sample ? `«${sentenceOf(textOf(sample))}»` : textOf(sample),
      { x, y: 504, width: width - 10, height: 116 },
      side ? ink.ink : ink.soft,
      20,
    );
  });
  context.fillStyle = ink.line;
  context.fillRect(WIDTH / 2, 64, 1, 548);
  text(context, losses(scene), 24, 656, ink.ink, 18, { weight: 650 });
  text(context, about(scene), 24, 700, ink.faint, 13);
  text(context, 'made with Vitrine', WIDTH - 24, 700, ink.faint, 13, { align: 'right' });
}

/** The first sentence, or as much of it as fits a poster. */
export function sentenceOf(written: string): string {
  const line = written.replace(/\s+/g, ' ').trim();
  const found = /^.{12,}?[.!?](?=\s|$)/.exec(line)?.[0] ?? line;
  const letters = Array.from(found);
  return letters.length > 170 ? `${letters.slice(0, 169).join('')}…` : found;
}

/** From pure guessing to where the curve ends. */
function losses({ run, curve }: Scene): string {
  const first = curve.steps[0] === 0 && curve.low[0] === curve.high[0] ? (curve.low[0] ?? undefined) : undefined; // one step, not several
  const last = run.evaluations.findLast((e) => Number.isFinite(e.loss));
  const end = last
    ? `validation loss ${write(validationFigure(last))}`
    : lossAt(
        curve,
        curve.low.findLastIndex((loss) => loss !== null),
      );
  return [
    `pure guessing: loss ${write({ what: 'loss of guessing', value: run.guessing_loss })}`,
    first === undefined ? '' : `at birth ${write({ what: 'loss of the batch', value: first })}`,
    end && `now: ${end}`,
  ]
    .filter(Boolean)
    .join('   →   ');
}

/** A point of the curve: the loss of its step, or the lowest and highest of several. */
function lossAt({ low, high }: Scene['curve'], i: number): string {
  const [least, most] = [low[i], high[i]];
  if (typeof least !== 'number' || typeof most !== 'number') return '';
  const end = (value: number): string => write({ what: 'training loss', value });
  return `loss ${least === most ? end(least) : `${end(least)} to ${end(most)}`}`;
}

/** What the pixels are. */
function about({ run, film, scales }: Scene): string {
  if (!film) return '';
  const [shown, all] = [film.values.count, run.parameters];
  const matrix = firstMatrix(run.tensors);
  const full = matrix && scales.of(matrix.name, 'value').full;
  const share = shown < all ? `${count(shown)} of ${count(all)} parameters, each a real one` : 'every parameter';
  return `${share}, rounded to a byte · orange: below zero, blue: above${full ? ` (full colour of ${roleOf(matrix!)[1]}: ±${full})` : ''}`;
}

// --- the parts of a picture --------------------------------------------------------------------------------------

function ground(context: Context, ink: Colours): void {
  context.setTransform(context.canvas.width / WIDTH, 0, 0, context.canvas.height / HEIGHT, 0, 0);
  context.fillStyle = ink.paper;
  context.fillRect(0, 0, WIDTH, HEIGHT);
}

function heading(context: Context, ink: Colours, run: RunInfo, x: number, y: number): void {
  [ink.positive, ink.line, ink.line, ink.negative].forEach((colour, i) => {
    context.fillStyle = colour;
    context.fillRect(x + (i % 2) * 12, y - 19 + Math.floor(i / 2) * 12, 10, 10);
  });
  const words =
    run.events.at(-1)?.kind === 'diverged'
      ? 'numbers, and a training that diverged'
      : run.steps_made
        ? 'numbers, learning to write'
        : 'numbers, newborn';
  text(context, `${count(run.parameters)} ${words}`, x + 36, y, ink.ink, 22, { weight: 650 });
}

/** One line. Returns its width. */
function text(
  context: Context,
  line: string,
  x: number,
  y: number,
  colour: string,
  size: number,
  how: { align?: CanvasTextAlign; weight?: number; mono?: boolean } = {},
): number {
  context.font = `${how.weight ?? 400} ${size}px ${how.mono ? FONTS.mono : FONTS.sans}`;
  context.textAlign = how.align ?? 'left';
  context.textBaseline = 'alphabetic';
  context.fillStyle = colour;
  context.fillText(line, x, y);
  return context.measureText(line).width;
}

/** As many lines as there is room for. */
function paragraph(context: Context, written: string, box: Box, colour: string, size: number): void {
  context.font = `400 ${size}px ${FONTS.mono}`;
  const step = Math.round(size * 1.4);
  const most = Math.max(1, Math.floor(box.height / step));
  const lines = wrap(written, Math.max(8, Math.floor(box.width / context.measureText('0').width)));
  const shown = lines.slice(0, most);
  if (lines.length > most) shown[most - 1] = `${shown[most - 1]!.slice(0, -1)}…`;
  shown.forEach((line, i) => text(context, line, box.x, box.y + step * (i + 1), colour, size, { mono: true }));
}

/** Lines of at most so many letters, broken between words where there are any. */
export function wrap(written: string, letters: number): string[] {
  const lines: string[] = [];
  for (const part of written.replace(/\t/g, ' ').split('\n')) {
    let rest = Array.from(part);
    while (rest.length > letters) {
      const space = rest.slice(0, letters + 1).lastIndexOf(' ');
      const at = space > letters / 2 ? space : letters;
      lines.push(rest.slice(0, at).join(''));
      rest = rest.slice(space > letters / 2 ? at + 1 : at);
    }
    lines.push(rest.join(''));
  }
  return lines;
}

/** Every tensor to scale, in the middle of its room. */
function drawMap(context: Context, scene: Scene, frame: Frame, layout: Layout, room: Box, ink: Colours): void {
  const fit = Math.min(room.width / layout.width, room.height / layout.height, 2);
  context.save();
  context.translate(room.x + (room.width - fit * layout.width) / 2, room.y + (room.height - fit * layout.height) / 2);
  context.scale(fit, fit);
  context.imageSmoothingEnabled = false;
  const values = frame.values();
  for (const piece of layout.pieces) {
    const image = paint(scene, values, piece, layout.scale);
    const thick = piece.tensor.shape.length === 1;
    const wide = thick && piece.turned ? piece.width : image.picture.width * image.side * layout.scale;
    const high = thick && !piece.turned ? piece.height : image.picture.height * image.side * layout.scale;
    context.drawImage(image.picture, piece.x, piece.y, Math.max(1, wide), Math.max(1, high));
  }
  for (const ghost of layout.ghosts) {
    context.strokeStyle = ink.faint;
    context.setLineDash([3, 3]);
    context.strokeRect(ghost.x + 0.5, ghost.y + 0.5, ghost.width - 1, ghost.height - 1);
    context.setLineDash([]);
  }
  for (const label of layout.labels)
    if (label.strong)
      text(context, label.width < 50 && label.brief ? label.brief : label.text, label.x, label.y + 10, ink.soft, 11);
  context.restore();
}

/** The pixels of a piece: each is one parameter that the film has. */
function paint(
  { film, scales, dark }: Scene,
  values: Float32Array,
  piece: Piece,
  scale: number,
): { picture: OffscreenCanvas; side: number } {
  const shades = palette(dark);
  const picks = film!.values.tensors.get(piece.tensor.name)!;
  const shade = shader(scales.of(piece.tensor.name, 'value'));
  const [level, skip] = [film!.values.level, Math.max(1, Math.round(1 / (scale * 2 ** film!.values.level)))];
  const side = skip * 2 ** level;
  const vector = shape2(piece.tensor)[0] === 1;
  const [down, across] = [vector ? 1 : Math.ceil(piece.rows / side), Math.ceil(piece.columns / side)];
  const [width, height] = piece.turned ? [down, across] : [across, down];
  const image = new OffscreenCanvas(width, height);
  const context = image.getContext('2d')!;
  const pixels = context.createImageData(width, height);
  const data = new Uint32Array(pixels.data.buffer);
  const top = piece.rowFrom >> level;
  for (let i = 0; i < down; i++)
    for (let j = 0; j < across; j++) {
      const index = shade(values[picks.start + (top + i * skip) * picks.columns + j * skip]!);
      data[piece.turned ? j * width + i : i * width + j] = shades[index + SHADES]!;
    }
  context.putImageData(pixels, 0, 0);
  return { picture: image, side };
}

/** The loss, as far as it has come, under the line of pure guessing. */
function curve(context: Context, { run, curve: losses }: Scene, step: number, box: Box, ink: Colours): void {
  const { steps, low, high } = losses;
  context.fillStyle = ink.panel;
  context.fillRect(box.x, box.y, box.width, box.height);
  const known = [...low, ...high].filter((loss): loss is number => loss !== null && Number.isFinite(loss));
  const guess = run.guessing_loss;
  const [least, most] = [
    Math.min(guess, ...extremes(known)) - 0.1,
    Math.max(guess, Math.min(guess * 1.6, Math.max(guess, ...extremes(known)))) + 0.25,
  ];
  const x = (at: number): number => box.x + 12 + ((box.width - 24) * at) / Math.max(1, run.steps_made);
  const y = (loss: number): number =>
    box.y + 8 + (box.height - 16) * (1 - (Math.min(most, Math.max(least, loss)) - least) / (most - least));
  context.strokeStyle = ink.faint;
  context.setLineDash([5, 5]);
  line(context, [
    [box.x, y(guess)],
    [box.x + box.width, y(guess)],
  ]);
  context.setLineDash([]);
  text(
    context,
    `pure guessing: ${write({ what: 'loss of guessing', value: guess })}`,
    box.x + box.width - 8,
    y(guess) - 6,
    ink.faint,
    13,
    {
      align: 'right',
    },
  );
  const end = steps.findIndex((at) => at > step);
  const points = steps.slice(0, end < 0 ? steps.length : end).flatMap((at, i): [number, number][] => {
    const [a, b] = [low[i], high[i]];
    return typeof a !== 'number' || typeof b !== 'number'
      ? []
      : a === b
        ? [[x(at), y(a)]]
        : [
            [x(at), y(a)],
            [x(at), y(b)],
          ];
  });
  context.strokeStyle = ink.ink;
  context.lineWidth = 1.6;
  line(context, points);
  context.lineWidth = 1;
  const last = points.at(-1);
  if (!last) return;
  context.fillStyle = ink.plum;
  context.beginPath();
  context.arc(last[0], last[1], 6, 0, 7);
  context.fill();
  const right = last[0] > box.x + box.width - 180;
  text(
    context,
    lossAt(losses, (end < 0 ? steps.length : end) - 1),
    last[0] + (right ? -12 : 12),
    Math.min(last[1], box.y + box.height) - 10,
    ink.plum,
    15,
    { align: right ? 'right' : 'left', weight: 650 },
  );
}

/** The least and the greatest of the numbers; nothing where there are none. */
function extremes(numbers: number[]): number[] {
  if (!numbers.length) return [];
  return [numbers.reduce((a, b) => Math.min(a, b)), numbers.reduce((a, b) => Math.max(a, b))];
}

function line(context: Context, points: [number, number][]): void {
  context.beginPath();
  points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.stroke();
}
