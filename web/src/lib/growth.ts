/** Adds the events of a running training to what was read of the run before. */

import type { RunInfo, StreamState } from './types';

/** `old` with what is new in it; the film's list of frames grows in place, since the film reads it too. */
export function grown(old: RunInfo, state: StreamState): RunInfo {
  const added = <T>(list: T[], news: T[] | undefined, key: (item: T) => string | number): T[] => {
    const have = new Set(list.map(key));
    const fresh = (news ?? []).filter((item) => !have.has(key(item)));
    return fresh.length ? [...list, ...fresh] : list;
  };
  if (old.film) old.film.steps.splice(0, Infinity, ...added(old.film.steps, state.film_steps, (step) => step));
  return {
    ...old,
    evaluations: added(old.evaluations, state.evaluations, (e) => `${e.step} ${e.whole} ${e.final}`),
    samples: added(old.samples, state.samples, (sample) => sample.step),
    events: added(old.events, state.events, (e) => `${e.time_s} ${e.kind}`),
    steps_made: state.steps_made,
    training: state.training,
    paused: state.paused,
    left_s: state.left_s,
    disk_bytes: state.disk_bytes,
    disk_expected_bytes: state.disk_expected_bytes,
  };
}
