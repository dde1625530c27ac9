/**
 * One call of an operation: its options, read and checked, and its output. An operation asks for
 * what it needs by name; arrays come back as the native code may use them (a private copy when the
 * work is asynchronous or the memory is shared with other threads).
 */
import { NonFinite, Precision } from './binding';
import {
  cudaUnavailable,
  invalidType,
  outOfMemory,
  outOfRange,
  tooLarge,
  shapeMismatch,
  unsupported,
} from './errors';
import * as intrinsics from './intrinsics';
import type { TypedArray, TypedArrayKind, TypedArrays } from './intrinsics';
import * as options from './options';
import { isAbsent, MAXIMUM_DIMENSION, type Values } from './options';

export type Form = 'sync' | 'async';

/** The dimensions of an array, in order, with their names. */
export type Axes = Readonly<Record<string, number>>;

export const CALL_OPTIONS = ['device', 'precision', 'nonFinite', 'signal', 'details'] as const;

/** Why device: 'cuda' cannot be had. */
export const CUDA_REASON = 'this build has no CUDA backend';

/** Number of elements of an array with these dimensions. */
export function elementCount(argument: string, axes: Axes): number {
  let count = 1;
  let bound = 1; // zeros counted as ones: strides inside an empty batch must not overflow either
  for (const name of Object.keys(axes)) {
    const size = axes[name]!;
    count *= size;
    bound *= size > 0 ? size : 1;
  }
  if (bound > Number.MAX_SAFE_INTEGER) {
    throw tooLarge(argument, shapeText(axes));
  }
  return count;
}

function shapeText(axes: Axes): string {
  return `(${Object.keys(axes).join(', ')}) = (${Object.values(axes).join(', ')})`;
}

/** A new array of zeros. */
export function allocate<Kind extends TypedArrayKind>(
  kind: Kind,
  argument: string,
  axes: Axes,
): TypedArrays[Kind] {
  const count = elementCount(argument, axes);
  try {
    return intrinsics.create(kind, count);
  } catch {
    throw outOfMemory(`${argument}: a ${kind} of ${count} elements`);
  }
}

export class Call {
  /** Aborts the call; asynchronous form only. */
  readonly signal: AbortSignal | undefined;
  readonly nonFinite: number;
  readonly precision: number;
  /** Whether an object with all that the operation knows is wanted instead of the output alone. */
  readonly details: boolean;
  /** Whether gradients may be asked for later: what they read must be computed and kept. */
  readonly differentiable: boolean;

  readonly #form: Form;
  readonly #values: Values;
  readonly #shape: Values;
  readonly #inputs: TypedArray[] = [];
  #out: Float32Array | undefined;
  #output: Float32Array | undefined;
  #outputAxes: Axes = {};

  constructor(
    name: string,
    form: Form,
    source: unknown,
    known: KnownNames,
    differentiable = false,
  ) {
    this.#form = form;
    this.differentiable = differentiable;
    this.#values = options.readOwn('options', source, known.options);
    this.#shape = known.shape
      ? options.readOwn('shape', this.#values['shape'], known.shape)
      : this.#values;
    this.signal = this.#readSignal(name);
    this.#checkDevice();
    this.nonFinite = this.choice('nonFinite', NonFinite, NonFinite.error);
    this.precision = this.choice('precision', Precision, Precision.float32);
    this.details = this.flag('details', false);
  }

  #readSignal(name: string): AbortSignal | undefined {
    const signal = this.#values['signal'];
    if (isAbsent(signal)) return undefined;
    if (!(signal instanceof AbortSignal)) throw invalidType('signal', 'an AbortSignal', signal);
    if (this.#form === 'async') return signal;
    throw unsupported(
      'signal',
      `signal must be absent, received an AbortSignal: ${name} cannot be interrupted`,
    );
  }

  #checkDevice(): void {
    const device = this.#values['device'];
    if (isAbsent(device)) return;
    const expected = "'auto', 'cpu', 'cuda' or 'cuda:N'";
    if (typeof device !== 'string') throw invalidType('device', expected, device);
    if (device === 'auto' || device === 'cpu') return;
    if (!/^cuda(:\d{1,9})?$/.test(device)) throw outOfRange('device', expected, device);
    throw cudaUnavailable(`device must be 'auto' or 'cpu', received '${device}': ${CUDA_REASON}`);
  }

  has(name: string): boolean {
    return !isAbsent(this.#values[name]);
  }

  value(name: string): unknown {
    return this.#values[name];
  }

  /** Number of elements of an array option; 0 when it is absent or no typed array. */
  lengthOf(name: string): number {
    const value = this.#values[name];
    return intrinsics.kindOf(value) === undefined ? 0 : intrinsics.lengthOf(value);
  }

  // ---- scalars ------------------------------------------------------------------------------

  /** An integer option; required when there is no `fallback`. */
  integer(name: string, minimum: number, maximum: number, fallback?: number): number {
    const value = this.#values[name];
    if (isAbsent(value) && fallback !== undefined) return fallback;
    return options.asInteger(name, value, minimum, maximum);
  }

  /** A count of things that an Int32Array can index. */
  count(name: string, fallback?: number): number {
    return this.integer(name, 1, MAXIMUM_DIMENSION, fallback);
  }

  /** A number of steps. */
  iterations(name: string, fallback: number): number {
    return this.integer(name, 0, Number.MAX_SAFE_INTEGER, fallback);
  }

  seed(): number {
    return this.integer('seed', 0, Number.MAX_SAFE_INTEGER, 0);
  }

  real(name: string, fallback: number, minimum?: number): number {
    const value = this.#values[name];
    return isAbsent(value) ? fallback : options.asReal(name, value, minimum);
  }

  flag(name: string, fallback: boolean): boolean {
    const value = this.#values[name];
    return isAbsent(value) ? fallback : options.asFlag(name, value);
  }

  choice(name: string, choices: Readonly<Record<string, number>>, fallback: number): number {
    const value = this.#values[name];
    return isAbsent(value) ? fallback : options.asChoice(name, value, choices);
  }

  /** A size of `shape`; required when there is no `fallback`. */
  dimension(name: string, minimum: number, fallback?: number, maximum = MAXIMUM_DIMENSION): number {
    const value = this.#shape[name];
    if (isAbsent(value) && fallback !== undefined) return fallback;
    return options.asInteger(`shape.${name}`, value, minimum, maximum);
  }

  // ---- arrays -------------------------------------------------------------------------------

  floats(name: string, axes: Axes): Float32Array {
    return this.#take(name, 'Float32Array', axes) as Float32Array;
  }

  integers(name: string, axes: Axes): Int32Array {
    return this.#take(name, 'Int32Array', axes) as Int32Array;
  }

  hashes(name: string, axes: Axes): BigUint64Array {
    return this.#take(name, 'BigUint64Array', axes) as BigUint64Array;
  }

  optionalFloats(name: string, axes: Axes): Float32Array | undefined {
    return this.has(name) ? this.floats(name, axes) : undefined;
  }

  optionalIntegers(name: string, axes: Axes): Int32Array | undefined {
    return this.has(name) ? this.integers(name, axes) : undefined;
  }

  optionalHashes(name: string, axes: Axes): BigUint64Array | undefined {
    return this.has(name) ? this.hashes(name, axes) : undefined;
  }

  /** How many leading rows are real: one number in [0, maximum] for each entry of `axes`. */
  lengths(name: string, axes: Axes, maximum: number): Int32Array | undefined {
    const lengths = this.optionalIntegers(name, axes);
    if (lengths === undefined) return undefined;
    const count = intrinsics.lengthOf(lengths);
    for (let i = 0; i < count; ++i) {
      const length = lengths[i]!;
      if (length < 0 || length > maximum) {
        throw outOfRange(name, `filled with integers from 0 to ${maximum}`, length, i);
      }
    }
    return lengths;
  }

  #take(name: string, kind: TypedArrayKind, axes: Axes): TypedArray {
    const array = checkedArray(name, kind, this.#values[name], axes);
    this.#inputs.push(array);
    // A gradient may borrow numbers, but not what decides where it reads and writes.
    const kept = this.differentiable && kind !== 'Float32Array';
    if (this.#form === 'sync' && !kept && !intrinsics.isShared(array)) return array;
    const copy = allocate(kind, `a copy of ${name}`, axes);
    intrinsics.copyInto(copy, intrinsics.fixedView(array, kind, intrinsics.lengthOf(copy)));
    return copy;
  }

  // ---- output -------------------------------------------------------------------------------

  /**
   * The array that the native code writes: `out` itself, or a private one where the call must not
   * write `out` before it has succeeded. To be asked for after all inputs. `accumulate` says that
   * the native code adds to what `out` holds.
   */
  output(axes: Axes, accumulate = false): Float32Array {
    this.#outputAxes = axes;
    const value = this.#values['out'];
    if (!isAbsent(value)) this.#out = this.#checkedOut(value, axes);
    const direct =
      this.#out !== undefined && this.#form === 'sync' && !intrinsics.isShared(this.#out);
    if (direct) return (this.#output = this.#out!);
    this.#output = allocate('Float32Array', 'output', axes);
    if (accumulate) this.#keepContent(this.#output);
    return this.#output;
  }

  /** What the call adds to; without `out` there is nothing. */
  #keepContent(output: Float32Array): void {
    const out = this.#out;
    if (out === undefined) return;
    const length = intrinsics.lengthOf(output);
    intrinsics.copyInto(output, intrinsics.fixedView(out, 'Float32Array', length));
  }

  #checkedOut(value: unknown, axes: Axes): Float32Array {
    const out = checkedArray('out', 'Float32Array', value, axes) as Float32Array;
    if (this.#inputs.some((input) => intrinsics.overlap(out, input))) {
      throw outOfRange('out', 'memory that overlaps no input', out);
    }
    return out;
  }

  /** The dimensions of the output. */
  get outputAxes(): Axes {
    return this.#outputAxes;
  }

  /** The output of a call that has succeeded. */
  deliver(): Float32Array {
    const output = this.#output!;
    const out = this.#out;
    if (out === undefined || out === output) return output;
    if (intrinsics.lengthOf(out) !== intrinsics.lengthOf(output)) {
      throw shapeMismatch(
        'out',
        `a Float32Array of ${output.length} elements until the call settles`,
        `${intrinsics.lengthOf(out)} elements: it was detached or resized meanwhile`,
      );
    }
    intrinsics.copyInto(out, output);
    return out;
  }

  /** After a failure: what was written must not look like a result. */
  spoil(): void {
    if (this.#out !== undefined && this.#out === this.#output) intrinsics.fill(this.#out, NaN);
  }
}

/** The option names of an operation, and the dimensions of its `shape`. */
export interface KnownNames {
  readonly options: readonly string[];
  readonly shape?: readonly string[];
}

function checkedArray(
  argument: string,
  kind: TypedArrayKind,
  value: unknown,
  axes: Axes,
): TypedArray {
  const count = elementCount(argument, axes);
  const received = intrinsics.kindOf(value);
  const matches =
    received === kind &&
    intrinsics.lengthOf(value) === count &&
    (count > 0 || !intrinsics.isDetached(value as TypedArray));
  if (matches) return value as TypedArray;

  const article = kind === 'Int32Array' ? 'an' : 'a';
  const expected = `${article} ${kind} of ${count} elements, ${shapeText(axes)}`;
  if (received !== kind) throw invalidType(argument, expected, value);
  if (intrinsics.isDetached(value as TypedArray)) {
    throw shapeMismatch(argument, expected, `a detached ${kind}`);
  }
  throw shapeMismatch(argument, expected, `${intrinsics.lengthOf(value)} elements`);
}
