/** The reader's settings: light or dark, as the system has it or as chosen here, and reduced motion. */

export type Theme = '' | 'light' | 'dark';
const KEY = 'vitrine.theme';

export class Preferences {
  dark = $state(false);
  still = $state(false); // less motion
  theme = $state<Theme>(''); // chosen here; empty: the system's
  private readonly media = matchMedia('(prefers-color-scheme: dark)');

  /** Follow the browser's settings, and what was chosen at the last visit. */
  listen(): void {
    const motion = matchMedia('(prefers-reduced-motion: reduce)');
    this.still = motion.matches;
    this.media.addEventListener('change', () => this.show());
    motion.addEventListener('change', () => (this.still = motion.matches));
    try {
      this.theme = (localStorage.getItem(KEY) ?? '') as Theme;
    } catch {
      // nothing is remembered here
    }
    this.show();
  }

  choose(theme: Theme): void {
    this.theme = theme;
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // then it holds for this visit
    }
    this.show();
  }

  private show(): void {
    if (this.theme) document.documentElement.dataset.theme = this.theme;
    else delete document.documentElement.dataset.theme;
    this.dark = this.theme ? this.theme === 'dark' : this.media.matches;
  }
}
