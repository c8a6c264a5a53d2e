/** Draws the marks on the loss curve: pure guessing, keyframes, the best validation loss and the current step. */

import type uPlot from 'uplot';
import { write } from './figure';
import { count } from './text';
import type { RunEvent } from './types';

export interface Ink {
  faint: string;
  soft: string;
  plum: string;
  paper: string;
  font: string; // of 10 pixels
}

export interface Marks {
  guessing: number; // the loss of pure guessing
  vocabulary: number;
  keyframes: number[];
  best: { step: number; loss: number; over: boolean } | null;
  step: number;
  shown: number | null; // whose picture is seen, where it is another step's
}

const GAP = 8; // between the marker and a label

export function drawMarks(u: uPlot, marks: Marks, ink: Ink): void {
  const { ctx, bbox } = u;
  const ratio = devicePixelRatio || 1;
  const [left, right, top, bottom] = [bbox.left, bbox.left + bbox.width, bbox.top, bbox.top + bbox.height];
  const at = (step: number): number => u.valToPos(step, 'x', true);
  const marker = Math.round(at(marks.step));

  const line = (
    x0: number,
    y0: number,
    x1: number,
    y1: number,
    colour: string,
    width: number,
    dash: number[] = [],
  ): void => {
    ctx.strokeStyle = colour;
    ctx.lineWidth = width * ratio;
    ctx.setLineDash(dash.map((length) => length * ratio));
    ctx.beginPath();
    ctx.moveTo(x0, y0);
    ctx.lineTo(x1, y1);
    ctx.stroke();
    ctx.setLineDash([]);
  };
  const circle = (x: number, y: number, radius: number): void => {
    ctx.beginPath();
    ctx.arc(x, y, radius * ratio, 0, 7);
  };
  /** As near to `x` as it can stand inside, and never under the marker. */
  const label = (text: string, x: number, y: number, colour: string): void => {
    const width = ctx.measureText(text).width;
    const gap = GAP * ratio;
    let from = Math.max(left + 2 * ratio, Math.min(right - width - 2 * ratio, x - width / 2));
    if (marker > from - gap && marker < from + width + gap)
      from = marker - gap - width >= left ? marker - gap - width : marker + gap;
    ctx.lineWidth = 3 * ratio;
    ctx.strokeStyle = ink.paper;
    ctx.strokeText(text, from, y);
    ctx.fillStyle = colour;
    ctx.fillText(text, from, y);
  };

  ctx.save();
  ctx.font = ink.font.replace('10px', `${10 * ratio}px`);
  ctx.textAlign = 'left';
  ctx.lineJoin = 'round';
  const guess = Math.round(u.valToPos(marks.guessing, 'y', true)) + 0.5;
  line(left, guess, right, guess, ink.faint, 1, [4, 4]);
  ctx.fillStyle = ink.faint;
  for (const step of marks.keyframes) {
    const x = at(step);
    ctx.beginPath();
    ctx.moveTo(x, bottom - 6 * ratio);
    ctx.lineTo(x + 3 * ratio, bottom);
    ctx.lineTo(x - 3 * ratio, bottom);
    ctx.fill();
  }
  if (marks.best) {
    const [x, y] = [at(marks.best.step), u.valToPos(marks.best.loss, 'y', true)];
    ctx.strokeStyle = ink.plum;
    ctx.lineWidth = 1.5 * ratio;
    circle(x, y, 5);
    ctx.stroke();
    if (marks.best.over) line(x, y + 7 * ratio, x, bottom, ink.plum, 1, [2, 2]);
    const text = marks.best.over
      ? 'best validation: over-fitting from here'
      : `best validation ${write({ what: 'validation loss, sampled', value: marks.best.loss })}`;
    const above = y - 11 * ratio;
    label(text, x, Math.abs(above - guess) < 14 * ratio ? y + 16 * ratio : above, ink.plum);
  }
  label(
    `pure guessing: ln(${count(marks.vocabulary)}) = ${write({ what: 'loss of guessing', value: marks.guessing })}`,
    right,
    guess - 4 * ratio,
    ink.soft,
  );
  if (marks.shown !== null) {
    ctx.globalAlpha = 0.5;
    const x = Math.round(at(marks.shown));
    line(x, top, x, bottom, ink.plum, 1, [2, 3]);
    ctx.globalAlpha = 1;
  }
  line(marker, top, marker, bottom, ink.plum, 2);
  ctx.fillStyle = ink.plum;
  circle(marker, top, 4.5);
  ctx.fill();
  ctx.restore();
}

const KINDS: Record<string, string> = {
  born: 'initialised',
  resumed: 'resumed',
  recomputed: 're-run and compared',
  paused: 'paused',
  continued: 'continued',
  diverged: 'diverged',
  steps: 'ended: all its steps were made',
  time: 'ended: its time was over',
  early: 'ended early: the validation loss rose',
  target: 'ended: its target was reached',
  interrupted: 'ended: it was stopped',
};

/** Events of one step, or of steps too near to be told apart on the line. */
export interface EventGroup {
  step: number;
  words: string;
  ill: boolean;
}

/** `apart`: how many steps are as wide as a mark. */
export function groupEvents(events: RunEvent[], apart: number): EventGroup[] {
  const groups: EventGroup[] = [];
  for (const event of [...events].sort((a, b) => a.step - b.step)) {
    const text = event.text.startsWith('digest ') ? '' : event.text.trim();
    const words = `step ${count(event.step)}: ${KINDS[event.kind] ?? event.kind}${text ? ` (${text})` : ''}`;
    const near = groups.at(-1);
    if (near && event.step - near.step <= apart) {
      near.words += `\n${words}`;
      near.ill ||= event.kind === 'diverged';
    } else groups.push({ step: event.step, words, ill: event.kind === 'diverged' });
  }
  return groups;
}

/** The keyframe that is nearest to a step. */
export const nearestKeyframe = (keyframes: number[], step: number): number | null =>
  keyframes.reduce<number | null>(
    (best, one) => (best === null || Math.abs(one - step) < Math.abs(best - step) ? one : best),
    null,
  );
