import { expect, test } from 'vitest';
import { inkOn, palette, pixelOf, SHADES } from '../src/lib/colour';
import { colours, customProperties } from '../src/lib/constants';

const HEX = /#(?:[0-9a-f]{3,4}){1,2}\b/gi;
const sources: Record<string, string> = import.meta.glob(
  ['../src/**/*.{ts,svelte,css,svg}', '../index.html', '../../vitrine/**/*.py', '!../src/lib/schema.d.ts'],
  { query: '?raw', import: 'default', eager: true },
);

test('no colour is spelled but in constants.json', () => {
  expect(Object.keys(sources).length).toBeGreaterThan(150);
  const known: string[] = [...Object.values(colours(false)), ...Object.values(colours(true))];
  for (const [file, source] of Object.entries(sources)) {
    const found: string[] = source.match(HEX) ?? [];
    const spelled = file.endsWith('.svg')
      ? found.filter((hex) => !known.includes(hex))
      : found.filter((hex) => !(file.endsWith('.py') && /^#\d+$/.test(hex))); // a number in a comment, an entity
    expect(spelled, file).toEqual([]);
  }
});

test('light and dark have the same colours, and each becomes a custom property', () => {
  expect(Object.keys(colours(true))).toEqual(Object.keys(colours(false)));
  const [light, dark] = customProperties().split('@media (prefers-color-scheme: dark)');
  for (const name of Object.keys(colours(false)) as (keyof ReturnType<typeof colours>)[]) {
    expect(light).toContain(`--${name}: ${colours(false)[name]};`);
    expect(dark).toContain(`--${name}: ${colours(true)[name]};`);
  }
});

test('every custom property that is used is defined', () => {
  const all = Object.entries(sources).flatMap(([file, source]) => (file.endsWith('.py') ? [] : [source]));
  const defined = new Set([...customProperties(), ...all.join('\n')].join('').match(/--[\w-]+(?=\s*[:=])/g));
  const used = new Set(all.join('\n').match(/(?<=var\()--[\w-]+/g));
  expect([...used].filter((name) => !defined.has(name) && !/-(run|dash)-$/.test(name))).toEqual([]);
});

test.each([false, true])('the palette runs from negative over zero to positive; dark: %s', (dark) => {
  const shades = palette(dark);
  const { negative, zero, positive } = colours(dark);
  expect([shades[0], shades[SHADES], shades[2 * SHADES]]).toEqual([negative, zero, positive].map(pixelOf));
  expect(shades[2 * SHADES + 1]).toBe(pixelOf(colours(dark)['not-finite']));
});

/** Contrast as WCAG 2 has it, 1 to 21. */
function contrast(one: string, other: string): number {
  const [a, b] = [one, other].map((hex) =>
    [1, 3, 5]
      .map((at) => parseInt(hex.slice(at, at + 2), 16) / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
      .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i]!, 0),
  ) as [number, number];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}

test.each([false, true])('text can be read on every ground; dark: %s', (dark) => {
  const tints = colours(dark);
  for (const ground of [tints.paper, tints.panel, tints.hover])
    for (const ink of ['ink', 'soft', 'faint', 'plum', 'good', 'bad', 'negative-ink', 'positive-ink'] as const)
      expect(contrast(tints[ink], ground), `${ink} on ${ground}`).toBeGreaterThanOrEqual(4.5);
});

test.each([false, true])('a number can be read on its own shade; dark: %s', (dark) => {
  const shades = palette(dark);
  for (let shade = -SHADES; shade <= SHADES; shade++) {
    const pixel = shades[shade + SHADES]!;
    const ground = `#${[0, 8, 16].map((at) => ((pixel >> at) & 255).toString(16).padStart(2, '0')).join('')}`;
    expect(contrast(inkOn(shade, dark), ground), `shade ${shade}`).toBeGreaterThanOrEqual(4.5);
  }
});
