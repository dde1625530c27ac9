/** Option types that several operations share. */

/** Where an operation runs. 'auto' takes a GPU when one can be used, otherwise the CPU. */
export type Device = 'auto' | 'cpu' | 'cuda' | `cuda:${number}`;

/**
 * Order of the dimensions of query, key, value and output: (batch, heads, length, dim), or
 * (batch, length, heads, dim) as a projection writes it.
 */
export type TensorLayout = 'BHLD' | 'BLHD';

/** Options of every operation. */
export interface CallOptions {
  /**
   * Default 'auto', which falls back to the CPU; 'cuda' fails with ERR_CUDA_UNAVAILABLE where it
   * cannot be had.
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
  /** Return an object with all that the operation knows, the array itself as `output`. */
  details?: boolean | undefined;
  /** Rejects the promise with the signal's reason. Asynchronous form only. */
  signal?: AbortSignal | undefined;
}

/** Options of the operations that return one Float32Array. */
export interface OutputOptions extends CallOptions {
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
export interface AttentionOptions extends OutputOptions {
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

/** The asynchronous form of an operation that returns more with `details: true`. */
export interface DetailedOperation<Options, Details> {
  (options: Options & { details: true }): Promise<Details>;
  (options: Options & { details?: false | undefined }): Promise<Float32Array>;
  (options: Options & { details?: boolean | undefined }): Promise<Float32Array | Details>;
}

/** The synchronous form of an operation that returns more with `details: true`. */
export interface DetailedOperationSync<Options, Details> {
  (options: Options & { details: true }): Details;
  (options: Options & { details?: false | undefined }): Float32Array;
  (options: Options & { details?: boolean | undefined }): Float32Array | Details;
}
