/** The camera of the parameter map: its position, zoom and limits; gestures and flights by d3-zoom. */

import { select, type Selection } from 'd3-selection';
import 'd3-transition';
import { zoom, zoomIdentity, type ZoomTransform } from 'd3-zoom';
import { rectangleOf, type Layout } from './layout';

export interface View {
  /** the point in the middle, in pixels of the map as it is when all of it is seen */
  x: number;
  y: number;
  /** 1: all of it is seen */
  zoom: number;
}

export interface Place {
  name: string;
  row: number;
  column: number;
}

const LARGEST_CELL = 0.8; // of the screen's lesser side

export interface Size {
  width: number;
  height: number;
}

/** Where a point of the map is on a screen of this size. */
export const placed = (view: View, size: Size, x: number, y: number): { x: number; y: number } => ({
  x: (x - view.x) * view.zoom + size.width / 2,
  y: (y - view.y) * view.zoom + size.height / 2,
});

/** As fast as one expects of a map; a touchpad's pinch comes as a wheel with Ctrl, in small steps. */
const wheel = ({ deltaY, deltaMode, ctrlKey }: WheelEvent): number =>
  -deltaY * (deltaMode ? 0.05 : 0.0026) * (ctrlKey ? 10 : 1);

/** From one view to another about the one point that stays where it is; [x, y, width]: what is seen. */
const straight =
  ([x0, y0, w0]: [number, number, number], [x1, y1, w1]: [number, number, number]) =>
  (t: number): [number, number, number] => {
    const w = w0 * (w1 / w0) ** t;
    const share = Math.abs(w1 / w0 - 1) > 1e-3 ? (w - w0) / (w1 - w0) : t;
    return [x0 + (x1 - x0) * share, y0 + (y1 - y0) * share, w];
  };

export class Camera {
  view = $state.raw<View>({ x: 0, y: 0, zoom: 1 });
  layout = $state.raw<Layout | null>(null);
  /** of the screen, in pixels */
  size = $state.raw<Size>({ width: 0, height: 0 });
  private canvas: Selection<HTMLCanvasElement, unknown, null, undefined> | null = null;
  private readonly gestures = zoom<HTMLCanvasElement, unknown>()
    .clickDistance(4)
    .wheelDelta(wheel)
    .interpolate(straight)
    .constrain((wanted) => this.transform(this.within(this.seenBy(wanted))))
    .on('zoom', ({ transform }: { transform: ZoomTransform }) => (this.view = this.seenBy(transform)));

  /** Let pinch, wheel and drag on a canvas move the map. */
  attach(canvas: HTMLCanvasElement): void {
    this.canvas = select(canvas).call(this.gestures).on('dblclick.zoom', null);
    // At a limit, too, the wheel must not scroll or zoom the page.
    this.canvas.on('wheel.page', (event: WheelEvent) => event.preventDefault(), { passive: false });
    this.look(this.view);
  }

  /** Where all of the map is seen, on whole pixels. */
  get home(): View {
    const { layout, size } = this;
    if (!layout) return { x: 0, y: 0, zoom: 1 };
    const left = Math.round((layout.width - size.width) / 2);
    const top = Math.round(Math.min(0, (layout.height - size.height) / 2));
    return { x: left + size.width / 2, y: top + size.height / 2, zoom: 1 };
  }

  /** The map stands anew: of another model, or on another screen. */
  stand(layout: Layout | null, size: Size): void {
    const stays = this.view.zoom !== 1 && this.layout?.scale === layout?.scale;
    Object.assign(this, { layout, size });
    this.gestures.scaleExtent([1, this.most]).extent([
      [0, 0],
      [size.width, size.height],
    ]);
    this.look(stays ? this.view : this.home);
  }

  /** See it from here, at once. */
  look(view: View): void {
    void this.fly(view, 0);
  }

  /** See all of it. */
  fit(ms = 0): Promise<void> {
    return this.fly(this.home, ms);
  }

  /** Bring a cell into the middle, so many pixels large; `Infinity`: as large as it can be. */
  to(cell: Place, pixels = 46, ms = 0): Promise<void> {
    const rectangle = this.layout && rectangleOf(this.layout, cell.name, cell.row, cell.column);
    if (!rectangle) return Promise.resolve();
    const zoom = Math.min(pixels / this.layout!.scale, this.most);
    return this.fly({ x: rectangle.x + rectangle.width / 2, y: rectangle.y + rectangle.height / 2, zoom }, ms);
  }

  /** Go to a view; resolves on arrival, or when another flight or a gesture begins. */
  async fly(to: View, ms: number): Promise<void> {
    const end = this.transform(this.within(to));
    if (!this.canvas) this.view = this.within(to);
    else if (ms <= 0) this.canvas.call(this.gestures.transform, end);
    else
      await this.canvas
        .transition()
        .duration(ms)
        .call(this.gestures.transform, end)
        .end()
        .catch(() => undefined);
  }

  /** Zoom about a point of the screen. */
  zoomAt(x: number, y: number, factor: number): void {
    this.canvas?.call(this.gestures.scaleBy, factor, [x, y]);
  }

  /** Where a point of the map is on the screen. */
  place(x: number, y: number): { x: number; y: number } {
    return placed(this.view, this.size, x, y);
  }
  unplace(x: number, y: number): { x: number; y: number } {
    const { view, size } = this;
    return { x: (x - size.width / 2) / view.zoom + view.x, y: (y - size.height / 2) / view.zoom + view.y };
  }

  /** A view as d3-zoom has it, and back. */
  private transform({ x, y, zoom }: View): ZoomTransform {
    const { width, height } = this.size;
    return zoomIdentity.translate(width / 2 - x * zoom, height / 2 - y * zoom).scale(zoom);
  }
  private seenBy({ x, y, k }: ZoomTransform): View {
    const { width, height } = this.size;
    return { x: (width / 2 - x) / k, y: (height / 2 - y) / k, zoom: k };
  }

  private get most(): number {
    const { layout, size } = this;
    return layout ? (LARGEST_CELL * Math.min(size.width, size.height)) / layout.scale : 1;
  }

  /** Some of the map is always seen. */
  private within(view: View): View {
    const { layout, home } = this;
    if (!layout || view.zoom <= 1) return home;
    const hold = (at: number, size: number): number => Math.max(0, Math.min(size, at));
    return { x: hold(view.x, layout.width), y: hold(view.y, layout.height), zoom: Math.min(view.zoom, this.most) };
  }
}
