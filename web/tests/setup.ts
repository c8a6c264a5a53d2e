/** What modules of the page expect of a browser when they are loaded. */
import { vi } from 'vitest';

vi.stubGlobal('window', globalThis);
vi.stubGlobal('location', new URL('http://127.0.0.1:8000/'));
