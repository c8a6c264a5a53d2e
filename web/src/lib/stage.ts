/** Draws the parameter map of the opening, from the film and through its own camera. */

import { inkOn, palette, SHADES, shadeOf, shader, type Scale } from './colour';
import type { Film } from './film';
import { rectangleOf, shape2, type Layout, type Piece } from './layout';
import type { Camera } from './opening';
import { cell as cellText } from './text';

/** Exact cells of one tensor around the one that the opening begins with. */
export interface Near {
  name: string;
  row: number;
  column: number;
  rows: number;
  columns: number;
  numbers: Float32Array;
}

export interface Shown {
  film: Film;
  scale: (name: string) => Scale;
  dark: boolean;
}

/** One pixel for each pick of a piece; each is one real parameter. */
export function paintPicks(piece: Piece, values: Float32Array, { film, scale, dark }: Shown): OffscreenCanvas {
  const { level } = film.values;
  const picks = film.values.tensors.get(piece.tensor.name)!;
  const top = piece.rowFrom >> level;
  const [down, across] = [Math.ceil(piece.rows / 2 ** level), picks.columns];
  return image(
    down,
    across,
    piece.turned,
    (i, j) => values[picks.start + (top + i) * picks.columns + j]!,
    scale(piece.tensor.name),
    dark,
  );
}

export function paintNear(near: Near, turned: boolean, { scale, dark }: Shown): OffscreenCanvas {
  return image(near.rows, near.columns, turned, (i, j) => near.numbers[i * near.columns + j]!, scale(near.name), dark);
}

function image(
  down: number,
  across: number,
  turned: boolean,
  number: (i: number, j: number) => number,
  scale: Scale,
  dark: boolean,
): OffscreenCanvas {
  const [colours, shade] = [palette(dark), shader(scale)];
  const canvas = new OffscreenCanvas(turned ? down : across, turned ? across : down);
  const context = canvas.getContext('2d')!;
  const pixels = context.createImageData(canvas.width, canvas.height);
  const data = new Uint32Array(pixels.data.buffer);
  for (let i = 0; i < down; i++)
    for (let j = 0; j < across; j++)
      data[turned ? j * down + i : i * across + j] = colours[shade(number(i, j)) + SHADES]!;
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** Draw the map as the camera sees it. */
export function drawMap(
  context: CanvasRenderingContext2D,
  layout: Layout,
  camera: Camera,
  size: { width: number; height: number },
  film: Film,
  images: Map<Piece, OffscreenCanvas>,
  near: { cells: Near; image: OffscreenCanvas } | null,
): void {
  context.imageSmoothingEnabled = false;
  const side = 2 ** film.values.level;
  const each = layout.scale * camera.zoom;
  for (const piece of layout.pieces) {
    const [x, y] = [camera.left + piece.x * camera.zoom, camera.top + piece.y * camera.zoom];
    const [width, height] = [piece.width * camera.zoom, piece.height * camera.zoom];
    const picture = images.get(piece);
    if (!picture || x > size.width || y > size.height || x + width < 0 || y + height < 0) continue;
    const thick = piece.tensor.shape.length === 1;
    context.save();
    context.beginPath();
    context.rect(x, y, width, height);
    context.clip();
    context.drawImage(
      picture,
      x,
      y,
      thick && piece.turned ? width : picture.width * side * each,
      thick && !piece.turned ? height : picture.height * side * each,
    );
    if (near && near.cells.name === piece.tensor.name) {
      const place = rectangleOf(layout, piece.tensor.name, near.cells.row, near.cells.column)!;
      context.drawImage(
        near.image,
        camera.left + place.x * camera.zoom,
        camera.top + place.y * camera.zoom,
        near.image.width * each,
        near.image.height * each,
      );
    }
    context.restore();
  }
}

/** The numbers in the cells, where these are large enough, and the lines between them. */
export function drawNumbers(
  context: CanvasRenderingContext2D,
  layout: Layout,
  camera: Camera,
  size: { width: number; height: number },
  near: Near,
  scale: Scale,
  look: { dark: boolean; gap: string; font: string },
): void {
  const each = layout.scale * camera.zoom;
  if (each < 12) return;
  const piece = layout.pieces.find((p) => p.tensor.name === near.name)!;
  const columns = shape2(piece.tensor)[1];
  context.textAlign = 'center';
  context.textBaseline = 'middle';
  context.font = `600 ${Math.min(76, each * 0.23)}px ${look.font}`;
  for (let i = 0; i < near.rows; i++)
    for (let j = 0; j < near.columns && near.column + j < columns; j++) {
      const place = rectangleOf(layout, near.name, near.row + i, near.column + j);
      if (!place) continue;
      const [x, y] = [camera.left + place.x * camera.zoom, camera.top + place.y * camera.zoom];
      if (x > size.width || y > size.height || x + each < 0 || y + each < 0) continue;
      context.globalAlpha = Math.min(1, (each - 12) / 20);
      context.strokeStyle = look.gap;
      context.lineWidth = Math.min(2, each / 30);
      context.strokeRect(x, y, each, each);
      if (each < 34) continue;
      const value = near.numbers[i * near.columns + j]!;
      const shade = shadeOf(value, scale);
      context.globalAlpha = Math.min(1, (each - 34) / 16);
      context.fillStyle = inkOn(shade, look.dark);
      context.fillText(cellText(value), x + each / 2, y + each / 2);
    }
  context.globalAlpha = 1;
}
