import { expect, test, vi } from 'vitest';
import type { About } from '../src/lib/bundle';

/** As vitrine/studio/report/bundle.py packs it: a line of JSON, then the parts. */
async function pack(head: object, parts: Uint8Array<ArrayBuffer>[]): Promise<string> {
  const line = JSON.stringify({ ...head, sizes: parts.map((part) => part.length) });
  const stream = new Blob([`${line}\n`, ...parts]).stream().pipeThrough(new CompressionStream('gzip'));
  return btoa(String.fromCharCode(...new Uint8Array(await new Response(stream).arrayBuffer())));
}
const bytes = (numbers: ArrayBufferView<ArrayBuffer>): Uint8Array<ArrayBuffer> =>
  new Uint8Array(numbers.buffer, numbers.byteOffset, numbers.byteLength);
const json = (value: unknown): Uint8Array<ArrayBuffer> => new TextEncoder().encode(JSON.stringify(value));

const FILM = {
  steps: [0, 10],
  value_level: 1,
  change_level: 2,
  tensors: [
    { name: 'w', values: [2, 2], changes: [1, 1] },
    { name: 'b', values: [1, 2], changes: [1, 1] },
  ],
};
const INFO = {
  film: FILM,
  config: {
    model: {
      n_layers: 0,
      n_heads: 1,
      n_kv_heads: 1,
      d_model: 2,
      head_dim: 2,
      context: 2,
      norm_epsilon: 1e-12,
      vocab_size: 3,
    },
  },
  tensors: [
    { name: 'w', shape: [4, 4], parameters: 16 },
    { name: 'b', shape: [4], parameters: 4 },
    { name: 'embedding.weight', shape: [3, 2], parameters: 6 },
    { name: 'final_norm.gain', shape: [2], parameters: 2 },
  ],
};
const kept = (
  path: string,
  query: object,
  content: Uint8Array<ArrayBuffer>,
  more: object = {},
): [object, Uint8Array<ArrayBuffer>] => [{ path, query, body: null, status: 200, headers: {}, ...more }, content];
const ANSWERS = [
  kept('', {}, json(INFO)),
  kept('series', { name: 'loss' }, json({ name: 'loss', steps: [0, 5, 9], low: [3, 2, 1], high: [4, 3, 2] })),
  kept(
    'tile',
    { tensor: 'w', step: '10', mode: 'value', row: '1', column: '1', rows: '3', columns: '3', every: '1' },
    bytes(Float32Array.from({ length: 9 }, (_, i) => i)),
    { headers: { 'x-shape': '3,3', 'x-step': '10' } },
  ),
  kept('next', {}, json({ step: 10, tokens: [0], logits: [1, 2, 3] }), { body: { prompt: 'a', step: 10 } }),
  kept('nudge', {}, json({ loss: 1 }), { body: { parameter: 'w[1,1]', step: 10, sizes: [1, 2] } }),
];
const scales = Float32Array.of(0.5, 1, 0, 0, 0, 0);
const film = await pack({ frames: 2 }, [
  bytes(Uint32Array.of(0, 3, 8, 11, 1, 2, 5, 0)), // picks: of the values, then of the changes
  bytes(Float32Array.of(10, 20, 30, 40, 50, 60)),
  bytes(scales),
  bytes(scales.map((scale) => 2 * scale)),
  bytes(Int8Array.of(4, -4, 100, 127, 7, 0, 1, 2, 3, 4)), // values; gradients and updates
  // What is left when each byte is foretold from the one before, at a scale twice as large.
  bytes(Int8Array.of(1, 0, 0, -2, 0, -3, 5, 6, 7, 8)),
]);
const about = { run: 'small', steps: [10], begin: 10, cell: 'w[1,1]', alive: [0, 10], numbers: 'float32' } as About;
const head = {
  numbers: 'float32',
  steps: [0, 10],
  family: { norm: 'RMSNorm', norm_after: false, positions: 'rotary', gated: true, query_key_norm: '' },
  tokenizer: {
    kind: 'char',
    tokens: ['a', 'b', 'c'],
    special: [],
    merges: [],
    words: false,
    prefix: false,
    unknown: null,
    start: 2,
    end: null,
  },
};
/** The lowest byte of every number first. */
function planes(numbers: number[]): Uint8Array<ArrayBuffer> {
  const raw = bytes(Float32Array.from(numbers));
  return raw.map((_, i) => raw[4 * (i % numbers.length) + Math.floor(i / numbers.length)]!);
}
const others = new Array<number>(20).fill(7);
const held: Record<string, string> = {
  film,
  model: await pack(head, [planes([...others, 0, 0, 0, 0, 0, 0, 1, 1]), planes([...others, 3, 4, 0, 2, -1, 0, 1, 1])]),
  answers: await pack(
    { about, answers: ANSWERS.map(([head]) => head) },
    ANSWERS.map(([, content]) => content),
  ),
};
vi.stubGlobal('document', {
  getElementById: (id: string) => (id in held ? { textContent: held[id] } : null),
});
const { openBundle } = await import('../src/lib/bundle');

const ask = async (path: string, body?: object): Promise<Response> =>
  (await openBundle()).answer(
    new Request(`http://report/api${path}`, body && { method: 'POST', body: JSON.stringify(body) }),
  );
const numbers = async (path: string): Promise<number[]> => [...new Float32Array(await (await ask(path)).arrayBuffer())];
const refusal = async (path: string, body?: object): Promise<string> => {
  const answer = await ask(path, body);
  expect(answer.status).toBe(404);
  return ((await answer.json()) as { error: string }).error;
};

test('a part of a curve is cut from the whole one', async () => {
  expect(await (await ask('/runs/small/series?name=loss&first=4&last=8&pixels=300')).json()).toMatchObject({
    steps: [5],
    low: [2],
    high: [3],
  });
});

test('cells are cut from the rectangle that is kept, and refused outside of it', async () => {
  const tile = '/runs/small/tile?tensor=w&step=10&mode=value&every=1';
  expect(await numbers(`${tile}&row=2&column=2&rows=2&columns=2`)).toEqual([4, 5, 7, 8]);
  expect((await ask(`${tile}&row=2&column=2&rows=2&columns=2`)).headers.get('x-shape')).toBe('2,2');
  expect(await refusal(`${tile}&row=0&column=2&rows=2&columns=2`)).toMatch('exact cells around w[1,1]');
  expect(await refusal(tile.replace('step=10', 'step=11') + '&row=2&column=2&rows=1&columns=1')).toMatch('step 10');
});

test('frames of the film are unfolded, each from the one before', async () => {
  const read = async (number: number): Promise<number[]> => {
    const raw = await (await ask(`/runs/small/film/${number}`)).arrayBuffer();
    expect(Number(new DataView(raw).getBigInt64(0, true))).toBe(FILM.steps[number]);
    return [...new Int8Array(raw, 16 + 24)];
  };
  expect(await read(0)).toEqual([4, -4, 100, 127, 7, 0, 1, 2, 3, 4]);
  // Half of each, rounded half up: 2, -2, 50, 64 (63.5), 4 (3.5), 0; and then what is left.
  expect(await read(1)).toEqual([3, -2, 50, 62, 4, -3, 5, 6, 7, 8]);
  expect(await refusal('/runs/small/film/2')).toBe('The film in this report has 2 frames.');
});

test('which cells the film shows, and those at birth, are known without the studio', async () => {
  const picks = async (query: string): Promise<number[]> => [
    ...new Uint32Array(await (await ask(`/runs/small/picks?${query}`)).arrayBuffer()),
  ];
  expect(await picks('tensor=b&row=0&column=0&rows=1&columns=4&every=2')).toEqual([1, 2]);
  expect(await picks('tensor=b&row=0&column=0&rows=1&columns=4&every=4')).toEqual([0]);
  expect(await picks('tensor=w&row=1&column=2&rows=1&columns=2&every=1')).toEqual([6, 7]);
  const birth = '/runs/small/tile?tensor=w&step=0&mode=birth&row=0&column=0&rows=4&columns=4&every=2';
  expect(await numbers(birth)).toEqual([10, 20, 30, 40]);
});

test('what was measured is told, whatever sizes are asked for; and of another parameter there is nothing', async () => {
  const body = { parameter: 'w[1,1]', step: 10, sizes: [9] };
  expect(await (await ask('/runs/small/nudge', body)).json()).toEqual({ loss: 1 });
  expect(await refusal('/runs/small/nudge', { ...body, parameter: 'w[1,2]' })).toMatch('w[1,1]');
});

test('what a report has not is refused in a sentence that says where to look', async () => {
  expect(await refusal('/runs/other')).toMatch('small');
  const elsewhere = await refusal('/runs/small/generate', { prompt: 'a', step: 3 });
  expect(elsewhere).toMatch('can run the model at steps 0 and 10 only. Open the run itself');
  expect(await refusal('/runs/small/step/3?row=0&token=0')).toMatch('of step 3');
  expect(await refusal('/compare?runs=a,b')).toMatch('one run');
  expect((await ask('/runs/small/live')).status).toBe(204);
});

test('a prompt that was recorded is told as it was, and another one is computed from the parameters', async () => {
  const next = async (body: object): Promise<unknown> => (await ask('/runs/small/next', body)).json();
  expect(await next({ prompt: 'a', step: 10 })).toEqual({ step: 10, tokens: [0], logits: [1, 2, 3] });
  const found = (await next({ prompt: 'ba', step: 10 })) as { tokens: number[]; logits: number[]; computed: boolean };
  expect(found).toMatchObject({ step: 10, tokens: [1, 0], computed: true });
  // No block: (3, 4) over its root mean square, 12.5 ** 0.5, times (3, 4), (0, 2) and (-1, 0).
  const scale = 1 / Math.sqrt(12.5);
  [25 * scale, 8 * scale, -3 * scale].forEach((logit, i) => expect(found.logits[i]).toBeCloseTo(logit, 6));
  const turned = { tensor: 'embedding.weight', place: 4, value: 2 };
  const other = (await next({ prompt: 'a', step: 10, turned })) as { logits: number[] };
  [25 * scale, 8 * scale, 6 * scale].forEach((logit, i) => expect(other.logits[i]).toBeCloseTo(logit, 6));
  expect(await next({ prompt: 'ba', step: 10 })).toEqual(found); // nothing is left of it
});

test('it writes as the sliders say, in the events of the studio; what it cannot read is refused before', async () => {
  const sampling = { temperature: 0, top_k: 0, top_p: 1, min_p: 0, repetition_penalty: 1 };
  const body = { prompt: 'ab', step: 10, max_new_tokens: 3, seed: 1, ...sampling };
  const write = async (more: object): Promise<object[]> =>
    (await (await ask('/runs/small/generate', { ...body, ...more })).text())
      .split('\n\n')
      .filter(Boolean)
      .map((event) => JSON.parse(event.slice(6)) as object);
  const digest = { before: null, after: null };
  // After b, (0, 2), a scores 4 and b 2: the likeliest is a, again and again, although the context has two tokens.
  const pieces = [{ text: 'a' }, { text: 'a' }, { text: 'a' }];
  expect(await write({})).toEqual([...pieces, { done: true, step: 10, text: 'abaaa', digest }]);
  // At birth all tokens are equally likely: only the seed decides.
  const random = { step: 0, temperature: 1, max_new_tokens: 40 };
  expect(await write(random)).toEqual(await write(random));
  expect(await write(random)).not.toEqual(await write({ ...random, seed: 2 }));
  expect(await refusal('/runs/small/generate', { ...body, prompt: 'z' })).toMatch("never seen 'z' (U+007A)");
});

test('one parameter is told as the model has it, with the standard deviation of its tensor', async () => {
  const bundle = await openBundle();
  const found = await bundle.parameter(10, 'embedding.weight', 4);
  expect(found!.value).toBe(-1);
  expect(found!.std).toBeCloseTo(Math.sqrt((9 + 16 + 4 + 1) / 6 - (8 / 6) ** 2), 6);
  expect(await bundle.parameter(3, 'embedding.weight', 4)).toBeNull();
});

test('a report without parameters says why it cannot run the model', async () => {
  const still = 'This one is too large.';
  held.answers = await pack({ about: { ...about, alive: [], still }, answers: [ANSWERS[0]![0]] }, [ANSWERS[0]![1]]);
  vi.resetModules();
  const bundle = await (await import('../src/lib/bundle')).openBundle();
  const body = JSON.stringify({ prompt: 'ba', step: 10 });
  const answer = await bundle.answer(new Request('http://report/api/runs/small/next', { method: 'POST', body }));
  expect(answer.status).toBe(404);
  expect(((await answer.json()) as { error: string }).error).toMatch(`cannot run the model. ${still} Open the run`);
});
