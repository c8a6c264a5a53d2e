/** The timing and the camera path of the opening, as pure functions. */

import { cellHeight, cellWidth, type Layout } from './layout';
import { say, type Piece } from './figure';

/** When each act begins, in seconds; the page is handed over at the end. */
export const ACTS = { zoom: 2.6, whole: 7.2, nonsense: 8.4, training: 12.4, end: 20.4, over: 22.4 } as const;

/** Whether an address says where to stand: who follows such a link came to see that. */
export const standsSomewhere = (hash: string): boolean =>
  [...new URLSearchParams(hash.replace(/^#/, '')).keys()].some((key) => key !== 'run');

/** From near to far: a point of the map at (x, y) of the screen, and how many times larger than at home. */
export interface Camera {
  zoom: number;
  /** the screen's place of the map's point (0, 0) */
  left: number;
  top: number;
}

/**
 * The camera on its way from one cell that fills the frame to the whole map.
 *
 * @param share 0: the cell alone; 1: at home
 */
export function cameraAt(
  share: number,
  cell: { x: number; y: number; width: number; height: number },
  size: { width: number; height: number },
  home: { x: number; y: number },
): Camera {
  const near = Math.max((1.02 * size.width) / cell.width, (1.02 * size.height) / cell.height);
  const zoom = near ** (1 - share);
  // A zoom around one fixed point: how far the cell is from the middle goes with how small it has become.
  const far = near > 1 ? (1 / zoom - 1 / near) / (1 - 1 / near) : 1;
  const [middleX, middleY] = [cell.x + cell.width / 2, cell.y + cell.height / 2];
  const x = size.width / 2 + (middleX - home.x - size.width / 2) * far;
  const y = size.height / 2 + (middleY - home.y - size.height / 2) * far;
  return { zoom, left: x - middleX * zoom, top: y - middleY * zoom };
}

/** How many cells are seen, in whole or in part. A tied head is a ghost, and has none of its own. */
export function cellsInView(layout: Layout, camera: Camera, size: { width: number; height: number }): number {
  let seen = 0;
  const least = 0.01; // of a pixel: what only touches the edge is not seen
  for (const piece of layout.pieces) {
    const [across, down] = piece.turned ? [piece.rows, piece.columns] : [piece.columns, piece.rows];
    const inside = (from: number, each: number, cells: number, extent: number): number => {
      const first = Math.max(0, Math.floor((least - from) / each));
      const last = Math.min(cells, Math.ceil((extent - least - from) / each));
      return Math.max(0, last - first);
    };
    const x = inside(
      camera.left + piece.x * camera.zoom,
      cellWidth(piece, layout.scale) * camera.zoom,
      across,
      size.width,
    );
    const y = inside(
      camera.top + piece.y * camera.zoom,
      cellHeight(piece, layout.scale) * camera.zoom,
      down,
      size.height,
    );
    seen += x * y;
  }
  return seen;
}

export const ease = (share: number): number => (share <= 0 ? 0 : share >= 1 ? 1 : share * share * (3 - 2 * share));

/** At most so many frames, evenly over the list, with its first and its last. */
export function someFrames(frames: number, most: number): number[] {
  if (frames <= most) return Array.from({ length: frames }, (_, i) => i);
  return Array.from({ length: most }, (_, i) => Math.round((i * (frames - 1)) / (most - 1)));
}

/** How a film of so many seconds compares with the training that it shows. */
export function pace(training_s: number, shown_s: number): Piece[] {
  const ratio = training_s / shown_s;
  if (!(ratio > 0)) return ['played from the recording'];
  if (ratio > 0.95 && ratio < 1.05) return ['played from the recording, about as fast as it was'];
  const times = ratio > 1 ? ratio : 1 / ratio;
  const of = 'the speed of the film against that of the training';
  return say`played from the recording, about ${{ what: 'statistic', of, value: times, digits: times >= 9.5 ? 3 : 2, from: 'the recorded time of each step' }} times ${ratio > 1 ? 'faster' : 'slower'} than it was`;
}

/** Seconds of training, from tokens per second by step or by pixel. */
export function trainingSeconds(
  series: { steps: number[]; low: (number | null)[]; high: (number | null)[] },
  made: number,
  tokensPerStep: number,
): number {
  let total = 0;
  series.steps.forEach((step, i) => {
    const rate = ((series.low[i] ?? 0) + (series.high[i] ?? 0)) / 2;
    const steps = (series.steps[i + 1] ?? made) - step;
    if (rate > 0) total += (steps * tokensPerStep) / rate;
  });
  return total;
}
