/**
 * ListOps (Nangia, Bowman 2018) as in the Long Range Arena: nested lists of digits under MAX, MIN,
 * MED and SUM_MOD (the sum modulo 10), written as tokens; the value of the whole, a digit, is asked.
 */
import type { Batch, Question } from '../model';
import type { Random } from '../random';

const DIGITS = 10;
const OPERATORS: readonly ((values: readonly number[]) => number)[] = [
  (values) => Math.max(...values),
  (values) => Math.min(...values),
  (values) => median(values),
  (values) => values.reduce((sum, value) => sum + value, 0) % DIGITS,
];
const CLOSE = DIGITS + OPERATORS.length;
const PADDING = CLOSE + 1;
const DEEPEST = 10;
const MOST_ARGUMENTS = 10;
const NESTED_SHARE = 0.25;

/** Of an even number the mean of the middle two, rounded down. */
function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  if (Number.isInteger(middle)) return Math.floor((sorted[middle - 1]! + sorted[middle]!) / 2);
  return sorted[Math.floor(middle)]!;
}

export interface Expression {
  readonly tokens: number[];
  readonly value: number;
}

/** A list of at most `room` tokens; undefined when the one that was drawn is longer. */
function list(depth: number, room: number, random: Random): Expression | undefined {
  const operator = random.below(OPERATORS.length);
  const count = 2 + random.below(MOST_ARGUMENTS - 1);
  const tokens = [DIGITS + operator];
  const values: number[] = [];
  for (let i = 0; i < count; ++i) {
    const left = room - tokens.length - (count - i); // the parts to come and the bracket
    if (depth < DEEPEST && random.uniform() < NESTED_SHARE) {
      const part = list(depth + 1, left, random);
      if (part === undefined) return undefined;
      tokens.push(...part.tokens);
      values.push(part.value);
    } else {
      if (left < 1) return undefined;
      const value = random.below(DIGITS);
      tokens.push(value);
      values.push(value);
    }
  }
  tokens.push(CLOSE);
  return { tokens, value: OPERATORS[operator]!(values) };
}

/** An expression of at least a quarter of `length` tokens and at most all of them. */
export function listOpsExpression(length: number, random: Random): Expression {
  for (;;) {
    const expression = list(1, length, random);
    if (expression !== undefined && expression.tokens.length >= length / 4) return expression;
  }
}

export function listOpsQuestion(length: number): Question {
  return { vocabulary: PADDING + 1, classes: DIGITS, length, perToken: false };
}

export function listOpsBatch(count: number, length: number, random: Random): Batch {
  const tokens = new Int32Array(count * length).fill(PADDING);
  const targets = new Int32Array(count);
  const lengths = new Int32Array(count);
  for (let b = 0; b < count; ++b) {
    const expression = listOpsExpression(length, random);
    tokens.set(expression.tokens, b * length);
    targets[b] = expression.value;
    lengths[b] = expression.tokens.length;
  }
  return { tokens, targets, lengths };
}
