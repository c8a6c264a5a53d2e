/** A cache with a limit in bytes, which drops the least recently used values. */

export class Recent<K, V> {
  private readonly kept = new Map<K, { value: V; bytes: number }>(); // the least recently used first
  private bytes_ = 0;

  /** onDrop: is told of everything that is dropped. */
  constructor(
    readonly most: number, // bytes
    private readonly onDrop: (key: K) => void = () => undefined,
  ) {}

  get bytes(): number {
    return this.bytes_;
  }

  has(key: K): boolean {
    return this.kept.has(key);
  }

  get(key: K): V | undefined {
    const found = this.kept.get(key);
    if (!found) return undefined;
    this.kept.delete(key);
    this.kept.set(key, found);
    return found.value;
  }

  /** Keep a value, even one that alone is over the limit; older ones make room for it. */
  set(key: K, value: V, bytes: number): void {
    this.bytes_ += bytes - (this.kept.get(key)?.bytes ?? 0);
    this.kept.delete(key);
    this.kept.set(key, { value, bytes });
    for (const [old, { bytes }] of this.kept) {
      if (this.bytes_ <= this.most || old === key) break;
      this.bytes_ -= bytes;
      this.kept.delete(old);
      this.onDrop(old);
    }
  }
}
