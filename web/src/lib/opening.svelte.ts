/** Decides whether the opening is shown: once, to a visitor whose link does not name a place. */

import { standsSomewhere } from './opening';

const SEEN = 'vitrine.opening';

export class Opening {
  shown = $state(false);

  /** At the first visit. Where nothing can be remembered it is not shown: it would come each time. */
  begin(): void {
    try {
      this.shown =
        localStorage.getItem(SEEN) === null && !standsSomewhere(location.hash) && location.protocol !== 'file:';
    } catch {
      this.shown = false;
    }
  }

  again(): void {
    this.shown = true;
  }

  /** It was seen, or skipped. */
  end(): void {
    this.shown = false;
    try {
      localStorage.setItem(SEEN, 'seen');
    } catch {
      // then it is not remembered
    }
  }

  /** There is nothing to show: another time. */
  leave(): void {
    this.shown = false;
  }
}
