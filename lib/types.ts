/// <reference lib="esnext.disposable" preserve="true" />
/** Option types that several operations share. */
import type { DeviceTensor } from './device-tensor';

/**
 * Where an operation runs. 'auto' is the device of the DeviceTensors in the call; plain arrays stay
 * on the CPU. 'cuda' is 'cuda:0'.
 */
export type Device = 'auto' | 'cpu' | 'cuda' | `cuda:${number}`;

/**
 * Order of the dimensions of query, key, value and output: (batch, heads, length, dim), or
 * (batch, length, heads, dim) as a projection writes it.
 */
export type TensorLayout = 'BHLD' | 'BLHD';

/** Options of every operation; `details` is added by the types of the operations. */
export interface CommonOptions {
  /**
   * Default 'auto': the device of the DeviceTensors in the call, the CPU for plain arrays. With
   * 'cuda' plain arrays are copied to the GPU and the results back; it fails with
   * ERR_CUDA_UNAVAILABLE where it cannot be had.
   */
  device?: Device | undefined;
  /**
   * 'bfloat16' rounds the floating-point inputs to bfloat16 (nearest, ties to even) and computes
   * with float32 accumulation. Default 'float32'.
   */
  precision?: 'float32' | 'bfloat16' | undefined;
  /**
   * What a NaN or an infinity in a row that is read does: fail with ERR_NON_FINITE and the index of
   * the first one ('error', the default), or reach exactly the rows that depend on it
   * ('propagate').
   */
  nonFinite?: 'error' | 'propagate' | undefined;
  /** Rejects the promise with the signal's reason. Asynchronous form only. */
  signal?: AbortSignal | undefined;
}

/** Options of the operations that return one Float32Array. */
export interface CallOptions extends CommonOptions {
  /**
   * Array to write the output to and to return: of the right length and overlapping no input. A
   * call that fails leaves it as it was, or filled with NaN when a synchronous call had begun to
   * write.
   */
  out?: Float32Array | undefined;
}

/** Sizes of an attention: of self-attention when `keyLength` is left out. */
export interface AttentionShape {
  /** B, ≥ 0 */
  batch: number;
  /** H, ≥ 1 */
  heads: number;
  /** L, ≥ 0 */
  queryLength: number;
  /** S, ≥ 0; default `queryLength` */
  keyLength?: number | undefined;
  /** D, ≥ 1: elements of a query or a key */
  headDim: number;
  /** E, ≥ 1: elements of a value; default `headDim` */
  valueDim?: number | undefined;
}

/** Options of every attention kind. Arrays are dense and in the order of `layout`. */
export interface AttentionOptions extends CallOptions {
  /** (B,H,L,D) */
  query: Float32Array;
  /** (B,H,S,D) */
  key: Float32Array;
  /** (B,H,S,E) */
  value: Float32Array;
  shape: AttentionShape;
  /** Of query, key, value and output. Default 'BHLD'. */
  layout?: TensorLayout | undefined;
  /** τ, multiplies the dot products. Default 1/√headDim; 0 is a value. */
  scale?: number | undefined;
  /** (B): how many leading queries are real; the others get output 0. Default all. */
  queryLengths?: Int32Array | undefined;
  /** (B): how many leading keys are real; the others are never read. Default all. */
  keyLengths?: Int32Array | undefined;
}

type TensorOf<Value> = Value extends Float32Array
  ? DeviceTensor<'float32' | 'bfloat16'>
  : Value extends Int32Array
    ? DeviceTensor<'int32'>
    : Value extends BigUint64Array
      ? DeviceTensor<'uint64'>
      : Value extends Float64Array
        ? DeviceTensor<'float64'>
        : never;

/**
 * The options of an operation with at least one DeviceTensor in place of an array, be it `out`: all
 * of them on one device; query, key, value, inputs, scores, a and b of one dtype, the other arrays
 * of floats 'float32'. Arrays that stay plain are copied to the device for the call; lengths always
 * are plain. `out` is a DeviceTensor too, undefined in content after a call that failed.
 */
export type OnDevice<Options> = {
  [Name in keyof Options]: Name extends 'lengths' | 'queryLengths' | 'keyLengths'
    ? Options[Name]
    : Name extends 'out'
      ? TensorOf<Options[Name]> | undefined
      : Options[Name] | TensorOf<Options[Name]>;
};

/** The result of an operation with DeviceTensors in place of arrays. */
export type DeviceResult<Result> = [TensorOf<Result>] extends [never]
  ? DeviceFields<Result>
  : TensorOf<Result>;

type DeviceFields<Result> = { [Name in keyof Result]: TensorOf<Result[Name]> };

/** The options of a synchronous form, which nothing can interrupt. */
export type SyncOptions<Options> = Omit<Options, 'signal'>;

/** Asks for an object with all that the operation knows, the array itself as `output`. */
export interface WithDetails {
  details: true;
}

/** Asks for the array alone, the default. */
export interface WithoutDetails {
  details?: false | undefined;
}

/** Leaves it to the run time whether details are wanted. */
export interface PerhapsDetails {
  details?: boolean | undefined;
}

/** The asynchronous form of an operation that always returns an object. */
export interface AsyncOperation<Options, Result> {
  (options: Options & PerhapsDetails): Promise<Result>;
  (options: OnDevice<Options> & PerhapsDetails): Promise<DeviceResult<Result>>;
}

/** The synchronous form of an operation that always returns an object. */
export interface SyncOperation<Options, Result> {
  (options: SyncOptions<Options> & PerhapsDetails): Result;
  (options: OnDevice<SyncOptions<Options>> & PerhapsDetails): DeviceResult<Result>;
}

/** The asynchronous form of an operation that returns its output alone, or with `details: true` more. */
export interface DetailedOperation<Options, Details extends { output: unknown }> {
  (options: Options & WithDetails): Promise<Details>;
  (options: Options & WithoutDetails): Promise<Details['output']>;
  (options: Options & PerhapsDetails): Promise<Details['output'] | Details>;
  (options: OnDevice<Options> & WithDetails): Promise<DeviceResult<Details>>;
  (options: OnDevice<Options> & WithoutDetails): Promise<DeviceResult<Details['output']>>;
  (
    options: OnDevice<Options> & PerhapsDetails,
  ): Promise<DeviceResult<Details['output']> | DeviceResult<Details>>;
}

/** The synchronous form of an operation that returns its output alone, or with `details: true` more. */
export interface DetailedOperationSync<Options, Details extends { output: unknown }> {
  (options: SyncOptions<Options> & WithDetails): Details;
  (options: SyncOptions<Options> & WithoutDetails): Details['output'];
  (options: SyncOptions<Options> & PerhapsDetails): Details['output'] | Details;
  (options: OnDevice<SyncOptions<Options>> & WithDetails): DeviceResult<Details>;
  (options: OnDevice<SyncOptions<Options>> & WithoutDetails): DeviceResult<Details['output']>;
  (
    options: OnDevice<SyncOptions<Options>> & PerhapsDetails,
  ): DeviceResult<Details['output']> | DeviceResult<Details>;
}

/** Options of the `backward` of the synchronous Vjp forms. */
export interface BackwardOptions<Name extends string> {
  /** The gradients that are wanted; the others cost nothing. Default all. */
  gradients?: readonly Name[] | undefined;
}

/** Options of the `backward` of the asynchronous Vjp forms. */
export interface AsyncBackwardOptions<Name extends string> extends BackwardOptions<Name> {
  /** Rejects the promise with the signal's reason. */
  signal?: AbortSignal | undefined;
}

/** What both Vjp forms have beside `backward`. */
export interface Disposable {
  /**
   * Frees the saved state; `backward` then fails with ERR_UNSUPPORTED. Calls in progress finish, a
   * second dispose does nothing. A state that is forgotten is freed by the garbage collector.
   */
  dispose(): void;
  /** The same, for `using`. */
  [Symbol.dispose](): void;
}

/** The result of a synchronous Vjp form: the value of the operation, and its gradients. */
export interface VjpSync<Gradients> extends Disposable {
  /** What the operation returns; the state keeps no reference to it. */
  output: Float32Array;
  /**
   * The gradients of Σ gradOutput·output, in shape and layout of the options whose names they bear.
   * May be called any number of times before dispose(). The state borrows the float arrays of the
   * call: they must still hold what they held then.
   *
   * @param gradOutput as many elements as `output`, in its layout
   * @throws ERR_INVALID_ARG_TYPE, ERR_SHAPE_MISMATCH for a wrong `gradOutput` or an input that was
   * detached or resized, ERR_OUT_OF_RANGE for an unknown name in `gradients`, ERR_NON_FINITE for a
   * NaN or an infinity in a row that is read, ERR_UNSUPPORTED after dispose(), ERR_OUT_OF_MEMORY
   */
  backward<Name extends keyof Gradients & string = keyof Gradients & string>(
    gradOutput: Float32Array,
    options?: BackwardOptions<Name>,
  ): Pick<Gradients, Name>;
}

/** What an asynchronous Vjp form resolves to: the value of the operation, and its gradients. */
export interface Vjp<Gradients> extends Disposable {
  /** What the operation returns; the state keeps no reference to it. */
  output: Float32Array;
  /**
   * As in {@link VjpSync}, on the thread pool. The state holds copies of the inputs, and
   * `gradOutput` is copied at the call: all of them may change or go away meanwhile.
   */
  backward<Name extends keyof Gradients & string = keyof Gradients & string>(
    gradOutput: Float32Array,
    options?: AsyncBackwardOptions<Name>,
  ): Promise<Pick<Gradients, Name>>;
}

/** The output or its gradient on a device. */
type DeviceFloats = DeviceTensor<'float32' | 'bfloat16'>;

/** What a synchronous Vjp form returns for DeviceTensors: its gradients are DeviceTensors too. */
export interface DeviceVjpSync<Gradients> extends Disposable {
  /** What the operation returns. */
  output: DeviceFloats;
  /**
   * As in {@link VjpSync}, on the device of the call; each gradient has the dtype of the option that
   * it belongs to. The state shares the memory of the tensors in the call, which may be disposed of,
   * but must not be written as the `out` of another call before dispose().
   *
   * @param gradOutput a tensor of the dtype of `output`, or an array, which is copied to the device
   */
  backward<Name extends keyof Gradients & string = keyof Gradients & string>(
    gradOutput: DeviceFloats | Float32Array,
    options?: BackwardOptions<Name>,
  ): DeviceFields<Pick<Gradients, Name>>;
}

/** What an asynchronous Vjp form resolves to for DeviceTensors. */
export interface DeviceVjp<Gradients> extends Disposable {
  /** What the operation returns. */
  output: DeviceFloats;
  /** As in {@link DeviceVjpSync}, off the main thread. */
  backward<Name extends keyof Gradients & string = keyof Gradients & string>(
    gradOutput: DeviceFloats | Float32Array,
    options?: AsyncBackwardOptions<Name>,
  ): Promise<DeviceFields<Pick<Gradients, Name>>>;
}

/** The asynchronous Vjp form of an operation; `details: true` adds what else it knows. */
export interface VjpOperation<Options, Details, Gradients> {
  (options: Options & WithDetails): Promise<Details & Vjp<Gradients>>;
  (options: Options & PerhapsDetails): Promise<Vjp<Gradients>>;
  (options: OnDevice<Options> & WithDetails): Promise<DeviceResult<Details> & DeviceVjp<Gradients>>;
  (options: OnDevice<Options> & PerhapsDetails): Promise<DeviceVjp<Gradients>>;
}

/** The synchronous Vjp form of an operation; `details: true` adds what else it knows. */
export interface VjpOperationSync<Options, Details, Gradients> {
  (options: SyncOptions<Options> & WithDetails): Details & VjpSync<Gradients>;
  (options: SyncOptions<Options> & PerhapsDetails): VjpSync<Gradients>;
  (
    options: OnDevice<SyncOptions<Options>> & WithDetails,
  ): DeviceResult<Details> & DeviceVjpSync<Gradients>;
  (options: OnDevice<SyncOptions<Options>> & PerhapsDetails): DeviceVjpSync<Gradients>;
}

/** Gradients of the inputs that all attention kinds share, in the layout of the call. */
export interface AttentionGradients {
  /** (B,H,L,D) */
  query: Float32Array;
  /** (B,H,S,D) */
  key: Float32Array;
  /** (B,H,S,E) */
  value: Float32Array;
}
