/** Plays the film frame by frame, up to the newest one. */

/** What is played. */
interface Stage {
  readonly step: number;
  readonly frames: number[]; // the steps of the film
  go(step: number, settle: boolean): void;
  ended(): void;
}

const FIRST_MS = 60;
const [FASTEST_MS, SLOWEST_MS, STILL_MS, WHOLE_MS] = [60, 220, 1000, 9000];

export class Player {
  playing = $state(false);
  private timer = 0;

  constructor(
    private readonly stage: Stage,
    private readonly preferences: { readonly still: boolean }, // fewer pictures, for anyone who asked for less motion
  ) {}

  /** From where the page stands, or, at the end, from birth. */
  play(): void {
    const { stage } = this;
    if (!stage.frames.length) return;
    this.playing = true;
    if (stage.step >= stage.frames.at(-1)!) stage.go(0, false);
    this.timer = window.setTimeout(() => this.turn(), FIRST_MS);
  }

  /** Whether it was playing. */
  stop(): boolean {
    const was = this.playing;
    this.playing = false;
    clearTimeout(this.timer);
    return was;
  }

  private turn(): void {
    const { stage } = this;
    if (!this.playing) return;
    const coming = stage.frames.find((step) => step > stage.step);
    if (coming === undefined) {
      this.stop();
      stage.ended();
      return;
    }
    stage.go(coming, false);
    const pause = Math.max(FASTEST_MS, Math.min(SLOWEST_MS, WHOLE_MS / stage.frames.length));
    this.timer = window.setTimeout(() => this.turn(), this.preferences.still ? STILL_MS : pause);
  }
}
