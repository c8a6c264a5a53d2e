/**
 * The studio's token, by which it knows its page. It stands in the address that `vitrine studio` prints, behind the #, which
 * no browser sends anywhere. The page takes it out of the address, keeps it for this tab, and sends it as a header.
 * A new tab asks the others for it: only pages of this very address hear that.
 */

import { inReport } from './bundle';

const KEY = 'vitrine.token';
const WAIT_MS = 400; // for an answer of another tab

/** What tabs say to each other: a token, or nothing, which asks for one. */
type Message = { token?: string };

class Token {
  /** what to do when another tab has brought a token */
  arrived = (): void => undefined;
  private value = inReport ? '' : (stored() ?? '');
  private asking: Promise<void> | null = null;
  private answered = (): void => undefined;
  private readonly tabs = inReport ? null : new BroadcastChannel('vitrine');

  constructor() {
    if (!this.tabs) return;
    this.tabs.onmessage = ({ data }: MessageEvent<Message>) => {
      if (!data.token) this.tell();
      else if (data.token !== this.value) {
        this.keep(data.token);
        if (this.asking) this.answered();
        else this.arrived();
      }
    };
    const rest = this.take(location.hash);
    if (rest !== null) history.replaceState(null, '', `#${rest}`);
  }

  /** Takes the token out of an address, and tells the other tabs. Gives the rest of the address; null: it has none. */
  take(hash: string): string | null {
    const parts = new URLSearchParams(hash.slice(1));
    const token = parts.get('access');
    if (!token) return null;
    this.keep(token);
    this.tell();
    parts.delete('access');
    return parts.toString();
  }

  /** Send a request with the token. A token that is refused is forgotten. */
  async send(request: Request): Promise<Response> {
    if (!this.value) await (this.asking ??= this.ask());
    const token = this.value;
    if (token) request.headers.set('Authorization', `Bearer ${token}`);
    const answer = await fetch(request);
    if (answer.status === 401 && token === this.value) this.keep('');
    return answer;
  }

  private async ask(): Promise<void> {
    const heard = new Promise<void>((done) => (this.answered = done));
    this.tabs?.postMessage({} satisfies Message);
    await Promise.race([heard, new Promise((done) => setTimeout(done, WAIT_MS))]);
    this.asking = null;
  }

  private tell(): void {
    if (this.value) this.tabs?.postMessage({ token: this.value } satisfies Message);
  }

  private keep(token: string): void {
    this.value = token;
    try {
      if (token) sessionStorage.setItem(KEY, token);
      else sessionStorage.removeItem(KEY);
    } catch {
      // a browser that keeps nothing: the token holds until the tab is closed or loaded again
    }
  }
}

function stored(): string | null {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

export const token = new Token();
