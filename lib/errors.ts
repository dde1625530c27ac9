/**
 * Every error of the package is made here: its class, its stable `code`, and a message that names
 * the argument, what was expected and what was received.
 */
import { types } from 'node:util';
import { CPU, deviceName } from './device-name';
import { kindOf, lengthOf } from './intrinsics';
import { memoryOf } from './tensor-memory';

/** The `code` of every error that this package raises. */
export type ErrorCode =
  | 'ERR_INVALID_ARG_TYPE'
  | 'ERR_OUT_OF_RANGE'
  | 'ERR_SHAPE_MISMATCH'
  | 'ERR_NON_FINITE'
  | 'ERR_UNSUPPORTED'
  | 'ERR_CUDA_UNAVAILABLE'
  | 'ERR_OUT_OF_MEMORY'
  | 'ERR_DEVICE_LOST'
  | 'ERR_BINDING_LOAD';

/** What an error of this package carries beside its message. */
export interface ClusterAttentionError extends Error {
  code: ErrorCode;
  /** The option at fault. */
  argument?: string;
  /** Flat index of the first bad element of that option. */
  index?: number;
}

const { isProxy } = types;

type ErrorClass = new (message: string, options?: ErrorOptions) => Error;

function make(
  Class: ErrorClass,
  code: ErrorCode,
  message: string,
  argument?: string,
  index?: number,
): ClusterAttentionError {
  const error = new Class(message) as ClusterAttentionError;
  define(error, 'code', code);
  if (argument !== undefined) define(error, 'argument', argument);
  if (index !== undefined) define(error, 'index', index);
  return error;
}

/** Not an assignment: that would ask the prototypes, and Object.prototype may be polluted. */
function define(error: Error, name: string, value: unknown): void {
  const attributes = { writable: true, enumerable: true, configurable: true };
  Object.defineProperty(error, name, {
    __proto__: null,
    value,
    ...attributes,
  } as PropertyDescriptor);
}

/** A value as an error message shows it. Runs none of the value's own code. */
export function describe(value: unknown): string {
  switch (typeof value) {
    case 'string':
      return JSON.stringify(value.length > 40 ? `${value.slice(0, 40)}…` : value);
    case 'number':
      return Object.is(value, -0) ? '-0' : String(value);
    case 'bigint': // millions of digits help nobody, and take a while
      return value === BigInt.asIntN(128, value) ? `${value}n` : 'a bigint past 128 bits';
    case 'function':
      return 'a function';
    case 'object':
      return value === null ? 'null' : (kindOfObject(value) ?? 'an object');
    default:
      return String(value);
  }
}

/** Objects that are taken for others, by what they are inside. */
const KINDS = [
  ['a Promise (not awaited)', types.isPromise],
  ['an ArrayBuffer', types.isArrayBuffer],
  ['a SharedArrayBuffer', types.isSharedArrayBuffer],
  ['a DataView', types.isDataView],
  ['a Map', types.isMap],
  ['a Set', types.isSet],
] as const;

/** What an object is that is more than its properties; undefined for all others. */
export function kindOfObject(value: object): string | undefined {
  const array = kindOf(value);
  if (array !== undefined) return `a ${array} of ${lengthOf(value)} elements`;
  if (memoryOf(value) !== undefined) return 'a DeviceTensor';
  if (isProxy(value)) return undefined; // to ask it more would run its traps
  if (Array.isArray(value)) return `an array of ${value.length} elements`;
  return KINDS.find(([, isKind]) => isKind(value))?.[0];
}

/** A value of the wrong kind. */
export function invalidType(argument: string, expected: string, received: unknown): Error {
  const message = `${argument} must be ${expected}, received ${describe(received)}`;
  return make(TypeError, 'ERR_INVALID_ARG_TYPE', message, argument);
}

/** An option that does not exist; those that do, if any of them is `similar`. */
export function unknownOption(
  argument: string,
  known: readonly string[],
  similar: readonly string[],
): Error {
  const expected =
    similar.length > 0
      ? `a known name, such as ${similar.join(' or ')}`
      : `one of ${known.join(', ')}`;
  const message = `unknown option ${argument}: expected ${expected}`;
  return make(TypeError, 'ERR_INVALID_ARG_TYPE', message, argument);
}

/** A value of the right kind that is not allowed; `index` when it is an element of an array. */
export function outOfRange(
  argument: string,
  expected: string,
  received: unknown,
  index?: number,
): Error {
  const place = index === undefined ? '' : ` at index ${index}`;
  const message = `${argument} must be ${expected}, received ${describe(received)}${place}`;
  return make(RangeError, 'ERR_OUT_OF_RANGE', message, argument, index);
}

/** Memory of `out` that the call reads too. */
export function overlapping(argument: string, input: string): Error {
  const message = `${argument} must be memory that overlaps no input, received some of ${input}`;
  return make(RangeError, 'ERR_OUT_OF_RANGE', message, argument);
}

/** Sizes whose product no array can hold. */
export function tooLarge(argument: string, sizes: string): Error {
  const message = `${argument} must have less than 2^53 elements, received ${sizes}`;
  return make(RangeError, 'ERR_OUT_OF_RANGE', message, argument);
}

/** An array whose length does not match the shape. */
export function shapeMismatch(argument: string, expected: string, received: string): Error {
  const message = `${argument} must be ${expected}, received ${received}`;
  return make(RangeError, 'ERR_SHAPE_MISMATCH', message, argument);
}

/** A combination that the package does not offer. */
export function unsupported(argument: string, message: string): Error {
  return make(Error, 'ERR_UNSUPPORTED', message, argument);
}

/** A use of something after its dispose(). */
export function disposed(method: string): Error {
  const message = `${method} must be called before dispose(), received a call after it`;
  return make(Error, 'ERR_UNSUPPORTED', message, method);
}

/** A DeviceTensor in a call after its dispose(). */
export function disposedTensor(argument: string): Error {
  const message = `${argument} must be a DeviceTensor in use, received one after its dispose()`;
  return make(Error, 'ERR_UNSUPPORTED', message, argument);
}

/** A DeviceTensor of the wrong dtype, or where there can be none. */
export function wrongTensor(argument: string, expected: string, received: string): Error {
  const message = `${argument} must be ${expected}, received ${received}`;
  return make(TypeError, 'ERR_INVALID_ARG_TYPE', message, argument);
}

/** An operation that the backend has no kernel for. */
function noKernel(name: string, device: number): Error {
  return unsupported(
    'device',
    `device must be 'auto' or 'cpu', with plain arrays, received '${deviceName(device)}': ` +
      `the CUDA backend has no kernel for ${name}`,
  );
}

export function outOfMemory(what: string): Error {
  return make(Error, 'ERR_OUT_OF_MEMORY', `out of memory for ${what}`);
}

export function bindingLoad(message: string, cause: unknown): Error {
  const error = make(Error, 'ERR_BINDING_LOAD', message);
  error.cause = cause;
  return error;
}

/** Why a native call failed (native/core/status.h). */
export interface Failure {
  status:
    | 'out_of_memory'
    | 'cancelled'
    | 'non_finite'
    | 'overflow'
    | 'out_of_range'
    | 'duplicate'
    | 'shape_mismatch'
    | 'unsupported'
    | 'cuda_unavailable'
    | 'device_lost';
  /** '' when no option is at fault. */
  argument: string;
  /** -1 when no element is at fault. */
  index: number;
}

/** Which call has failed. */
export interface FailedCall {
  /** Of the function that was called. */
  readonly name: string;
  /** Number of the CUDA device, or {@link CPU}. */
  readonly device: number;
  /** Whether it was to make or to read a DeviceTensor, which no CPU has. */
  readonly tensor?: boolean | undefined;
}

/** Which element is at fault: its value, unless it lies on a device. */
function placeOf(index: number | undefined, received: unknown): string {
  if (index === undefined) return '';
  return received === undefined
    ? `, received a DeviceTensor with another number at index ${index}`
    : `, received ${describe(received)} at index ${index}`;
}

/**
 * The error of a failed native call; `received` is the element of the request at fault, `limit` the
 * size that elements of an index array must stay below.
 */
export function errorOfFailure(
  failure: Failure,
  { name, device, tensor = false }: FailedCall,
  received?: unknown,
  limit?: number,
): Error {
  const argument = failure.argument || 'output';
  const index = failure.index < 0 ? undefined : failure.index;
  const place = placeOf(index, received);
  switch (failure.status) {
    case 'out_of_memory':
      return outOfMemory(
        device === CPU ? `the workspace of ${name}` : `${name} on ${deviceName(device)}`,
      );
    case 'cancelled':
      return new Error('the operation was cancelled'); // the caller has the signal's reason
    case 'non_finite':
      return make(
        RangeError,
        'ERR_NON_FINITE',
        `${argument} must be finite${place}`,
        argument,
        index,
      );
    case 'overflow':
      return make(
        RangeError,
        'ERR_NON_FINITE',
        `${argument} must be finite, received NaN or Infinity in it or on the way to it from finite ` +
          'inputs (the range of float32 ends at 3.4e38, that of logits in gradients at 65536)',
        argument,
        index,
      );
    case 'out_of_range':
      return make(
        RangeError,
        'ERR_OUT_OF_RANGE',
        limit === undefined
          ? `${argument} must lie inside the shape${place}`
          : `${argument} must be filled with integers from -1 to ${limit - 1}${place}`,
        argument,
        index,
      );
    case 'duplicate':
      return make(
        RangeError,
        'ERR_OUT_OF_RANGE',
        `${argument} must not list an entry twice${place}`,
        argument,
        index,
      );
    case 'shape_mismatch':
      return make(RangeError, 'ERR_SHAPE_MISMATCH', `${argument} does not fit the shape`, argument);
    case 'unsupported':
      return argument === 'device'
        ? noKernel(name, device)
        : unsupported(argument, `${argument} is not supported in this combination`);
    case 'cuda_unavailable':
      return make(
        Error,
        'ERR_CUDA_UNAVAILABLE',
        `device must be ${tensor ? 'one that can be had' : "'auto' or 'cpu'"}, ` +
          `received '${deviceName(device)}': ${argument}`,
        'device',
      );
    case 'device_lost':
      return make(
        Error,
        'ERR_DEVICE_LOST',
        `device must be one that works, received '${deviceName(device)}', which has failed ` +
          `(${argument}) and is lost to this process; the CPU still computes`,
        'device',
      );
  }
}
