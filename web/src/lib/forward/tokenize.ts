/** The run's own tokenization, from its plain data (vitrine/text/portable.py): characters, bytes, or byte-level BPE. */

/** As `PortableTokenizer` there. */
export interface Tokenizer {
  kind: 'char' | 'bytes';
  tokens: string[];
  special: number[];
  merges: [string, string][];
  words: boolean;
  prefix: boolean;
  unknown: number | null;
  start: number;
  end: number | null;
}

/** A prompt that cannot be read, in a sentence. */
export class PromptError extends Error {
  override name = 'PromptError';
}

// How GPT-2 splits a text; its \s is white space as Unicode has it, which JavaScript's is not.
const WORDS =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

/** The ids of a prompt; an empty one has what stands for it. */
export function encode(tokenizer: Tokenizer, text: string): number[] {
  if (/\p{Surrogate}/u.test(text))
    throw new PromptError('The prompt holds half of a character, a surrogate. Give it as valid Unicode.');
  const special = new Set(tokenizer.special);
  const known = new Map(tokenizer.tokens.map((token, id) => [token, special.has(id) ? undefined : id]));
  const unknown = new Set<string>();
  const idOf = (token: string, said = token): number => {
    const id = known.get(token) ?? tokenizer.unknown;
    if (id === null) unknown.add(said);
    return id ?? 0;
  };
  let ids: number[];
  if (tokenizer.kind === 'char') ids = Array.from(text, (character) => idOf(character));
  else {
    for (const character of new Set(text)) for (const letter of spelt(character)) idOf(letter, character);
    const whole = tokenizer.prefix && text && !text.startsWith(' ') ? ` ${text}` : text;
    const merge = merger(tokenizer.merges);
    const words = tokenizer.words ? (whole.match(WORDS) ?? []) : [whole];
    ids = unknown.size ? [] : words.flatMap((word) => merge([...spelt(word)]).map((token) => idOf(token)));
  }
  if (unknown.size) {
    const named = [...unknown].slice(0, 5).map((c) => `'${c}' (U+${hexOf(c)})`);
    throw new PromptError(
      `The model has never seen ${named.join(', ')}${unknown.size > 5 ? ` and ${unknown.size - 5} more` : ''}: its tokens are only those of its corpus. Leave that out.`,
    );
  }
  return ids.length ? ids : [tokenizer.start];
}

/** The text of ids as they come: a character of several tokens comes with the last of them. */
export class Decoder {
  private readonly bytes = new TextDecoder('utf-8', { ignoreBOM: true });

  constructor(private readonly tokenizer: Tokenizer) {}

  add(id: number): string {
    const token = this.tokenizer.tokens[id];
    if (this.tokenizer.kind === 'char') return token;
    const bytes = Array.from(token, (letter) => BYTES.get(letter));
    const whole = bytes.includes(undefined) ? new TextEncoder().encode(token) : Uint8Array.from(bytes as number[]);
    return this.bytes.decode(whole, { stream: true });
  }

  /** No token follows: what is left of half a character. */
  end(): string {
    return this.tokenizer.kind === 'char' ? '' : this.bytes.decode();
  }
}

/** The letter that stands for each byte: itself where it can be printed, else the next of those from U+0100. */
const LETTERS: string[] = [];
for (let byte = 0, next = 256; byte < 256; byte++) {
  const printable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  LETTERS.push(String.fromCharCode(printable ? byte : next++));
}
const BYTES = new Map(LETTERS.map((letter, byte) => [letter, byte]));

const spelt = (text: string): string => Array.from(new TextEncoder().encode(text), (byte) => LETTERS[byte]).join('');

const hexOf = (character: string): string => character.codePointAt(0)!.toString(16).toUpperCase().padStart(4, '0');

/** Byte-pair encoding of one word: of its neighbours, the pair that was learned first is merged, until none is left. */
function merger(merges: [string, string][]): (letters: string[]) => string[] {
  const ranks = new Map(merges.map(([left, right], rank) => [`${left} ${right}`, rank]));
  return (letters) => {
    const parts = [...letters];
    for (;;) {
      let [best, place] = [Infinity, 0];
      for (let i = 1; i < parts.length; i++) {
        const rank = ranks.get(`${parts[i - 1]} ${parts[i]}`) ?? Infinity;
        if (rank < best) [best, place] = [rank, i];
      }
      if (best === Infinity) return parts;
      parts.splice(place - 1, 2, parts[place - 1] + parts[place]);
    }
  };
}
