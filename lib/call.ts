/**
 * One call of an operation: its options, read and checked, and its output. An operation asks for
 * what it needs by name; arrays come back as the native code may use them (a private copy when the
 * work is asynchronous or the memory is shared with other threads).
 */
import { readSignal } from './abort';
import { allocate, type Axes, checkedArray, copyOf, elementCount } from './arrays';
import { NonFinite, Precision } from './binding';
import {
  checkedTensor,
  DeviceTensor,
  isDeviceTensor,
  newTensor,
  shareTensor,
} from './device-tensor';
import { outOfRange, overlapping, shapeMismatch, unsupported, wrongTensor } from './errors';
import * as intrinsics from './intrinsics';
import type { TypedArray, TypedArrayKind, TypedArrays } from './intrinsics';
import * as options from './options';
import { isAbsent, type KnownNames, MAXIMUM_DIMENSION, type Values } from './options';
import { checkDevices, type Place, readPlace } from './place';

export type Form = 'sync' | 'async';

/** Arrays of a call: in plain memory, or on its device. */
export type Floats = Float32Array | DeviceTensor;
export type Integers = Int32Array | DeviceTensor;
export type Hashes = BigUint64Array | DeviceTensor;

export const CALL_OPTIONS = ['device', 'precision', 'nonFinite', 'signal', 'details'] as const;

const NOTHING: ReadonlySet<unknown> = new Set();

export class Call {
  /** Aborts the call; asynchronous form only. */
  readonly signal: AbortSignal | undefined;
  readonly nonFinite: number;
  readonly precision: number;
  /** Where it computes, and where its results belong. */
  readonly place: Place;
  /** Whether an object with all that the operation knows is wanted instead of the output alone. */
  readonly details: boolean;
  /** Whether gradients may be asked for later: what they read must be computed and kept. */
  readonly differentiable: boolean;

  readonly name: string;
  readonly #form: Form;
  readonly #values: Values;
  readonly #shape: Values;
  readonly #inputs = new Map<string, TypedArray>();
  /** The dimensions of the arrays that were read, by option. */
  readonly #axes = new Map<string, Axes>();
  /** Tensors of this call's own: results, and what stands for those of the caller. */
  readonly #tensors: DeviceTensor[] = [];
  #out: Floats | undefined;
  #output: Floats | undefined;
  #outputAxes: Axes = {};

  constructor(
    name: string,
    form: Form,
    source: unknown,
    known: KnownNames,
    { differentiable = false, place = undefined as Place | undefined } = {},
  ) {
    this.name = name;
    this.#form = form;
    this.differentiable = differentiable;
    this.#values = options.readOptions(source, known);
    this.#shape = known.shape
      ? options.readShape(this.#values['shape'], known.shape)
      : this.#values;
    this.signal = this.#readSignal(name);
    this.place = place ?? readPlace(this.#values);
    if (this.place.tensor !== undefined) checkDevices(this.place, this.#values);
    this.nonFinite = this.choice('nonFinite', NonFinite, NonFinite.error);
    this.precision = this.choice('precision', Precision, Precision.float32);
    this.details = this.flag('details', false);
  }

  #readSignal(name: string): AbortSignal | undefined {
    const signal = readSignal(this.#values['signal']);
    if (signal === undefined || this.#form === 'async') return signal;
    throw unsupported(
      'signal',
      `signal must be absent, received an AbortSignal: ${name} cannot be interrupted`,
    );
  }

  /** Number of the CUDA device that computes, or CPU. */
  get device(): number {
    return this.place.device;
  }

  /** How arrays of floats lie on the device. */
  get storage(): number {
    return this.place.storage;
  }

  has(name: string): boolean {
    return !isAbsent(this.#values[name]);
  }

  value(name: string): unknown {
    return this.#values[name];
  }

  /** Number of elements of an array option; 0 when it is absent or no array. */
  lengthOf(name: string): number {
    const value = this.#values[name];
    if (isDeviceTensor(value)) return value.length;
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

  floats(name: string, axes: Axes): Floats {
    return this.#take(name, 'Float32Array', axes) as Floats;
  }

  integers(name: string, axes: Axes): Integers {
    return this.#take(name, 'Int32Array', axes) as Integers;
  }

  hashes(name: string, axes: Axes): Hashes {
    return this.#take(name, 'BigUint64Array', axes) as Hashes;
  }

  optionalFloats(name: string, axes: Axes): Floats | undefined {
    return this.has(name) ? this.floats(name, axes) : undefined;
  }

  optionalIntegers(name: string, axes: Axes): Integers | undefined {
    return this.has(name) ? this.integers(name, axes) : undefined;
  }

  optionalHashes(name: string, axes: Axes): Hashes | undefined {
    return this.has(name) ? this.hashes(name, axes) : undefined;
  }

  /** How many leading rows are real: one number in [0, maximum] for each entry of `axes`. */
  lengths(name: string, axes: Axes, maximum: number): Int32Array | undefined {
    if (!this.has(name)) return undefined;
    if (isDeviceTensor(this.#values[name])) {
      throw wrongTensor(name, 'an Int32Array in plain memory', 'a DeviceTensor');
    }
    const lengths = this.integers(name, axes) as Int32Array;
    const count = intrinsics.lengthOf(lengths);
    for (let i = 0; i < count; ++i) {
      const length = lengths[i]!;
      if (length < 0 || length > maximum) {
        throw outOfRange(name, `filled with integers from 0 to ${maximum}`, length, i);
      }
    }
    return lengths;
  }

  #take(name: string, kind: TypedArrayKind, axes: Axes): TypedArray | DeviceTensor {
    const value = this.#values[name];
    this.#axes.set(name, axes);
    if (this.place.tensor !== undefined && isDeviceTensor(value)) {
      const dtype = this.place.dtypeOf(name, kind);
      return this.#use(checkedTensor(name, dtype, value, elementCount(name, axes)));
    }
    const array = checkedArray(name, kind, value, axes);
    this.#inputs.set(name, array);
    // A gradient may borrow numbers, but not what decides where it reads and writes.
    const kept = this.differentiable && kind !== 'Float32Array';
    if (this.#form === 'sync' && !kept && !intrinsics.isShared(array)) return array;
    return copyOf(name, kind, array, axes);
  }

  /** A gradient reads it later, when the caller may have disposed of it. */
  #use(tensor: DeviceTensor): DeviceTensor {
    if (!this.differentiable) return tensor;
    const own = shareTensor(tensor);
    this.#tensors.push(own);
    return own;
  }

  /** The dimensions of an array that was read. */
  axesOf(name: string): Axes | undefined {
    return this.#axes.get(name);
  }

  // ---- results ------------------------------------------------------------------------------

  /**
   * A result beside the output, where the results of this call belong, stored like the array
   * `like`. To be asked for after all inputs.
   */
  result<Kind extends TypedArrayKind>(
    kind: Kind,
    name: string,
    axes: Axes,
    like = name,
  ): TypedArrays[Kind] | DeviceTensor {
    if (this.place.tensor === undefined) return allocate(kind, name, axes);
    elementCount(name, axes);
    try {
      const tensor = newTensor(this.device, this.place.dtypeOf(like, kind), Object.values(axes));
      this.#tensors.push(tensor);
      return tensor;
    } catch (error) {
      this.discard();
      throw error;
    }
  }

  /**
   * The array that the native code writes: `out` itself, which it fills with NaN when it fails in
   * the middle, or a private one where the call must not write `out` before it has succeeded. To be
   * asked for after all inputs. `accumulate` says that the native code adds to what `out` holds.
   */
  output(axes: Axes, accumulate = false): Floats {
    this.#outputAxes = axes;
    const value = this.#values['out'];
    if (this.place.tensor !== undefined) return (this.#output = this.#outputTensor(value, axes));
    if (!isAbsent(value)) this.#out = this.#checkedOut(value, axes);
    const out = this.#out as Float32Array | undefined;
    const direct = out !== undefined && this.#form === 'sync' && !intrinsics.isShared(out);
    if (direct) return (this.#output = out);
    const output = allocate('Float32Array', 'output', axes);
    if (accumulate && out !== undefined) {
      // What the call adds to.
      intrinsics.copyInto(output, intrinsics.fixedView(out, 'Float32Array', output.length));
    }
    return (this.#output = output);
  }

  /** A DeviceTensor given as `out` is written when the kernels run, also by a call that fails. */
  #outputTensor(value: unknown, axes: Axes): DeviceTensor {
    if (isAbsent(value)) return this.result('Float32Array', 'output', axes) as DeviceTensor;
    if (!isDeviceTensor(value)) {
      throw wrongTensor(
        'out',
        `a DeviceTensor like ${this.place.tensor}`,
        'an array in plain memory',
      );
    }
    const dtype = this.place.dtypeOf('output', 'Float32Array');
    this.#out = checkedTensor('out', dtype, value, elementCount('out', axes));
    for (const name in this.#values) {
      if (name !== 'out' && this.#values[name] === value) {
        throw overlapping('out', name);
      }
    }
    return this.#use(value);
  }

  #checkedOut(value: unknown, axes: Axes): Float32Array {
    const out = checkedArray('out', 'Float32Array', value, axes) as Float32Array;
    for (const [name, input] of this.#inputs) {
      if (intrinsics.overlap(out, input)) throw overlapping('out', name);
    }
    return out;
  }

  /** Whether the caller's `out` is written by kernels: another call may use it only after them. */
  get writesOut(): boolean {
    return isDeviceTensor(this.#out);
  }

  /** The dimensions of the output. */
  get outputAxes(): Axes {
    return this.#outputAxes;
  }

  /** The output of a call that has succeeded. */
  deliver(): Floats {
    const output = this.#output!;
    const out = this.#out;
    if (out === undefined || out === output) return output;
    if (isDeviceTensor(out)) return out;
    if (intrinsics.lengthOf(out) !== output.length) {
      throw shapeMismatch(
        'out',
        `a Float32Array of ${output.length} elements until the call settles`,
        `${intrinsics.lengthOf(out)} elements: it was detached or resized meanwhile`,
      );
    }
    intrinsics.copyInto(out, output as Float32Array);
    return out;
  }

  /** Frees what is on the device for this call, after a failure all of it. */
  discard(kept: ReadonlySet<unknown> = NOTHING): void {
    for (const tensor of this.#tensors) if (!kept.has(tensor)) tensor.dispose();
  }
}
