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
  tensors: [
    { name: 'w', shape: [4, 4] },
    { name: 'b', shape: [4] },
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
const about = { run: 'small', steps: [10], begin: 10, cell: 'w[1,1]' } as About;
const held: Record<string, string> = {
  film,
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
  expect(await refusal('/runs/small/generate', {})).toMatch('vitrine studio runs/small');
  expect(await refusal('/runs/small/step/3?row=0&token=0')).toMatch('of step 3');
  expect(await refusal('/compare?runs=a,b')).toMatch('one run');
  expect((await ask('/runs/small/live')).status).toBe(204);
});
