/** Sentences that the server wrote: their numbers, in its digits, say what they are; names with a digit are text. */

import type { Piece } from './figure';

const WORD = /\S*\d\S*/g;
const PARTS = /^([^\p{L}\p{N}.+−-]*)(.*?)([^\p{L}\p{N}%]*)$/u; // a word, and the punctuation around it
const NUMBER = /^[+−-]?\d+(,\d{3})*(\.\d+)?(e[+-]?\d+)?%?$/;

/** of: whose sentence it is. from: where its numbers come from, if not from the health check. */
export function told(sentence: string, of: string, from?: string): Piece[] {
  const pieces: Piece[] = [];
  let [end, numbers] = [0, 0];
  for (const { 0: word, index } of sentence.matchAll(WORD)) {
    const [, before, text] = PARTS.exec(word)!;
    const start = index + before!.length;
    pieces.push(
      sentence.slice(end, start),
      NUMBER.test(text!)
        ? { what: 'told', value: valueOf(text!), text: text!, of: `${of}, number ${++numbers}`, from }
        : { text: text! },
    );
    end = start + text!.length;
  }
  return [...pieces, sentence.slice(end)].filter((piece) => piece !== '');
}

function valueOf(text: string): number {
  const number = Number(text.replaceAll(',', '').replace('−', '-').replace('%', ''));
  return text.endsWith('%') ? number / 100 : number;
}
