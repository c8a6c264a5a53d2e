/** A text that was dropped on the page, and the estimated time to train a model on one. */

import * as api from './api';
import type { FigureProps } from './figure';
import type { Run } from './run.svelte';
import type { View } from './view.svelte';

export const FIRST = { preset: 'demo', steps: 300 } as const; // what a new run begins with, before anything is changed
export const TIMED = 'an estimate: a few such steps, timed on this machine';
const MOST_BYTES = 19_000_000; // a request may hold 20 MB

export class Dropped {
  over = $state(false); // something is being dragged over the page
  /** seconds of training for a text like this run's, once the studio has timed it */
  seconds = $state<number | null>(null);
  text = '';
  name = '';
  private asked = false;

  constructor(
    private readonly run: Run,
    private readonly view: View,
  ) {}

  get duration(): FigureProps {
    return { what: 'duration', value: this.seconds, of: 'a training on a text like this', from: TIMED, about: true };
  }

  /** Ask once how long it takes, here, with what a new run begins with: on a text that is there already. */
  async estimate(): Promise<void> {
    const { info } = this.run;
    if (this.asked || !info || info.training) return;
    this.asked = true;
    try {
      this.seconds = (await api.postPlan({ corpus: info.name, ...FIRST })).duration_s;
    } catch {
      this.asked = false; // it is said once it is known
    }
  }

  /** Open a new run with the text of a file. */
  async take(file: File | undefined): Promise<void> {
    this.over = false;
    if (!file) return;
    try {
      Object.assign(this, await readText(file));
      this.view.dialog = true;
    } catch (error) {
      this.view.fail(error);
    }
  }

  /** What was dropped, once. */
  hand(): { text: string; name: string } {
    const { text, name } = this;
    Object.assign(this, { text: '', name: '' });
    return { text, name };
  }
}

/** The text of a file, and a run's name made of the file's. */
export async function readText(file: File): Promise<{ text: string; name: string }> {
  if (file.size > MOST_BYTES)
    throw new Error(
      `${file.name} has ${(file.size / 1e6).toFixed(0)} MB; the page takes ${MOST_BYTES / 1e6} MB at most. Train on it with: vitrine train ${file.name}`,
    );
  const text = await file.text();
  if (text.includes('\0'))
    throw new Error(`${file.name} is no text: it holds zero bytes. Give a file of plain text, such as .txt or .md.`);
  return { text, name: nameOf(file.name) };
}

export const nameOf = (file: string): string =>
  file
    .replace(/\.[^.]*$/, '')
    .replace(/[^\p{L}\p{N}_-]+/gu, '-')
    .replace(/^[-_]+/, '')
    .slice(0, 40) || 'my-text';
