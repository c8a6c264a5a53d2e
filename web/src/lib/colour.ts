/** Converts numbers to colours: orange is negative, blue is positive, zero is grey. */

import { colours } from './constants';

export const SHADES = 127; // to each side of zero

/** Red, green and blue of #rrggbb. */
const rgbOf = (hex: string): number[] => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
/** RGBA as a canvas has its pixels: little-endian. */
const pixel = ([r, g, b]: number[]): number => ((255 << 24) | (b! << 16) | (g! << 8) | r!) >>> 0;
export const pixelOf = (hex: string): number => pixel(rgbOf(hex));

/** Pixels from -SHADES to SHADES; one more, at the end, for what is not finite. */
export function palette(dark: boolean): Uint32Array {
  const tints = colours(dark);
  const [negative, zero, positive] = [tints.negative, tints.zero, tints.positive].map(rgbOf) as [
    number[],
    number[],
    number[],
  ];
  const out = new Uint32Array(2 * SHADES + 2);
  for (let shade = -SHADES; shade <= SHADES; shade++) {
    const end = shade < 0 ? negative : positive;
    const share = Math.abs(shade) / SHADES;
    out[shade + SHADES] = pixel(zero.map((from, i) => Math.round(from + (end[i]! - from) * share)));
  }
  out[2 * SHADES + 1] = pixelOf(tints['not-finite']);
  return out;
}

/** The colour of a number that is written over its own shade: light or dark, whichever has more contrast. */
export function inkOn(shade: number, dark: boolean): string {
  const { panel, hatch } = colours(false); // white and black
  if (shade > SHADES) return panel; // on the hatching
  const ground = palette(dark)[shade + SHADES]!;
  const light = luminance([ground & 255, (ground >> 8) & 255, (ground >> 16) & 255]);
  return 1.05 / (light + 0.05) > (light + 0.05) / 0.05 ? panel : hatch;
}

/** Relative luminance of sRGB from 0 to 255, by WCAG 2. */
function luminance(channels: number[]): number {
  const [red, green, blue] = channels.map((value) =>
    value <= 10 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4,
  ) as [number, number, number];
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

export const css = (colour: number): string => `rgb(${colour & 255} ${(colour >> 8) & 255} ${(colour >> 16) & 255})`;

/** How a number becomes a shade: straight for weights, asinh for what spans many sizes. */
export interface Scale {
  full: number; // the magnitude with the full colour
  bend: number; // 0: straight; else where asinh begins to bend
}

export function shadeOf(value: number, scale: Scale): number {
  if (!Number.isFinite(value)) return SHADES + 1;
  if (!(scale.full > 0)) return 0;
  const share = scale.bend ? Math.asinh(value / scale.bend) / Math.asinh(scale.full / scale.bend) : value / scale.full;
  return Math.round(Math.max(-1, Math.min(1, share)) * SHADES);
}

/** A fast table for `shadeOf` over many numbers. */
export function shader(scale: Scale): (value: number) => number {
  if (!(scale.full > 0)) return (value) => (Number.isFinite(value) ? 0 : SHADES + 1);
  if (scale.bend) return (value) => shadeOf(value, scale);
  const factor = SHADES / scale.full;
  return (value) => {
    const share = value * factor;
    return share > SHADES
      ? share === Infinity
        ? SHADES + 1
        : SHADES
      : share < -SHADES
        ? share === -Infinity
          ? SHADES + 1
          : -SHADES
        : share === share
          ? Math.round(share)
          : SHADES + 1;
  };
}

/** The next number up of 1, 2, 5, 10, 20, 50... and so on. */
export function roundUp125(value: number): number {
  if (!(value > 0) || !Number.isFinite(value)) return 0;
  const power = 10 ** Math.floor(Math.log10(value));
  for (const step of [1, 2, 5, 10])
    if (value <= step * power * (1 + 1e-9)) return Number((step * power).toPrecision(1));
  return Number((10 * power).toPrecision(1));
}

/** The magnitude that a share of the numbers stays within. */
export function quantile(numbers: ArrayLike<number>, share: number, from = 0, to = numbers.length): number {
  const step = Math.max(1, Math.floor((to - from) / 4096));
  const sizes: number[] = [];
  for (let i = from; i < to; i += step) {
    const size = Math.abs(numbers[i]!);
    if (Number.isFinite(size)) sizes.push(size);
  }
  sizes.sort((a, b) => a - b);
  return sizes.length ? sizes[Math.min(sizes.length - 1, Math.floor(share * sizes.length))]! : 0;
}
