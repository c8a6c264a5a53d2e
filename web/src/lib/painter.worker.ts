/** The worker that colours frames of the parameter map, so that the main thread stays free for input. */

import { raster, shadesOf, type Frame, type Layer } from './raster';
import type { Scale } from './colour';

export type Order =
  | { kind: 'plane'; id: number; numbers: Float32Array }
  | { kind: 'drop'; ids: number[] }
  | { kind: 'frame'; frame: Frame; pixels: ArrayBuffer };

interface Kept {
  numbers: Float32Array;
  shades: Map<string, { scale: string; shades: Uint8Array }>;
}

const planes = new Map<number, Kept>();

function shades(layer: Layer, scale: Scale): Uint8Array | null {
  const kept = planes.get(layer.plane);
  if (!kept) return null;
  const [place, colours] = [`${layer.start}/${layer.coarse}`, `${scale.full}/${scale.bend}`];
  let known = kept.shades.get(place);
  if (known?.scale !== colours) {
    known = { scale: colours, shades: shadesOf(kept.numbers, layer, layer.coarse, scale) };
    kept.shades.set(place, known);
  }
  return known.shades;
}

onmessage = ({ data }: MessageEvent<Order>) => {
  if (data.kind === 'plane') planes.set(data.id, { numbers: data.numbers, shades: new Map() });
  else if (data.kind === 'drop') for (const id of data.ids) planes.delete(id);
  else {
    const { frame } = data;
    const bytes = frame.width * frame.height * 4;
    const pixels = data.pixels.byteLength === bytes ? data.pixels : new ArrayBuffer(bytes);
    const odd = raster(frame, shades, new Uint32Array(pixels));
    postMessage({ pixels, width: frame.width, height: frame.height, odd }, { transfer: [pixels] });
  }
};
