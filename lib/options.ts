/**
 * Reads the options object of a call. Only own properties count, each is read exactly once, and
 * all are read before anything else happens: a getter can still change an array, but only before
 * the array is looked at.
 */
import { invalidType, kindOfObject, outOfRange, unknownOption, unsupported } from './errors';

/** Own properties by name; no prototype, so that a name that is absent is undefined. */
export type Values = Readonly<Record<string, unknown>>;

/** Labels, indices and lengths are int32: no dimension that they count may be larger. */
export const MAXIMUM_DIMENSION = 2 ** 31 - 1;

const { create, getOwnPropertyNames, hasOwn } = Object;
const { isSafeInteger, isFinite } = Number;

/** The option names of an operation, and the dimensions of its `shape`. */
export interface KnownNames {
  readonly options: readonly string[];
  readonly shape?: readonly string[];
}

/** The names that any operation knows. */
const everyName = new Set<string>();

/** Options that mask, order, weight, place or add data: passing them over would change the result. */
const MEANINGFUL: ReadonlySet<string> = new Set([
  'accumulate',
  'causal',
  'hashBias',
  'indices',
  'initial',
  'keyLengths',
  'labels',
  'layout',
  'lengths',
  'neighbors',
  'out',
  'planes',
  'queryLengths',
  'scale',
  'weights',
]);

/** Names of one thing: whoever gives one to an operation that has the other means that. */
const SAME_THING: readonly (readonly string[])[] = [
  ['iterations', 'steps'],
  ['k', 'topK'],
  ['metric', 'similarity'],
];

/** Says that an operation has these names. */
export function declareNames({ options, shape = [] }: KnownNames): void {
  for (const name of [...options, ...shape]) everyName.add(name);
}

/**
 * The options of an operation. Names that only other operations know are passed over, so that one
 * options object can serve several, unless they would change the result.
 */
export function readOptions(source: unknown, known: KnownNames): Values {
  return readOwn('options', source, known.options, (name) => faultOf(name, known));
}

/** The option `shape`; dimensions that only other operations know are passed over. */
export function readShape(source: unknown, known: readonly string[]): Values {
  return readOwn('shape', source, known, (name) => faultOf(name, { options: known }));
}

/** Why an operation must not pass over an option that it does not have; undefined when it may. */
function faultOf(name: string, { options, shape = [] }: KnownNames): string | undefined {
  if (shape.includes(name)) return 'the operation has it in shape';
  const names: readonly string[] = SAME_THING.find((pair) => pair.includes(name)) ?? [];
  const other = names.find((one) => options.includes(one));
  if (other !== undefined) return `the operation has ${other} instead`;
  return MEANINGFUL.has(name) ? 'the operation has no such option' : undefined;
}

/**
 * Copies the own properties of `source` whose names are `known`. Any other name is an error, most
 * likely a misspelling; with `fault`, one that some operation knows is an error only for the reason
 * that this gives.
 */
export function readOwn(
  argument: string,
  source: unknown,
  known: readonly string[],
  fault?: (name: string) => string | undefined,
): Values {
  if (typeof source !== 'object' || source === null || kindOfObject(source) !== undefined) {
    throw invalidType(argument, 'an object', source);
  }
  const values = create(null) as Record<string, unknown>;
  for (const name of getOwnPropertyNames(source)) {
    if (known.includes(name)) {
      values[name] = (source as Values)[name];
      continue;
    }
    if (fault === undefined || !everyName.has(name)) throw unknownName(argument, name, known);
    const reason = fault(name);
    if (reason !== undefined) refuse(name, (source as Values)[name], reason);
  }
  return values;
}

/** An option that the operation does not have, given a value that says something. */
function refuse(name: string, value: unknown, reason: string): void {
  if (isAbsent(value) || value === false) return;
  throw unsupported(name, `${name} must be absent: ${reason}`);
}

function unknownName(argument: string, name: string, known: readonly string[]): Error {
  const path = argument === 'options' ? name : `${argument}.${name}`;
  return unknownOption(path, known, similarNames(name.slice(0, 64), known));
}

/** The known names that may be meant: few letters away or with a word in common, nearest first. */
function similarNames(name: string, known: readonly string[]): string[] {
  const lower = name.toLowerCase();
  const beginnings = wordsOf(name).map((word) => word.slice(0, 3)); // len is length, cols columns
  const sharesWord = (candidate: string): boolean =>
    wordsOf(candidate).some((word) => beginnings.some((beginning) => word.startsWith(beginning)));
  return known
    .map((candidate) => ({ candidate, distance: editDistance(lower, candidate.toLowerCase()) }))
    .filter(({ candidate, distance }) => distance <= lower.length / 3 || sharesWord(candidate))
    .toSorted((a, b) => a.distance - b.distance)
    .map(({ candidate }) => candidate)
    .slice(0, 3);
}

/** The words of a name; what others call a mask is a number of real rows here. */
function wordsOf(name: string): string[] {
  const words = name.split(/(?=[A-Z])|_/).filter((word) => word !== '');
  return words.map((word) => word.toLowerCase().replace('mask', 'lengths'));
}

/** Levenshtein distance, one row at a time. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; ++i) {
    const next = [i];
    for (let j = 1; j <= b.length; ++j) {
      const substitute = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(substitute, row[j]! + 1, next[j - 1]! + 1));
    }
    row = next;
  }
  return row[b.length]!;
}

/** null and undefined both mean that an option was not given. */
export function isAbsent(value: unknown): value is null | undefined {
  return value === undefined || value === null;
}

export function asInteger(
  argument: string,
  value: unknown,
  minimum: number,
  maximum: number,
): number {
  if (typeof value !== 'number') throw invalidType(argument, integerText(minimum, maximum), value);
  if (!isSafeInteger(value) || value < minimum || value > maximum) {
    throw outOfRange(argument, integerText(minimum, maximum), value);
  }
  return value + 0; // -0 becomes 0
}

function integerText(minimum: number, maximum: number): string {
  return maximum === Number.MAX_SAFE_INTEGER
    ? `a safe integer ≥ ${minimum}`
    : `an integer from ${minimum} to ${maximum}`;
}

/** A number that is finite as a float32. */
export function asReal(argument: string, value: unknown, minimum = -Infinity): number {
  const expected = minimum === -Infinity ? 'a finite number' : `a finite number ≥ ${minimum}`;
  if (typeof value !== 'number') throw invalidType(argument, expected, value);
  if (!isFinite(Math.fround(value)) || value < minimum) {
    throw outOfRange(argument, `${expected} in the range of float32`, value);
  }
  return value;
}

export function asFlag(argument: string, value: unknown): boolean {
  if (typeof value !== 'boolean') throw invalidType(argument, 'a boolean', value);
  return value;
}

/** The number that stands for the name `value`. */
export function asChoice(
  argument: string,
  value: unknown,
  choices: Readonly<Record<string, number>>,
): number {
  if (typeof value === 'string' && hasOwn(choices, value)) return choices[value]!;
  const names = Object.keys(choices).map((name) => `'${name}'`);
  const expected = names.length === 1 ? names[0]! : `one of ${names.join(', ')}`;
  throw typeof value === 'string'
    ? outOfRange(argument, expected, value)
    : invalidType(argument, expected, value);
}
