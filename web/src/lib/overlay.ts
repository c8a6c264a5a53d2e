/** Draws labels, outlines and numbers over the cells of the parameter map. */

import { placed } from './camera.svelte';
import { inkOn, shadeOf, SHADES } from './colour';
import { colours, FONTS } from './constants';
import type { Field } from './field';
import { cellHeight, cellWidth, LINE, rectangleOf, type Label, type Piece } from './layout';
import type { Scene } from './scene';
import type { Scales } from './scales.svelte';
import { cell as cellText, exact } from './text';

export interface Look {
  field: Field;
  colour: (name: string) => string;
  scales: Scales;
  dark: boolean;
  chosen: { name: string; row: number; column: number };
}

const NUMBERED = 40; // pixels of a cell in which its number is read
const LONG = 110; // and in which all its digits are
const widths = new Map<string, number>();

/** All that is over the cells. */
export function overlay(context: CanvasRenderingContext2D, scene: Scene, look: Look): void {
  const { ratio, layout, view } = scene;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  const perCell = layout.scale * view.zoom;
  if (perCell >= NUMBERED) for (const piece of layout.pieces) numbers(context, scene, look, piece, perCell);
  outline(context, scene, look);
  margins(context, scene, look);
  context.textAlign = 'left';
  context.textBaseline = 'alphabetic';
  for (const label of layout.labels) words(context, scene, look, label);
  ghosts(context, scene, look);
  ring(context, scene, look);
}

/** The numbers themselves, in cells that are large enough. */
function numbers(
  context: CanvasRenderingContext2D,
  { layout, view, size, mode, windows }: Scene,
  { field, scales, dark }: Look,
  piece: Piece,
  perCell: number,
): void {
  const { name } = piece.tensor;
  const window = windows.find(
    (w) => w.name === name && w.row < piece.rowFrom + piece.rows && w.row + w.rows > piece.rowFrom,
  );
  const [wide, high] = [cellWidth(piece, layout.scale) * view.zoom, cellHeight(piece, layout.scale) * view.zoom];
  if (!window || mode === 'rms' || Math.min(wide, high) < 14) return;
  const font = Math.max(10, Math.min(40, perCell / 9));
  context.font = `${font}px ${FONTS.mono}`;
  context.textAlign = 'center';
  context.textBaseline = 'middle';
  const scale = scales.of(name, mode);
  for (let row = window.row; row < window.row + window.rows; row++)
    for (let column = window.column; column < window.column + window.columns; column++) {
      const found = field.valueAt(name, row, column, mode);
      if (!found) continue;
      const [i, j] = piece.turned ? [row - piece.rowFrom, column] : [column, row - piece.rowFrom];
      const at = placed(view, size, piece.x, piece.y);
      const [x, y] = [at.x + (i + 0.5) * wide, at.y + (j + 0.5) * high];
      const text =
        (found.exact ? '' : '≈') + (perCell >= LONG && found.exact ? exact(found.value) : short(found.value));
      const shade = shadeOf(found.value, scale);
      context.fillStyle = inkOn(shade, dark);
      if (shade > SHADES) {
        context.lineWidth = 4; // over the hatching
        context.strokeStyle = colours(false).ink;
        context.strokeText(text, x, y, wide - 2);
      }
      context.fillText(text, x, y, wide - 2);
    }
}

/** As many digits as there is room for. */
function short(value: number): string {
  const size = Math.abs(value);
  if (size === 0 || size >= 0.00095 || !Number.isFinite(value)) return cellText(value);
  return (value < 0 ? '−' : '+') + size.toExponential(1).replace('-', '−');
}

function outline(context: CanvasRenderingContext2D, { layout, view, size }: Scene, { colour, chosen }: Look): void {
  context.strokeStyle = colour('--ink');
  context.lineWidth = 1;
  for (const piece of layout.pieces) {
    if (piece.tensor.name !== chosen.name) continue;
    const at = placed(view, size, piece.x, piece.y);
    context.strokeRect(at.x - 0.5, at.y - 0.5, piece.width * view.zoom + 1, piece.height * view.zoom + 1);
  }
}

/** At the left of each matrix: how far it moves in this step, against its size, from 0.001% to 10% of it. */
function margins(context: CanvasRenderingContext2D, { layout, view, size }: Scene, { field, colour }: Look): void {
  const [line, plum] = [colour('--line'), colour('--plum')];
  for (const piece of layout.pieces) {
    if (piece.tensor.shape.length === 1 || piece.rowFrom > 0) continue;
    const ratio = field.ratioOf(piece.tensor.name);
    if (!ratio) continue;
    const at = placed(view, size, piece.x, piece.y);
    const height = piece.height * view.zoom;
    const full = Math.round(height * Math.max(0, Math.min(1, (Math.log10(ratio.value) + 5) / 4)));
    context.fillStyle = line;
    context.fillRect(at.x - 3, at.y, 2, height - full);
    context.fillStyle = plum;
    context.fillRect(at.x - 3, at.y + height - full, 2, full);
  }
}

/** A label above a tensor: plain words first, the code name second, as much as there is room for. */
function words(context: CanvasRenderingContext2D, { view, size }: Scene, { colour }: Look, label: Label): void {
  const at = placed(view, size, label.x, label.y);
  const room = label.width * view.zoom;
  const height = (label.lines - 1) * LINE + 10;
  if (at.x > size.width || at.y > size.height + 20 || at.x + room < 0 || at.y < -20) return;
  context.font = `${label.strong ? '650 11px' : '10px'} ${colour('--sans')}`;
  const baseline = Math.round(at.y + height * view.zoom - (view.zoom - 1) * (label.strong ? 0 : 1));
  const x = Math.max(at.x, 2);
  const fits = (text: string): boolean => width(context, text) <= room - (x - at.x);
  const write = (text: string, tint: string, dx = 0, dy = 0): void => {
    context.fillStyle = colour(tint);
    context.fillText(text, x + dx, baseline + dy);
  };
  if (!label.plain) {
    const told = [label.text, label.brief ?? ''].find(fits);
    if (told) write(told, label.strong ? '--ink' : '--soft');
    return;
  }
  const [long, short] = label.plain;
  const code = label.code!;
  if (fits(long)) write(long, '--soft');
  else if (fits(`${short} ${code}`)) {
    write(short, '--ink');
    write(code, '--faint', width(context, `${short} `));
  } else if (label.lines > 1 && fits(short) && fits(code)) {
    write(short, '--ink', 0, -LINE);
    write(code, '--faint');
  } else {
    const told = [short, code, code[0]!].find(fits);
    if (told) write(told, '--soft');
  }
}

/** A tied head: dashed, since its numbers are those of the embedding. */
function ghosts(context: CanvasRenderingContext2D, { layout, view, size }: Scene, { colour }: Look): void {
  for (const ghost of layout.ghosts) {
    const at = placed(view, size, ghost.x, ghost.y);
    const [across, down] = [ghost.width * view.zoom, ghost.height * view.zoom];
    context.setLineDash([3, 3]);
    context.lineWidth = 1;
    context.strokeStyle = colour('--faint');
    context.strokeRect(at.x + 0.5, at.y + 0.5, across - 1, down - 1);
    context.setLineDash([]);
    context.fillStyle = colour('--soft');
    context.font = `10px ${colour('--sans')}`;
    context.textAlign = 'center';
    const lines = (ghost.texts ?? [])
      .map((text) => folded(context, text, across - 6))
      .find((found) => found && found.length * LINE <= down - 2);
    if (!lines) continue;
    const first = at.y + down / 2 - ((lines.length - 1) * LINE) / 2 + 3.5;
    lines.forEach((line, i) => context.fillText(line, at.x + across / 2, first + i * LINE));
  }
  context.textAlign = 'left';
}

/** A ring around the chosen cell, kept off the words above its tensor. */
function ring(context: CanvasRenderingContext2D, { layout, view, size }: Scene, { colour, chosen }: Look): void {
  const { name, row, column } = chosen;
  const rectangle = rectangleOf(layout, name, row, column);
  if (!rectangle) return;
  const piece = layout.pieces.find((p) => p.tensor.name === name && row >= p.rowFrom && row < p.rowFrom + p.rows)!;
  const at = placed(view, size, rectangle.x, rectangle.y);
  const top = placed(view, size, 0, piece.y).y - 1;
  const [w, h] = [rectangle.width * view.zoom, rectangle.height * view.zoom];
  const pad = Math.max(1.5, (9 - Math.min(w, h)) / 2);
  const y = Math.max(at.y - pad, top);
  const around = [at.x - pad, y, w + 2 * pad, at.y + h + pad - y] as const;
  context.lineWidth = 3;
  context.strokeStyle = colour('--panel');
  context.strokeRect(...around);
  context.lineWidth = 1.5;
  context.strokeStyle = colour('--plum');
  context.strokeRect(...around);
}

/** A text in lines of at most so many pixels; null if a word of it is longer. */
function folded(context: CanvasRenderingContext2D, text: string, room: number): string[] | null {
  const lines: string[] = [];
  for (const word of text.split(' ')) {
    if (width(context, word) > room) return null;
    const longer = lines.length ? `${lines.at(-1)} ${word}` : word;
    if (lines.length && width(context, longer) <= room) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}

/** Pixels of a text; measured once, since that is slow. */
function width(context: CanvasRenderingContext2D, text: string): number {
  const key = `${context.font}/${text}`;
  let known = widths.get(key);
  if (known === undefined) {
    known = context.measureText(text).width;
    widths.set(key, known);
  }
  return known;
}
