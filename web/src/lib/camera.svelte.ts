/** From where the map is seen: a point of it in the middle of the screen, and how large. */

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

export class Camera {
  view = $state.raw<View>({ x: 0, y: 0, zoom: 1 });
  layout = $state.raw<Layout | null>(null);
  /** of the screen, in pixels */
  size = $state.raw<Size>({ width: 0, height: 0 });
  private flight = 0;
  private land: (() => void) | null = null;

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
    const wasHome = this.view.zoom === 1;
    const scale = this.layout?.scale;
    this.layout = layout;
    this.size = size;
    if (wasHome || layout?.scale !== scale) this.look(this.home);
  }

  /** See it from here, at once. */
  look(view: View): void {
    this.end();
    this.view = this.within(view);
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

  /** Go to a view, about the one point that stays where it is; resolves on arrival, or when another flight begins. */
  fly(to: View, ms: number): Promise<void> {
    this.end();
    const from = this.view;
    const end = this.within(to);
    if (ms <= 0) {
      this.view = end;
      return Promise.resolve();
    }
    const began = performance.now();
    const moves = Math.abs(end.zoom / from.zoom - 1) > 1e-3;
    const still = (a: number, b: number): number => (b * end.zoom - a * from.zoom) / (end.zoom - from.zoom);
    const [px, py] = [still(from.x, end.x), still(from.y, end.y)];
    return new Promise((resolve) => {
      this.land = resolve;
      const tick = (now: number): void => {
        const t = Math.min(1, Math.max(0, (now - began) / ms));
        const eased = t < 0.5 ? 4 * t ** 3 : 1 - (-2 * t + 2) ** 3 / 2;
        const zoom = from.zoom * (end.zoom / from.zoom) ** eased;
        if (t >= 1) this.view = end;
        else if (moves)
          this.view = { x: px + ((from.x - px) * from.zoom) / zoom, y: py + ((from.y - py) * from.zoom) / zoom, zoom };
        else this.view = { x: from.x + (end.x - from.x) * eased, y: from.y + (end.y - from.y) * eased, zoom };
        if (t < 1) this.flight = requestAnimationFrame(tick);
        else this.end();
      };
      this.flight = requestAnimationFrame(tick);
    });
  }

  /** Zoom about a point of the screen. */
  zoomAt(x: number, y: number, factor: number): void {
    const zoom = Math.max(1, Math.min(this.most, this.view.zoom * factor));
    const point = this.unplace(x, y);
    const { width, height } = this.size;
    this.look(
      zoom === 1 ? this.home : { x: point.x - (x - width / 2) / zoom, y: point.y - (y - height / 2) / zoom, zoom },
    );
  }

  /** Where a point of the map is on the screen. */
  place(x: number, y: number): { x: number; y: number } {
    return placed(this.view, this.size, x, y);
  }
  unplace(x: number, y: number): { x: number; y: number } {
    const { view, size } = this;
    return { x: (x - size.width / 2) / view.zoom + view.x, y: (y - size.height / 2) / view.zoom + view.y };
  }

  private end(): void {
    cancelAnimationFrame(this.flight);
    this.land?.();
    this.land = null;
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
