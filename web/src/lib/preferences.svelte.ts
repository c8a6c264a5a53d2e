/** The reader's settings in the browser: dark colours and reduced motion. */

export class Preferences {
  dark = $state(false);
  still = $state(false); // less motion

  /** Follow the browser's settings. */
  listen(): void {
    const media = matchMedia('(prefers-color-scheme: dark)');
    const motion = matchMedia('(prefers-reduced-motion: reduce)');
    this.dark = media.matches;
    this.still = motion.matches;
    media.addEventListener('change', () => (this.dark = media.matches));
    motion.addEventListener('change', () => (this.still = motion.matches));
  }
}
