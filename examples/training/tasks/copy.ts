/**
 * The masked copy task (Vyas et al. 2020, section 4.1): a sequence is 0 w 0 w with random symbols w;
 * some are hidden, never both copies of one, and are to be restored from the other copy.
 */
import type { Batch, Question } from '../model';
import type { Random } from '../random';

const SYMBOLS = 10;
const SEPARATOR = 0;
const HIDDEN = SYMBOLS + 1;
const HIDDEN_SHARE = 0.2;

/** `length` is of the whole sequence; even. */
export function copyQuestion(length: number): Question {
  return { vocabulary: SYMBOLS + 2, classes: SYMBOLS + 1, length, perToken: true };
}

export function copyBatch(count: number, length: number, random: Random): Batch {
  const half = length / 2;
  const tokens = new Int32Array(count * length);
  const targets = new Int32Array(count * length).fill(-1);
  for (let b = 0; b < count; ++b) {
    const first = b * length;
    tokens[first] = tokens[first + half] = SEPARATOR;
    for (let i = 1; i < half; ++i) {
      const symbol = 1 + random.below(SYMBOLS);
      tokens[first + i] = tokens[first + half + i] = symbol;
      const which = random.uniform();
      if (which >= 2 * HIDDEN_SHARE) continue;
      const hidden = first + i + (which < HIDDEN_SHARE ? 0 : half);
      tokens[hidden] = HIDDEN;
      targets[hidden] = symbol;
    }
  }
  return { tokens, targets };
}
