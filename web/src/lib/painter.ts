/** Sends frames of the parameter map to the worker that colours them: one at a time, always the newest. */

import PainterWorker from './painter.worker?worker&inline';
import type { Order } from './painter.worker';
import type { Frame } from './raster';
import { Recent } from './recent';

/** Numbers as they came, of one tensor or of many. */
export interface Plane {
  readonly id: number;
  readonly numbers: Float32Array;
}

let planes = 0;
export const plane = (numbers: Float32Array): Plane => ({ id: ++planes, numbers });

const MOST_BYTES = 64 * 2 ** 20; // of numbers, and of their shades, that the worker keeps

export class Painter<Told> {
  private readonly worker = new PainterWorker();
  private readonly sent = new Recent<number, true>(MOST_BYTES, (id) => this.dropped.push(id));
  private dropped: number[] = [];
  private pixels = new ArrayBuffer(0);
  private busy: Told | null = null;
  private coming: (() => [Frame, Plane[], Told]) | null = null;

  /** onFrame: the pixels of a frame, what was told with it, and whether it shows what is not finite. Theirs until it returns. */
  constructor(onFrame: (image: ImageData, told: Told, odd: boolean) => void) {
    this.worker.onmessage = ({
      data,
    }: MessageEvent<{ pixels: ArrayBuffer; width: number; height: number; odd: boolean }>) => {
      const told = this.busy!;
      this.pixels = data.pixels;
      this.busy = null;
      onFrame(new ImageData(new Uint8ClampedArray(data.pixels), data.width, data.height), told, data.odd);
      const { coming } = this;
      this.coming = null;
      if (coming) this.draw(coming);
    };
  }

  /** Have a frame coloured; `make` is called when the worker is free, and only for the newest wish. */
  draw(make: () => [Frame, Plane[], Told]): void {
    if (this.busy !== null) {
      this.coming = make;
      return;
    }
    const [frame, used, told] = make();
    this.busy = told;
    for (const plane of used) this.send(plane);
    if (this.dropped.length) this.post({ kind: 'drop', ids: this.dropped.splice(0) }, []);
    this.post({ kind: 'frame', frame, pixels: this.pixels }, [this.pixels]);
  }

  /** Whether a frame is being coloured. */
  get working(): boolean {
    return this.busy !== null;
  }

  close(): void {
    this.worker.terminate();
  }

  private send(plane: Plane): void {
    if (this.sent.get(plane.id)) return;
    const numbers = plane.numbers.slice(); // the page reads them too
    this.sent.set(plane.id, true, numbers.byteLength + numbers.length);
    this.post({ kind: 'plane', id: plane.id, numbers }, [numbers.buffer]);
  }

  private post(order: Order, transfer: Transferable[]): void {
    this.worker.postMessage(order, transfer);
  }
}
