/**
 * Arranges all tensors on the parameter map, in reading order and at one scale.
 *
 * At the left the tables, at the right the output, between them the blocks, in rows. A block has its attention (query and
 * key, value and output) above its MLP, or beside it, whichever makes the map larger. `shrink` is drawn turned, so
 * that the hidden units of expand and shrink share their rows. A bias stands along the outputs it is added to.
 */

import type { TensorInfo } from './types';

/** A rectangle of cells of a tensor, drawn at (x, y), in pixels of the unzoomed map. */
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

/** Parts outside of the blocks that stand at the right. */
const EXIT = ['final_norm', 'head'];
const TABLES: Record<string, string> = { embedding: 'symbols', positions: 'places' };
const PLAIN: Record<string, [string, string]> = {
  query: ['who looks at whom: query', 'asks'],
  key: ['who looks at whom: key', 'offers'],
  value: ['what is passed on: value', 'gives'],
  output: ['mixed back into the residual stream: output', 'mixes'],
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
const ROOMS: Room[] = [
  { least: 70, lines: 1 },
  { least: 44, lines: 2 },
  { least: 44, lines: 1 },
  { least: 0, lines: 1 },
];
const TITLED = 46; // pixels of a box's title

export const shape2 = (tensor: TensorInfo): [number, number] =>
  tensor.shape.length === 1 ? [1, tensor.shape[0]!] : [tensor.shape[0]!, tensor.shape[1]!];

/**
 * Pixels for a cell that can be. Whole ones, or one pixel for one cell of a square of 2^level cells; and between two such
 * levels three quarters, where of every four squares of the finer level three are seen in each direction.
 */
export function scales(): number[] {
  const found: number[] = [];
  for (let k = 16; k >= 1; k--) found.push(k);
  for (let level = 0; level <= 10; level++) found.push(0.75 / 2 ** level, 0.5 / 2 ** level);
  return found;
}

/** How the parts of a block stand: pairs of attention above the MLP, all four in a row above it, or pairs beside it. */
type Design = 'pairs' | 'row' | 'beside';
const DESIGNS: Design[] = ['pairs', 'row', 'beside'];

interface Box {
  width: number;
  height: number;
  pieces: Piece[];
  labels: Label[];
  ghosts: Ghost[];
}

/** Some tensors, of which each is placed once: first those whose part has its own place, then the rest. */
class Parts {
  private left: TensorInfo[];
  constructor(tensors: TensorInfo[]) {
    this.left = [...tensors];
  }
  take(part: string, kind?: TensorInfo['kind']): TensorInfo | undefined {
    const at = this.left.findIndex((tensor) => tensor.part === part && (!kind || tensor.kind === kind));
    return at < 0 ? undefined : this.left.splice(at, 1)[0];
  }
  /** What is left, in the order of the model: a row of the map for each branch of its module tree. */
  branches(): TensorInfo[][] {
    const found = new Map<string, TensorInfo[]>();
    for (const tensor of this.left) {
      const branch = tensor.part.split('.')[0]!;
      found.set(branch, [...(found.get(branch) ?? []), tensor]);
    }
    this.left = [];
    return [...found.values()];
  }
}

/** The largest map that fits into so many pixels; with as much room for words as there is. */
export function arrange(tensors: TensorInfo[], tied: boolean, width: number, height: number): Layout {
  let last: Layout | null = null;
  for (const scale of scales())
    for (const room of ROOMS)
      for (const design of DESIGNS) {
        last = place(tensors, tied, scale, room, design, width, height);
        if (last.width <= width && last.height <= height) return last;
      }
  return last!;
}

function place(
  tensors: TensorInfo[],
  tied: boolean,
  scale: number,
  room: Room,
  design: Design,
  width: number,
  height: number,
): Layout {
  const layers = 1 + Math.max(-1, ...tensors.map((tensor) => tensor.block ?? -1));
  const blocks = Array.from({ length: layers }, (_, layer) =>
    block(new Parts(tensors.filter((tensor) => tensor.block === layer)), layer, scale, room, design),
  );
  const first = tensors.findIndex((tensor) => tensor.block !== null);
  const outside = tensors.filter((tensor) => tensor.block === null);
  const isTable = (tensor: TensorInfo): boolean =>
    !EXIT.includes(tensor.part) && (tensor.kind === 'embedding' || tensors.indexOf(tensor) < first);
  const entry = outside.filter(isTable);
  const leaving = outside.filter((tensor) => !isTable(tensor));
  const least = Math.max(...blocks.map((box) => box.height), 0);
  let folding = Math.max(60, Math.min(height - TITLE - LABEL - 2, least));
  const sides = (): [Box, Box] => [
    tables(entry, scale, room, folding),
    exit(new Parts(leaving), tied ? entry[0] : undefined, scale, room, folding),
  ];
  let [left, right] = sides();
  let middle = rows(blocks, width - left.width - right.width - 2 * BLOCK_GAP);
  if (middle.height > least) {
    // More than one row of blocks: the tables may be as tall as all of them.
    folding = Math.max(60, Math.min(height, middle.height) - TITLE - LABEL - 2);
    [left, right] = sides();
    middle = rows(blocks, width - left.width - right.width - 2 * BLOCK_GAP);
  }
  const out: Layout = { scale, width: 0, height: 0, pieces: [], labels: [], ghosts: [], free: [] };
  let x = 0;
  const starts: number[] = [];
  for (const box of [left, middle, right]) {
    starts.push(x);
    if (box.width) put(out, box, x, 0);
    out.height = Math.max(out.height, box.height);
    x += box.width + (box.width ? BLOCK_GAP : 0);
  }
  out.width = x - BLOCK_GAP;
  out.free = [left, right].map((box, i) => ({
    x: starts[2 * i]!,
    y: box.height + 12,
    width: box.width,
    height: out.height - box.height - 12,
  }));
  return out;
}

/** Blocks in rows of at most so many pixels, as even as can be. */
function rows(blocks: Box[], width: number): Box {
  const out = emptyBox();
  const widest = Math.max(...blocks.map((box) => box.width), 1);
  const most = Math.max(1, Math.floor((width + BLOCK_GAP) / (widest + BLOCK_GAP)));
  const each = Math.ceil(blocks.length / Math.ceil(blocks.length / most));
  blocks.forEach((box, i) =>
    put(out, box, (i % each) * (widest + BLOCK_GAP), Math.floor(i / each) * (box.height + BLOCK_GAP)),
  );
  const lines = Math.ceil(blocks.length / each) || 0;
  out.width = blocks.length ? Math.min(each, blocks.length) * (widest + BLOCK_GAP) - BLOCK_GAP : 0;
  out.height = blocks.length ? lines * (blocks[0]!.height + BLOCK_GAP) - BLOCK_GAP : 0;
  return out;
}

function put(out: Pick<Layout, 'pieces' | 'labels' | 'ghosts'>, box: Box, x: number, y: number): void {
  const moved = <T extends { x: number; y: number }>(items: T[]): T[] =>
    items.map((item) => ({ ...item, x: item.x + x, y: item.y + y }));
  out.pieces.push(...moved(box.pieces));
  out.labels.push(...moved(box.labels));
  out.ghosts.push(...moved(box.ghosts));
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
function folded(box: Box, tensor: TensorInfo, x: number, y: number, scale: number, most: number): number {
  const [rows, columns] = shape2(tensor);
  const side = Math.max(4, 2 ** Math.ceil(Math.log2(1 / scale)));
  const fits = Math.max(side, Math.floor(Math.floor(most / scale) / side) * side);
  const perColumn = Math.ceil(rows / Math.ceil(rows / fits) / side) * side; // columns as even as can be
  for (let from = 0; from < rows; from += perColumn) {
    const here = Math.min(perColumn, rows - from);
    box.pieces.push({
      tensor,
      rowFrom: from,
      rows: here,
      columns,
      turned: false,
      x,
      y,
      width: ceil(columns, scale),
      height: ceil(here, scale),
    });
    x += ceil(columns, scale) + 2;
  }
  return y + ceil(Math.min(rows, perColumn), scale);
}

function tables(entry: TensorInfo[], scale: number, room: Room, most: number): Box {
  const box = emptyBox();
  let y = 0;
  box.labels.push({ text: 'tables', lines: 1, x: 0, y: 0, width: 0, strong: true });
  y += TITLE;
  for (const tensor of entry) {
    box.labels.push({ text: TABLES[tensor.part] ?? tensor.part, code: tensor.part, lines: 1, x: 0, y, width: 0 });
    y = folded(box, tensor, 0, y + LABEL, scale, Math.max(20, most / entry.length - LABEL)) + GAP;
  }
  return titled(box, room);
}

/** table: the one that a tied head uses. */
function exit(parts: Parts, table: TensorInfo | undefined, scale: number, room: Room, most: number): Box {
  const box = emptyBox();
  box.labels.push({ text: 'output', lines: 1, x: 0, y: 0, width: 0, strong: true });
  let y = TITLE;
  const [head, bias] = [parts.take('head', 'weight'), parts.take('head', 'bias')];
  for (const tensor of parts.branches().flat()) {
    const piece = tensor.shape.length === 1 ? strip(tensor, 0, y, scale, false) : matrix(tensor, 0, y, scale);
    box.pieces.push(piece);
    y += piece.height + 2;
  }
  y += 2;
  if (head) {
    box.labels.push({ text: 'symbols', code: 'head', lines: 1, x: 0, y, width: 0 });
    folded(box, head, 0, y + LABEL, scale, most - y);
    grow(box);
    if (bias) box.pieces.push(strip(bias, box.width + 1, y + LABEL, scale, true));
  } else if (table) {
    const [rows, columns] = shape2(table);
    const ghost = {
      x: 0,
      y: y + LABEL,
      width: ceil(columns, scale),
      height: Math.min(ceil(rows, scale), most - y - LABEL),
    };
    box.labels.push({ text: 'symbols, tied', brief: 'tied', lines: 1, x: 0, y, width: 0 });
    box.ghosts.push({ ...ghost, texts: ['counted once, at left', 'counted once'] });
  }
  return titled(box, room);
}

function block(parts: Parts, layer: number, scale: number, room: Room, design: Design): Box {
  const box = emptyBox();
  const title: Label = { text: `block ${layer}`, brief: String(layer), lines: 1, x: 0, y: 0, width: 0, strong: true };
  box.labels.push(title);
  let y = TITLE;
  let x = 0;
  let widest = 0;
  const norms = (part: string): void => {
    for (let tensor = parts.take(part); tensor; tensor = parts.take(part)) {
      box.pieces.push(strip(tensor, x, y, scale, false));
      y += STRIP + 1;
    }
    y += 1;
  };
  const label = LABEL + (room.lines - 1) * LINE;
  /** A matrix under its label, its bias along its outputs. Returns the pixels that it takes. */
  const draw = (tensor: TensorInfo, bias: TensorInfo | undefined, x: number, turned = false): [number, number] => {
    const piece = matrix(tensor, x, y + label, scale, turned);
    box.pieces.push(piece);
    let [w, h] = [piece.width, piece.height + label];
    if (bias && !turned) box.pieces.push(strip(bias, x + piece.width + 1, y + label, scale, true));
    if (bias && turned) box.pieces.push(strip(bias, x, y + label + piece.height + 1, scale, false));
    if (bias) [w, h] = turned ? [w, h + STRIP + 1] : [w + STRIP + 1, h];
    w = Math.max(w, room.least);
    const code = tensor.part.split('.').at(-1)!;
    box.labels.push({ text: code, plain: PLAIN[code], code, lines: room.lines, x, y, width: w + GAP - 2 });
    return [w, h];
  };
  const add = (part: string, x: number, turned = false): [number, number] => {
    const tensor = parts.take(part, 'weight');
    return tensor ? draw(tensor, parts.take(part, 'bias'), x, turned) : [0, 0];
  };
  norms('attention_norm');
  const pairs =
    design === 'row'
      ? [['query', 'key', 'value', 'output']]
      : [
          ['query', 'key'],
          ['value', 'output'],
        ];
  for (const pair of pairs) {
    const starts: Record<string, number> = {};
    let at = 0;
    let tallest = 0;
    for (const part of pair) {
      const [w, h] = add(`attention.${part}`, at);
      starts[part] = at;
      if (w) at += w + GAP;
      tallest = Math.max(tallest, h);
    }
    widest = Math.max(widest, at);
    if (tallest) y += tallest + 2;
    if (pair[0] !== 'query') continue;
    // Gains of query and key: under what they act on.
    const gains = (['query', 'key'] as const).map((which) => [which, parts.take(`attention.${which}_norm`)] as const);
    for (const [which, gain] of gains) if (gain) box.pieces.push(strip(gain, starts[which]!, y, scale, false));
    if (gains.some(([, gain]) => gain)) y += STRIP + 2;
  }
  norms('post_attention_norm');
  if (design === 'beside') [x, y] = [widest && widest + GAP, TITLE];
  norms('mlp_norm');
  let below = y;
  for (const part of ['gate', 'expand', 'shrink']) {
    const [w, h] = add(`mlp.${part}`, x, part === 'shrink');
    if (w) x += w + GAP;
    below = Math.max(below, y + h);
  }
  grow(box);
  const start = design === 'beside' && widest ? widest + GAP : 0;
  widest = Math.max(widest, x);
  [x, y] = [start, below === y ? y : below + 3];
  norms('post_mlp_norm');
  // What has no place of its own here: a row for each branch of the module tree.
  for (const branch of parts.branches()) {
    let tallest = 0;
    x = start;
    while (branch.length) {
      const tensor = branch.shift()!;
      if (tensor.shape.length === 1) {
        box.pieces.push(strip(tensor, start, y, scale, false));
        y += STRIP + 2;
        continue;
      }
      const at = branch.findIndex((other) => other.part === tensor.part && other.shape[0] === tensor.shape[0]);
      const [w, h] = draw(tensor, at < 0 || branch[at]!.shape.length > 1 ? undefined : branch.splice(at, 1)[0], x);
      x += w + GAP;
      tallest = Math.max(tallest, h);
      widest = Math.max(widest, x);
      // Vectors that follow stand below the row of matrices.
      if (branch[0]?.shape.length !== 2) [x, y, tallest] = [start, y + tallest + 2, 0];
    }
  }
  grow(box);
  title.width = box.width = Math.max(box.width, widest - GAP);
  return box;
}

/** A box wide enough for its words, if there is room. */
function titled(box: Box, room: Room): Box {
  grow(box);
  if (room.least) box.width = Math.max(box.width, TITLED);
  for (const label of box.labels) label.width = box.width + GAP;
  return box;
}

/** Which cell of which tensor is at a point of the unzoomed map; null between them. */
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

/** The rectangle of one cell, in the unzoomed map. */
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
