/**
 * The decoder of vitrine/model/decoder.py, for one text: token after token, with a cache of keys and values. Sums are made in
 * float64 and kept in float32. What sets families apart comes from the run (vitrine/families/family.py); this file knows none.
 */

/** Of a family's description, what the forward pass depends on. */
export interface Family {
  norm: 'LayerNorm' | 'RMSNorm';
  norm_after: boolean;
  positions: 'learned' | 'rotary';
  gated: boolean;
  query_key_norm: '' | 'head' | 'heads';
}

/** Of a run's hyperparameters, those of its model. */
export interface Shape {
  n_layers: number;
  n_heads: number;
  n_kv_heads: number;
  d_model: number;
  head_dim: number;
  context: number;
  norm_epsilon: number;
  rope_base: number;
}

export interface Model {
  family: Family;
  shape: Shape;
  /** by name, each flattened; a tied head and biases that the run has not are missing */
  tensors: Map<string, Float32Array>;
}

/** Of each layer, keys and values of the tokens so far: (tokens, n_kv_heads x head_dim). */
export interface Cache {
  length: number;
  keys: Float32Array[];
  values: Float32Array[];
}

export function emptyCache({ shape }: Model): Cache {
  const room = shape.context * shape.n_kv_heads * shape.head_dim;
  const layers = (): Float32Array[] => Array.from({ length: shape.n_layers }, () => new Float32Array(room));
  return { length: 0, keys: layers(), values: layers() };
}

/** Read one more token; there must be room for it in the context. Returns (d_model,), after the final norm. */
export function read(model: Model, cache: Cache, token: number): Float32Array {
  const { family, shape, tensors } = model;
  const width = shape.d_model;
  const row = (name: string, at: number): Float32Array => tensors.get(name)!.subarray(at * width, (at + 1) * width);
  const at = cache.length++;
  const x = row('embedding.weight', token).slice();
  if (family.positions === 'learned') add(x, row('positions.weight', at));
  for (let layer = 0; layer < shape.n_layers; layer++) {
    const name = `blocks.${layer}.`;
    const branch = (part: string, work: (x: Float32Array) => Float32Array): void =>
      family.norm_after
        ? add(x, norm(model, `${name}post_${part}_norm`, work(x)))
        : add(x, work(norm(model, `${name}${part}_norm`, x)));
    branch('attention', (given) => attention(model, cache, layer, at, given));
    branch('mlp', (given) => mlp(model, `${name}mlp`, given));
  }
  return norm(model, 'final_norm', x);
}

/** (vocab_size,): the logits of the next token, of what `read` returned. */
export function logitsOf({ tensors }: Model, x: Float32Array): Float32Array {
  return product(tensors.get('head.weight') ?? tensors.get('embedding.weight')!, x);
}

function attention(model: Model, cache: Cache, layer: number, at: number, x: Float32Array): Float32Array {
  const { family, shape } = model;
  const { n_heads, n_kv_heads, head_dim } = shape;
  const name = `blocks.${layer}.attention`;
  const project = (part: 'query' | 'key'): Float32Array => {
    let heads = linear(model, `${name}.${part}`, x);
    const width = { '': 0, head: head_dim, heads: heads.length }[family.query_key_norm];
    if (width) heads = norm(model, `${name}.${part}_norm`, heads, width);
    if (family.positions === 'rotary') rotate(heads, head_dim, at, shape.rope_base);
    return heads;
  };
  const kvWidth = n_kv_heads * head_dim;
  const [keys, values] = [cache.keys[layer], cache.values[layer]];
  const query = project('query');
  keys.set(project('key'), at * kvWidth);
  values.set(linear(model, `${name}.value`, x), at * kvWidth);
  const mixed = new Float32Array(n_heads * head_dim);
  const shares = new Float64Array(at + 1);
  for (let head = 0; head < n_heads; head++) {
    const start = head * head_dim;
    const shared = Math.floor(head / (n_heads / n_kv_heads)) * head_dim; // some heads share keys and values
    let most = -Infinity;
    for (let t = 0; t <= at; t++) {
      let score = 0;
      for (let i = 0; i < head_dim; i++) score += query[start + i] * keys[t * kvWidth + shared + i];
      shares[t] = score / Math.sqrt(head_dim);
      if (shares[t] > most) most = shares[t];
    }
    let sum = 0;
    for (let t = 0; t <= at; t++) sum += shares[t] = Math.exp(shares[t] - most);
    for (let i = 0; i < head_dim; i++) {
      let mix = 0;
      for (let t = 0; t <= at; t++) mix += shares[t] * values[t * kvWidth + shared + i];
      mixed[start + i] = mix / sum;
    }
  }
  return linear(model, `${name}.output`, mixed);
}

function mlp(model: Model, name: string, x: Float32Array): Float32Array {
  const inner = linear(model, `${name}.expand`, x);
  if (model.family.gated) {
    const gate = linear(model, `${name}.gate`, x);
    for (let i = 0; i < inner.length; i++) inner[i] *= gate[i] / (1 + Math.exp(-gate[i])); // SiLU
  } else {
    const root = Math.sqrt(2 / Math.PI);
    for (let i = 0; i < inner.length; i++) {
      const v = inner[i];
      inner[i] = 0.5 * v * (1 + Math.tanh(root * (v + 0.044715 * v * v * v))); // GELU, by its usual approximation
    }
  }
  return linear(model, `${name}.shrink`, inner);
}

function linear({ tensors }: Model, name: string, x: Float32Array): Float32Array {
  return product(tensors.get(`${name}.weight`)!, x, tensors.get(`${name}.bias`));
}

/** Weighted sums. weight: (outputs, inputs). */
function product(weight: Float32Array, x: Float32Array, bias?: Float32Array): Float32Array {
  const [inputs, outputs] = [x.length, weight.length / x.length];
  const out = new Float32Array(outputs);
  let o = 0;
  // Four outputs at a time take half the time: the processor need not wait for one sum.
  for (; o + 3 < outputs; o += 4) {
    let a = 0;
    let b = 0;
    let c = 0;
    let d = 0;
    for (let i = 0, w = o * inputs; i < inputs; i++, w++) {
      const v = x[i];
      a += weight[w] * v;
      b += weight[w + inputs] * v;
      c += weight[w + 2 * inputs] * v;
      d += weight[w + 3 * inputs] * v;
    }
    out[o] = a;
    out[o + 1] = b;
    out[o + 2] = c;
    out[o + 3] = d;
  }
  for (; o < outputs; o++) {
    let sum = 0;
    for (let i = 0, w = o * inputs; i < inputs; i++, w++) sum += weight[w] * x[i];
    out[o] = sum;
  }
  if (bias) add(out, bias);
  return out;
}

/** The norm of the family; of each `width` numbers by themselves, all with the same gain. */
function norm({ family, shape, tensors }: Model, name: string, x: Float32Array, width = x.length): Float32Array {
  const [gain, bias] = [tensors.get(`${name}.gain`)!, tensors.get(`${name}.bias`)];
  const out = new Float32Array(x.length);
  for (let start = 0; start < x.length; start += width) {
    let [mean, squares] = [0, 0];
    if (family.norm === 'LayerNorm') for (let i = 0; i < width; i++) mean += x[start + i] / width;
    for (let i = 0; i < width; i++) squares += (x[start + i] - mean) ** 2;
    const scale = 1 / Math.sqrt(squares / width + shape.norm_epsilon);
    for (let i = 0; i < width; i++) out[start + i] = (x[start + i] - mean) * scale * gain[i] + (bias ? bias[i] : 0);
  }
  return out;
}

/** Rotary positions: channel i of a head turns with channel i + head_dim / 2, by an angle in float32 as in training. */
function rotate(heads: Float32Array, head_dim: number, at: number, base: number): void {
  const half = head_dim / 2;
  for (let i = 0; i < half; i++) {
    const angle = Math.fround(at * Math.fround(base ** -Math.fround((2 * i) / head_dim)));
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
    for (let start = i; start < heads.length; start += head_dim) {
      const [first, second] = [heads[start], heads[start + half]];
      heads[start] = first * cos - second * sin;
      heads[start + half] = second * cos + first * sin;
    }
  }
}

function add(x: Float32Array, more: Float32Array): void {
  for (let i = 0; i < x.length; i++) x[i] += more[i];
}
