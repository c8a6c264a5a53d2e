/** The prompt, the decoding settings, and the model's predictions of the next token. */

import * as api from './api';
import type { Run } from './run.svelte';
import type { Next, RunInfo, Turned } from './types';

export class Writing {
  prompt = $state('');
  sampling = $state<api.Sampling>({ temperature: 0.8, top_k: 0, top_p: 1, min_p: 0, repetition_penalty: 1 });
  next = $state.raw<Next | null>(null); // the logits after the prompt, by the model at their step
  after = $state(''); // which prompt: another may have been typed since
  turned = $state.raw<Turned | null>(null); // a parameter with another value, on this page only: see Turn.svelte
  trouble = $state('');
  private asking: AbortController | null = null;

  constructor(
    private readonly run: Run,
    readonly step: () => number, // whose model answers
  ) {}

  /** Another run: its own settings, and a prompt of its own alphabet. */
  begin(run: RunInfo): void {
    this.next = this.turned = null;
    const chosen = run.config.sampling ?? {};
    Object.assign(
      this.sampling,
      Object.fromEntries(
        Object.keys(this.sampling)
          .filter((key) => key in chosen)
          .map((key) => [key, chosen[key]]),
      ),
    );
    this.prompt = defaultPrompt(run);
  }

  /** Ask for the logits after the prompt. */
  async ask(): Promise<void> {
    const run = this.run.info;
    if (!run) return;
    this.asking?.abort();
    const { signal } = (this.asking = new AbortController());
    const prompt = this.prompt;
    try {
      const next = await api.postNext(run.name, prompt, this.step(), signal, this.turned ?? undefined);
      if (signal.aborted || this.prompt !== prompt) return;
      Object.assign(this, { next, after: prompt });
      this.trouble = '';
    } catch (error) {
      if (!api.isAbort(error)) this.trouble = api.sentence(error);
    }
  }
}

function defaultPrompt(run: RunInfo): string {
  const wish = 'The ';
  return !run.vocab || [...wish].every((letter) => run.vocab!.includes(letter)) ? wish : (run.samples[0]?.prompt ?? '');
}
