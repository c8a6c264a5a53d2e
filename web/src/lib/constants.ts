/** Colours, scale factors and limits that the page shares with Python: vitrine/constants.json. */

import constants from '../../../vitrine/constants.json' with { type: 'json' };

export const { fonts: FONTS, scales: SCALES, requests: REQUESTS, limits: LIMITS } = constants;

export type Colours = typeof constants.colours.light;
/** The page's colours on a light or a dark ground, as #rrggbb. */
export const colours = (dark: boolean): Colours => (dark ? constants.colours.dark : constants.colours.light);

/** CSS that makes each colour and font a custom property: `--paper`. vite.config.ts puts it at the top of page.css. */
export function customProperties(): string {
  const lines = (values: object): string =>
    Object.entries(values)
      .map(([name, value]) => `--${name}: ${value};`)
      .join(' ');
  const dark = `${lines(colours(true))} color-scheme: dark;`;
  return `:root { ${lines(FONTS)} ${lines(colours(false))} color-scheme: light; }
@media (prefers-color-scheme: dark) { :root:not([data-theme='light']) { ${dark} } }
:root[data-theme='dark'] { ${dark} }
`;
}
