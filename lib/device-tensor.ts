/// <reference lib="esnext.disposable" preserve="true" />
import { readSignal, throwIfAborted } from './abort';
import { allocate, type Axes, checkedArray, copyOf, elementCount } from './arrays';
import { readDevice } from './device';
import { deviceName } from './device-name';
import { allocateFor, free, memoryOf, shareWith } from './device-memory';
import {
  disposed,
  disposedTensor,
  invalidType,
  shapeMismatch,
  unsupported,
  wrongTensor,
} from './errors';
import * as intrinsics from './intrinsics';
import type { TypedArray, TypedArrayKind } from './intrinsics';
import { computeAsync, computeSync, type Settings } from './native-call';
import { asChoice, asInteger, isAbsent, readOwn } from './options';

/** How numbers are stored on a device. 'float64' is met in results only. */
export type DeviceDtype = 'float32' | 'bfloat16' | 'int32' | 'uint64' | 'float64';

/** The typed array that holds the numbers of a DeviceTensor in plain memory. */
export type HostArray<Dtype extends DeviceDtype> = {
  float32: Float32Array;
  bfloat16: Float32Array;
  int32: Int32Array;
  uint64: BigUint64Array;
  float64: Float64Array;
}[Dtype];

/** Options of {@link DeviceTensor.from}. */
export interface DeviceTensorOptions<Dtype extends DeviceDtype = DeviceDtype> {
  /** Sizes, outermost first; their product is the length of the array. Default `[length]`. */
  shape?: readonly number[] | undefined;
  /** Default 'cuda', which is 'cuda:0', as is 'auto'. */
  device?: 'auto' | 'cuda' | `cuda:${number}` | undefined;
  /**
   * 'float32' or 'bfloat16' (rounded to nearest, ties to even; half the memory) of a Float32Array,
   * 'int32' of an Int32Array, 'uint64' of a BigUint64Array. Default the one without a loss.
   */
  dtype?: Dtype | undefined;
}

/** Options of {@link DeviceTensor.toArray}. */
export interface ToArrayOptions {
  /** Rejects the promise with the signal's reason. */
  signal?: AbortSignal | undefined;
}

const KINDS = {
  float32: 'Float32Array',
  bfloat16: 'Float32Array',
  int32: 'Int32Array',
  uint64: 'BigUint64Array',
  float64: 'Float64Array',
} as const satisfies Readonly<Record<DeviceDtype, TypedArrayKind>>;

/** What each kind of typed array may become, the default first. */
const DTYPES: Readonly<Partial<Record<string, readonly DeviceDtype[]>>> = {
  Float32Array: ['float32', 'bfloat16'],
  Int32Array: ['int32'],
  BigUint64Array: ['uint64'],
};

/** New device memory of any content. */
export let newTensor: (
  device: number,
  dtype: DeviceDtype,
  shape: readonly number[],
) => DeviceTensor;

/** A tensor of its own over the same memory, which lives until both are disposed of. */
export let shareTensor: (tensor: DeviceTensor) => DeviceTensor;

/** The number of a tensor's device. */
export let deviceOf: (tensor: DeviceTensor) => number;

/** Who may construct. */
const OWN = Symbol('DeviceTensor');

/**
 * Numbers in the memory of a CUDA device. Every operation takes DeviceTensors in place of arrays,
 * computes on their device and returns DeviceTensors: nothing crosses the bus in between.
 *
 * Their memory is freed by `dispose()` (or `using`); of one that is forgotten, by the garbage
 * collector, which knows its size but may take its time. A call in progress keeps what it uses:
 * disposing meanwhile is safe. Each belongs to the thread (main or Worker) that made it.
 */
export class DeviceTensor<Dtype extends DeviceDtype = DeviceDtype> {
  readonly #dtype: Dtype;
  readonly #device: number;
  readonly #shape: readonly number[];
  readonly #length: number;

  /** Of this package alone; use {@link DeviceTensor.from}. */
  private constructor(
    own: symbol,
    device: number,
    dtype: Dtype,
    shape: readonly number[],
    shared?: DeviceTensor,
  ) {
    if (own !== OWN) {
      throw unsupported('DeviceTensor', 'a DeviceTensor must be made by DeviceTensor.from()');
    }
    this.#dtype = dtype;
    this.#device = device;
    this.#shape = Object.freeze(shape.slice());
    this.#length = elementCount('shape', asAxes(shape));
    if (shared === undefined) allocateFor(this, device, dtype, this.#length);
    else shareWith(this, shared);
  }

  /**
   * Copies an array to a device. Borrows the array until it returns.
   *
   * @throws ERR_INVALID_ARG_TYPE, ERR_OUT_OF_RANGE, ERR_SHAPE_MISMATCH for wrong arguments,
   * ERR_CUDA_UNAVAILABLE, ERR_OUT_OF_MEMORY, ERR_DEVICE_LOST
   */
  static from(
    array: Float32Array,
    options?: DeviceTensorOptions<'float32'>,
  ): DeviceTensor<'float32'>;
  static from(
    array: Float32Array,
    options: DeviceTensorOptions<'float32' | 'bfloat16'>,
  ): DeviceTensor<'float32' | 'bfloat16'>;
  static from(array: Int32Array, options?: DeviceTensorOptions<'int32'>): DeviceTensor<'int32'>;
  static from(
    array: BigUint64Array,
    options?: DeviceTensorOptions<'uint64'>,
  ): DeviceTensor<'uint64'>;
  static from(array: unknown, options?: unknown): DeviceTensor {
    const source = readSource(array, options);
    const tensor = newTensor(source.device, source.dtype, source.shape);
    const error = transferSync('upload', 'DeviceTensor.from', tensor, source.array);
    if (error === undefined) return tensor;
    tensor.dispose();
    throw error;
  }

  /**
   * The same off the main thread, start of the device included; copies the array at the call.
   *
   * @throws what {@link DeviceTensor.from} throws, by rejecting the promise
   */
  static fromAsync(
    array: Float32Array,
    options?: DeviceTensorOptions<'float32'>,
  ): Promise<DeviceTensor<'float32'>>;
  static fromAsync(
    array: Float32Array,
    options: DeviceTensorOptions<'float32' | 'bfloat16'>,
  ): Promise<DeviceTensor<'float32' | 'bfloat16'>>;
  static fromAsync(
    array: Int32Array,
    options?: DeviceTensorOptions<'int32'>,
  ): Promise<DeviceTensor<'int32'>>;
  static fromAsync(
    array: BigUint64Array,
    options?: DeviceTensorOptions<'uint64'>,
  ): Promise<DeviceTensor<'uint64'>>;
  static async fromAsync(array: unknown, options?: unknown): Promise<DeviceTensor> {
    const name = 'DeviceTensor.fromAsync';
    const source = readSource(array, options);
    const copy = copyOf('array', KINDS[source.dtype], source.array);
    const refused = await computeAsync('probe', settings(name, source.device), [], undefined);
    if (refused !== undefined) throw refused;
    const tensor = newTensor(source.device, source.dtype, source.shape);
    const error = await transferAsync('upload', name, tensor, copy, undefined);
    if (error === undefined) return tensor;
    tensor.dispose();
    throw error;
  }

  /** Sizes, outermost first. */
  get shape(): readonly number[] {
    return checkedThis(this).#shape;
  }

  /** Number of elements. */
  get length(): number {
    return checkedThis(this).#length;
  }

  get dtype(): Dtype {
    return checkedThis(this).#dtype;
  }

  /** 'cuda:0' and so on. */
  get device(): `cuda:${number}` {
    return deviceName(checkedThis(this).#device) as `cuda:${number}`;
  }

  /** Whether it was disposed of; shape, dtype and device are known all the same. */
  get disposed(): boolean {
    return memoryOf(checkedThis(this)) === 0;
  }

  /**
   * Copies the numbers to a new array, off the main thread. 'bfloat16' becomes float32.
   *
   * @throws ERR_UNSUPPORTED after dispose(), ERR_OUT_OF_MEMORY, ERR_DEVICE_LOST
   */
  async toArray(options?: ToArrayOptions): Promise<HostArray<Dtype>> {
    const tensor = checkedThis(this);
    const known = readOwn('options', options ?? {}, ['signal']);
    const signal = readSignal(known['signal']);
    throwIfAborted(signal);
    const array = tensor.#hostArray('toArray');
    const error = await transferAsync('download', 'toArray', this, array, signal);
    if (error !== undefined) throw error;
    return array;
  }

  /** {@link DeviceTensor.toArray} on the calling thread, which it blocks. */
  toArraySync(): HostArray<Dtype> {
    const array = checkedThis(this).#hostArray('toArraySync');
    const error = transferSync('download', 'toArraySync', this, array);
    if (error !== undefined) throw error;
    return array;
  }

  /**
   * Frees the memory, at once or when the calls in progress are done with it. Using the tensor
   * afterwards is an error; a second dispose does nothing.
   */
  dispose(): void {
    free(checkedThis(this));
  }

  /** The same, for `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  #hostArray(method: string): HostArray<Dtype> {
    if (this.disposed) throw disposed(method);
    const array: TypedArray = allocate(KINDS[this.#dtype], method, { length: this.#length });
    return array as HostArray<Dtype>;
  }

  static {
    newTensor = (device, dtype, shape) => new DeviceTensor(OWN, device, dtype, shape);
    shareTensor = (tensor) =>
      new DeviceTensor(OWN, tensor.#device, tensor.#dtype, tensor.#shape, tensor);
    deviceOf = (tensor) => tensor.#device;
  }
}

/** Whether it is one, whatever it claims; one that was disposed of too. */
export function isDeviceTensor(value: unknown): value is DeviceTensor {
  return memoryOf(value) !== undefined;
}

/** Methods can be called on anything. */
function checkedThis<Tensor extends DeviceTensor>(tensor: Tensor): Tensor {
  if (isDeviceTensor(tensor)) return tensor;
  throw invalidType('this', 'a DeviceTensor', tensor);
}

interface Source {
  readonly array: TypedArray;
  readonly device: number;
  readonly dtype: DeviceDtype;
  readonly shape: readonly number[];
}

function readSource(array: unknown, options: unknown): Source {
  const known = readOwn('options', options ?? {}, ['shape', 'device', 'dtype']);
  const device = readDevice(known['device'], { cpu: false }) ?? 0;
  const given = isAbsent(known['shape']) ? undefined : readShape(known['shape']);
  // From here on no code of the caller runs.
  const kind = intrinsics.kindOf(array);
  const dtypes = kind === undefined ? undefined : DTYPES[kind];
  if (dtypes === undefined) {
    throw invalidType('array', 'a Float32Array, Int32Array or BigUint64Array', array);
  }
  const dtype = readDtype(known['dtype'], dtypes);
  const shape = given ?? [intrinsics.lengthOf(array)];
  return { array: checkedArray('array', KINDS[dtype], array, asAxes(shape)), device, dtype, shape };
}

function asAxes(shape: readonly number[]): Axes {
  return Object.fromEntries(shape.map((size, i) => [`shape[${i}]`, size]));
}

function readShape(value: unknown): number[] {
  if (!Array.isArray(value)) throw invalidType('shape', 'an array of sizes', value);
  const sizes = Array.from(value as unknown[]);
  return sizes.map((size, i) => asInteger(`shape[${i}]`, size, 0, Number.MAX_SAFE_INTEGER));
}

function readDtype(value: unknown, dtypes: readonly DeviceDtype[]): DeviceDtype {
  if (isAbsent(value)) return dtypes[0]!;
  const choices = Object.fromEntries(dtypes.map((dtype, i) => [dtype, i]));
  return dtypes[asChoice('dtype', value, choices)]!;
}

// ---- transfers --------------------------------------------------------------------------------

function settings(name: string, device: number): Settings {
  return { name, nonFinite: 0, precision: 0, device, storage: 0, tensor: true };
}

function transferSync(
  direction: 'upload' | 'download',
  name: string,
  tensor: DeviceTensor,
  array: TypedArray,
): Error | undefined {
  return computeSync(direction, settings(name, deviceOf(tensor)), [{ memory: tensor, array }]);
}

function transferAsync(
  direction: 'upload' | 'download',
  name: string,
  tensor: DeviceTensor,
  array: TypedArray,
  signal: AbortSignal | undefined,
): Promise<Error | undefined> {
  const request = [{ memory: tensor, array }];
  return computeAsync(direction, settings(name, deviceOf(tensor)), request, signal);
}

/** A tensor in place of an array of `elements` numbers; disposed of or of another kind it fails. */
export function checkedTensor(
  argument: string,
  dtype: DeviceDtype,
  tensor: DeviceTensor,
  elements: number,
): DeviceTensor {
  if (tensor.disposed) throw disposedTensor(argument);
  if (tensor.dtype !== dtype) {
    throw wrongTensor(argument, `a DeviceTensor of ${dtype}`, `one of ${tensor.dtype}`);
  }
  if (tensor.length !== elements) {
    throw shapeMismatch(
      argument,
      `a DeviceTensor of ${elements} elements`,
      `${tensor.length} elements`,
    );
  }
  return tensor;
}
