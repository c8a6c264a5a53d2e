/**
 * Where each tensor stands in the cabinet: in reading order, all to one scale.
 *
 * A block is a column: attention above (query and key, value and output), the MLP below. `shrink` is drawn turned, so
 * that the hidden units of expand and shrink share their rows. A bias stands along the outputs it is added to.
 */

import type { TensorInfo } from './types';

/** A rectangle of cells of a tensor, drawn at (x, y), in pixels of the unzoomed cabinet. */
export interface Piece {
  tensor: TensorInfo;
  /** cells of the tensor that this piece shows: rows of the tensor from..., as they lie in it */
  rowFrom: number;
  rows: number;
  columns: number;
  /** turned: the tensor's rows run across the page */
  turned: boolean;
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface Label {
  text: string;
  /** where there is no room for the text */
  brief?: string;
  /** that it may take, of LINE pixels each; the last one stands on the tensor */
  lines: number;
  /** in plain words: long, and short */
  plain?: [string, string];
  code?: string;
  x: number;
  y: number;
  width: number;
  strong?: boolean;
}

export interface Ghost {
  /** what stands in it: the first that fits */
  texts?: string[];
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface Layout {
  /** pixels for one cell */
  scale: number;
  width: number;
  height: number;
  pieces: Piece[];
  labels: Label[];
  ghosts: Ghost[];
  /** what is left free under the tables, and under the output, where the blocks stand in one row */
  free: Ghost[];
}

const PLAIN: Record<string, [string, string]> = {
  query: ['who looks at whom: query', 'asks'],
  key: ['who looks at whom: key', 'offers'],
  value: ['what is passed on: value', 'gives'],
  output: ['mixed back into the stream: output', 'mixes'],
  expand: ['finds patterns: expand', 'finds'],
  gate: ['opens or shuts each pattern: gate', 'gates'],
  shrink: ['what each pattern adds: shrink', 'adds'],
};

const STRIP = 3; // pixels of a bias or a gain: thickened to be seen
const GAP = 6;
export const LINE = 11;
const LABEL = LINE + 2;
const TITLE = 14;
const BLOCK_GAP = 9;

/** How much room labels get: the least width of a column, and lines in a label. */
interface Room {
  least: number;
  lines: number;
}
const ROOMS: Room[] = [{ least: 70, lines: 1 }, { least: 44, lines: 2 }, { least: 44, lines: 1 }, { least: 0, lines: 1 }];
const TITLED = 46; // pixels of a box's title

export const shape2 = (tensor: TensorInfo): [number, number] =>
  tensor.shape.length === 1 ? [1, tensor.shape[0]!] : [tensor.shape[0]!, tensor.shape[1]!];

/** Pixels for a cell that can be: k pixels for one pick of a square of 2^level cells. */
export function scales(): number[] {
  const found = new Set<number>();
  for (let level = 0; level <= 10; level++) for (let k = 1; k <= 16; k++) if (k === 1 || level === 0) found.add(k / 2 ** level);
  return [...found].sort((a, b) => b - a);
}

interface Box {
  width: number;
  height: number;
  pieces: Piece[];
  labels: Label[];
  ghosts: Ghost[];
}

/** The largest cabinet that fits into so many pixels; in one row, if it can, and with as much room for words as there is. */
export function arrange(tensors: TensorInfo[], tied: boolean, width: number, height: number, align = 1): Layout {
  let last: Layout | null = null;
  for (const scale of scales())
    for (const broad of [Infinity, width])
      for (const room of ROOMS) {
        last = place(tensors, tied, scale, room, broad, height, align);
        if (last.width <= width && last.height <= height) return last;
      }
  return last!;
}

function place(tensors: TensorInfo[], tied: boolean, scale: number, room: Room, width: number, height: number, align: number): Layout {
  const by = new Map(tensors.map((tensor) => [tensor.name, tensor]));
  const layers = 1 + Math.max(-1, ...tensors.map((t) => (t.name.startsWith('blocks.') ? Number(t.name.split('.')[1]) : -1)));
  const boxes: Box[] = [];
  const blocks = Array.from({ length: layers }, (_, layer) => block(by, layer, scale, room));
  const fold = Math.max(60, Math.min(height - 40, Math.max(...blocks.map((box) => box.height), 0)));
  boxes.push(tables(by, scale, room, fold, align));
  boxes.push(...blocks);
  boxes.push(exit(by, tied, scale, room, fold, align));
  const out: Layout = { scale, width: 0, height: 0, pieces: [], labels: [], ghosts: [], free: [] };
  const starts: number[] = [];
  let x = 0;
  let y = 0;
  let tallest = 0;
  for (const box of boxes) {
    if (x > 0 && x + box.width > width) {
      x = 0;
      y += tallest + BLOCK_GAP;
      tallest = 0;
    }
    for (const piece of box.pieces) out.pieces.push({ ...piece, x: piece.x + x, y: piece.y + y });
    for (const label of box.labels) out.labels.push({ ...label, x: label.x + x, y: label.y + y });
    for (const ghost of box.ghosts) out.ghosts.push({ ...ghost, x: ghost.x + x, y: ghost.y + y });
    starts.push(x);
    tallest = Math.max(tallest, box.height);
    out.width = Math.max(out.width, x + box.width);
    out.height = Math.max(out.height, y + tallest);
    x += box.width + BLOCK_GAP;
  }
  if (y === 0)
    out.free = [0, boxes.length - 1].map((i) => {
      const box = boxes[i]!;
      return { x: starts[i]!, y: box.height + 12, width: box.width, height: out.height - box.height - 12 };
    });
  return out;
}

const ceil = (cells: number, scale: number): number => Math.max(1, Math.ceil(cells * scale));

function matrix(tensor: TensorInfo, x: number, y: number, scale: number, turned = false): Piece {
  const [rows, columns] = shape2(tensor);
  const [down, across] = turned ? [columns, rows] : [rows, columns];
  return { tensor, rowFrom: 0, rows, columns, turned, x, y, width: ceil(across, scale), height: ceil(down, scale) };
}

/** A vector as a strip: down along a matrix's rows, or across along its columns. */
function strip(tensor: TensorInfo, x: number, y: number, scale: number, down: boolean): Piece {
  const length = ceil(tensor.shape[0]!, scale);
  return {
    tensor,
    rowFrom: 0,
    rows: 1,
    columns: tensor.shape[0]!,
    turned: down,
    x,
    y,
    width: down ? STRIP : length,
    height: down ? length : STRIP,
  };
}

function emptyBox(): Box {
  return { width: 0, height: 0, pieces: [], labels: [], ghosts: [] };
}

function grow(box: Box): Box {
  for (const piece of box.pieces) {
    box.width = Math.max(box.width, piece.x + piece.width);
    box.height = Math.max(box.height, piece.y + piece.height);
  }
  for (const ghost of box.ghosts) {
    box.width = Math.max(box.width, ghost.x + ghost.width);
    box.height = Math.max(box.height, ghost.y + ghost.height);
  }
  return box;
}

/** A long table, folded into columns of at most so many pixels, between squares of picks. */
function folded(box: Box, tensor: TensorInfo, x: number, y: number, scale: number, most: number, align: number): number {
  const [rows, columns] = shape2(tensor);
  const side = Math.max(align, Math.round(1 / scale));
  const perColumn = Math.max(side, Math.floor(Math.floor(most / scale) / side) * side);
  for (let from = 0; from < rows; from += perColumn) {
    const here = Math.min(perColumn, rows - from);
    box.pieces.push({
      tensor, rowFrom: from, rows: here, columns, turned: false, x, y, width: ceil(columns, scale), height: ceil(here, scale),
    });
    x += ceil(columns, scale) + 2;
  }
  return y + ceil(Math.min(rows, perColumn), scale);
}

function tables(by: Map<string, TensorInfo>, scale: number, room: Room, most: number, align: number): Box {
  const box = emptyBox();
  let y = 0;
  const names = ['embedding.weight', 'positions.weight'].filter((name) => by.has(name));
  box.labels.push({ text: 'tables', lines: 1, x: 0, y: 0, width: 0, strong: true });
  y += TITLE;
  for (const name of names) {
    const tensor = by.get(name)!;
    const words = name.startsWith('embedding') ? ['symbols', 'embedding'] : ['places', 'positions'];
    box.labels.push({ text: words[0]!, code: words[1]!, lines: 1, x: 0, y, width: 0 });
    y = folded(box, tensor, 0, y + LABEL, scale, Math.max(20, most / names.length - LABEL), align) + GAP;
  }
  return titled(box, room);
}

function exit(by: Map<string, TensorInfo>, tied: boolean, scale: number, room: Room, most: number, align: number): Box {
  const box = emptyBox();
  box.labels.push({ text: 'output', lines: 1, x: 0, y: 0, width: 0, strong: true });
  let y = TITLE;
  for (const part of ['gain', 'bias']) {
    const tensor = by.get(`final_norm.${part}`);
    if (!tensor) continue;
    box.pieces.push(strip(tensor, 0, y, scale, false));
    y += STRIP + 2;
  }
  y += 2;
  const head = by.get('head.weight');
  if (head) {
    box.labels.push({ text: 'symbols', code: 'head', lines: 1, x: 0, y, width: 0 });
    folded(box, head, 0, y + LABEL, scale, most - y, align);
    const bias = by.get('head.bias');
    grow(box);
    if (bias) box.pieces.push(strip(bias, box.width + 1, y + LABEL, scale, true));
  } else if (tied) {
    const embedding = by.get('embedding.weight')!;
    const [rows, columns] = shape2(embedding);
    const ghost = { x: 0, y: y + LABEL, width: ceil(columns, scale), height: Math.min(ceil(rows, scale), most - y - LABEL) };
    box.labels.push({ text: 'symbols, tied', brief: 'tied', lines: 1, x: 0, y, width: 0 });
    box.ghosts.push({ ...ghost, texts: ['counted once, at left', 'counted once'] });
  }
  return titled(box, room);
}

function block(by: Map<string, TensorInfo>, layer: number, scale: number, room: Room): Box {
  const box = emptyBox();
  const get = (name: string): TensorInfo | undefined => by.get(`blocks.${layer}.${name}`);
  box.labels.push({ text: `block ${layer}`, brief: String(layer), lines: 1, x: 0, y: 0, width: 0, strong: true });
  let y = TITLE;
  const norms = (which: string): void => {
    for (const part of ['gain', 'bias']) {
      const tensor = get(`${which}.${part}`);
      if (!tensor) continue;
      box.pieces.push(strip(tensor, 0, y, scale, false));
      y += STRIP + 1;
    }
    y += 1;
  };
  const label = LABEL + (room.lines - 1) * LINE;
  /** A matrix under its label, its bias along its outputs. Returns the pixels that it takes. */
  const put = (part: string, x: number, turned = false): [number, number] => {
    const tensor = get(`${part}.weight`);
    if (!tensor) return [0, 0];
    const piece = matrix(tensor, x, y + label, scale, turned);
    box.pieces.push(piece);
    const bias = get(`${part}.bias`);
    let [w, h] = [piece.width, piece.height + label];
    if (bias && !turned) box.pieces.push(strip(bias, x + piece.width + 1, y + label, scale, true));
    if (bias && turned) box.pieces.push(strip(bias, x, y + label + piece.height + 1, scale, false));
    if (bias) [w, h] = turned ? [w, h + STRIP + 1] : [w + STRIP + 1, h];
    w = Math.max(w, room.least);
    const code = part.split('.')[1]!;
    box.labels.push({ text: code, plain: PLAIN[code], code, lines: room.lines, x, y, width: w + GAP - 2 });
    return [w, h];
  };
  let second = 0; // where the second column begins
  norms('attention_norm');
  for (const pair of [['query', 'key'], ['value', 'output']]) {
    let x = 0;
    let tallest = 0;
    for (const part of pair) {
      const [w, h] = put(`attention.${part}`, x);
      if (x === 0) second = w + GAP;
      x += w + GAP;
      tallest = Math.max(tallest, h);
    }
    y += tallest + 2;
    if (pair[0] !== 'query') continue;
    // Gains of query and key, shared by the heads: under what they act on.
    const gains = (['query', 'key'] as const).map((which) => get(`attention.${which}_norm.gain`));
    gains.forEach((gain, i) => gain && box.pieces.push(strip(gain, i * second, y, scale, false)));
    if (gains.some(Boolean)) y += STRIP + 2;
  }
  norms('mlp_norm');
  let x = 0;
  for (const part of ['gate', 'expand', 'shrink']) {
    const [w] = put(`mlp.${part}`, x, part === 'shrink');
    if (w) x += w + GAP;
  }
  grow(box);
  box.width = Math.max(box.width, x - GAP, 2 * second - GAP);
  for (const label of box.labels) if (label.strong) label.width = box.width;
  return box;
}

/** A box wide enough for its words, if there is room. */
function titled(box: Box, room: Room): Box {
  grow(box);
  if (room.least) box.width = Math.max(box.width, TITLED);
  for (const label of box.labels) label.width = box.width + GAP;
  return box;
}

/** Which cell of which tensor is at a point of the unzoomed cabinet; null between them. */
export function cellAt(layout: Layout, x: number, y: number): { piece: Piece; row: number; column: number } | null {
  for (const piece of layout.pieces) {
    if (x < piece.x || y < piece.y || x >= piece.x + piece.width || y >= piece.y + piece.height) continue;
    const across = piece.turned ? piece.rows : piece.columns;
    const down = piece.turned ? piece.columns : piece.rows;
    const i = Math.min(across - 1, Math.floor((x - piece.x) / cellWidth(piece, layout.scale)));
    const j = Math.min(down - 1, Math.floor((y - piece.y) / cellHeight(piece, layout.scale)));
    return piece.turned ? { piece, row: piece.rowFrom + i, column: j } : { piece, row: piece.rowFrom + j, column: i };
  }
  return null;
}

/** Pixels of one cell across; strips are thickened. */
export function cellWidth(piece: Piece, scale: number): number {
  return piece.rows === 1 && piece.turned ? piece.width : scale;
}
export function cellHeight(piece: Piece, scale: number): number {
  return piece.rows === 1 && !piece.turned && piece.tensor.shape.length === 1 ? piece.height : scale;
}

/** The rectangle of one cell, in the unzoomed cabinet. */
export function rectangleOf(layout: Layout, name: string, row: number, column: number): Ghost | null {
  for (const piece of layout.pieces) {
    if (piece.tensor.name !== name || row < piece.rowFrom || row >= piece.rowFrom + piece.rows) continue;
    const [i, j] = piece.turned ? [row - piece.rowFrom, column] : [column, row - piece.rowFrom];
    const width = cellWidth(piece, layout.scale);
    const height = cellHeight(piece, layout.scale);
    return { x: piece.x + i * width, y: piece.y + j * height, width, height };
  }
  return null;
}
