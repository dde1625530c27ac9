/** One call of the native code: its request, and the error that its outcome stands for. */
import { abortable } from './abort';
import { binding, type NativeOperation, type Request } from './binding';
import { CPU } from './device-name';
import { memoryOf } from './device-memory';
import { errorOfFailure, type FailedCall, type Failure } from './errors';
import { kindOf } from './intrinsics';

/** What every native request has beside its problem. */
export interface Settings extends FailedCall {
  readonly nonFinite: number;
  readonly precision: number;
  /** How arrays of floats lie on the device (`Storage`). */
  readonly storage: number;
}

/** The error of a native operation on the calling thread, undefined when it has succeeded. */
export function computeSync(
  native: NativeOperation,
  settings: Settings,
  parts: readonly object[],
): Error | undefined {
  const request = complete(parts, settings, undefined);
  const failure = binding[native](request);
  return failure && errorOf(failure, request, settings);
}

/**
 * The same on another thread; rejects with the signal's reason when that comes first: at once, or
 * `whenDone` with what it writes.
 */
export async function computeAsync(
  native: NativeOperation,
  settings: Settings,
  parts: readonly object[],
  signal: AbortSignal | undefined,
  whenDone = false,
): Promise<Error | undefined> {
  const abort = new Int32Array(1);
  const request = complete(parts, settings, abort);
  const pending = binding[`${native}Async`](request);
  const failure = await (signal ? abortable(pending, signal, abort, whenDone) : pending);
  return failure && errorOf(failure, request, settings);
}

/**
 * The request with what every call has beside its problem. It has no prototype: an option that is
 * absent must not be found on a polluted Object.prototype.
 */
function complete(
  parts: readonly object[],
  { nonFinite, precision, device, storage }: Settings,
  abort: Int32Array | undefined,
): Request {
  const shared = { nonFinite, precision, device, storage, abort };
  const request = Object.assign(Object.create(null), shared, ...parts) as Record<string, unknown>;
  if (device !== CPU) nameMemory(request);
  return request;
}

/** To the native code a DeviceTensor is the number of its memory. */
function nameMemory(request: Record<string, unknown>): void {
  for (const name of Object.keys(request)) {
    const memory = memoryOf(request[name]);
    if (memory !== undefined) request[name] = memory;
  }
}

function errorOf(failure: Failure, request: Request, settings: Settings): Error {
  const { argument, index } = failure;
  const array = request[argument] as ArrayLike<unknown> | undefined;
  const received = kindOf(array) === undefined ? undefined : array![index];
  return errorOfFailure(failure, settings, received, limitOf(argument, request));
}

/** What the elements of an index array count: clusters for labels, else the keys or inputs. */
function limitOf(argument: string, request: Request): number | undefined {
  const { clusters, keyLength, length } = request as Record<string, number | undefined>;
  return argument === 'labels' ? clusters : (keyLength ?? length);
}
