/**
 * Makes both forms of an operation from one description: `prepare` reads the options, checks them
 * and allocates the results; what follows is the same for all operations.
 */
import { abortable } from './abort';
import { binding, type NativeOperation, type Request } from './binding';
import { Call, type KnownNames } from './call';
import { errorOfFailure, type Failure } from './errors';
import { declareNames } from './options';

/** A call that is ready to run. */
export interface Prepared {
  /** What the native code reads and writes, in parts. */
  readonly request: readonly object[];
  /** The value of a call that has succeeded. */
  result(): unknown;
}

export interface Operation extends KnownNames {
  readonly name: string;
  readonly native: NativeOperation;
  prepare(call: Call): Prepared;
}

/** What every native request has beside its problem. */
export type Settings = Pick<Call, 'nonFinite' | 'precision'>;

/** The form that computes on the calling thread. */
export function synchronous<Callable>(operation: Operation): Callable {
  declareNames([...operation.options, ...(operation.shape ?? [])]);
  const name = `${operation.name}Sync`;
  return named(name, (options: unknown): unknown => {
    const call = new Call(name, 'sync', options, operation);
    const prepared = operation.prepare(call);
    runSync(operation, call, prepared);
    return deliver(call, prepared);
  });
}

/** The form that computes on the thread pool. It never throws: bad arguments reject the promise. */
export function asynchronous<Callable>(operation: Operation): Callable {
  const { name } = operation;
  return named(name, async (options: unknown): Promise<unknown> => {
    const call = new Call(name, 'async', options, operation);
    call.signal?.throwIfAborted();
    const prepared = operation.prepare(call);
    await runAsync(operation, call, prepared);
    return deliver(call, prepared);
  });
}

export function named<Callable>(
  name: string,
  implementation: (options: unknown) => unknown,
): Callable {
  Object.defineProperty(implementation, 'name', { value: name });
  return implementation as Callable;
}

/** Runs a prepared call on the calling thread. */
export function runSync({ native }: Operation, call: Call, { request }: Prepared): void {
  const error = computeSync(native, call, request);
  if (error === undefined) return;
  call.spoil();
  throw error;
}

/** Runs a prepared call on the thread pool. */
export async function runAsync(
  { native }: Operation,
  call: Call,
  { request }: Prepared,
): Promise<void> {
  const error = await computeAsync(native, call, request, call.signal);
  if (error !== undefined) throw error;
}

/** The error of a native operation on the calling thread, undefined when it has succeeded. */
export function computeSync(
  native: NativeOperation,
  settings: Settings,
  parts: readonly object[],
): Error | undefined {
  const request = complete(parts, settings, undefined);
  const failure = binding[native](request);
  return failure && errorOf(failure, request);
}

/** The same on the thread pool; rejects with the signal's reason when that comes first. */
export async function computeAsync(
  native: NativeOperation,
  settings: Settings,
  parts: readonly object[],
  signal: AbortSignal | undefined,
): Promise<Error | undefined> {
  const abort = new Int32Array(1);
  const request = complete(parts, settings, abort);
  const pending = binding[`${native}Async`](request);
  const failure = await (signal ? abortable(pending, signal, abort) : pending);
  return failure && errorOf(failure, request);
}

/**
 * The request with what every call has beside its problem. It has no prototype: an option that is
 * absent must not be found on a polluted Object.prototype.
 */
function complete(
  parts: readonly object[],
  { nonFinite, precision }: Settings,
  abort: Int32Array | undefined,
): Request {
  const shared = { nonFinite, precision, abort };
  return Object.assign(Object.create(null), shared, ...parts) as Request;
}

function errorOf(failure: Failure, request: Request): Error {
  const array = request[failure.argument] as ArrayLike<unknown> | undefined;
  return errorOfFailure(failure, array?.[failure.index], limitOf(failure.argument, request));
}

/** What the elements of an index array count: clusters for labels, else the keys or inputs. */
function limitOf(argument: string, request: Request): number | undefined {
  const { clusters, keyLength, length } = request as Record<string, number | undefined>;
  return argument === 'labels' ? clusters : (keyLength ?? length);
}

/** With `details: true` every operation returns an object. */
function deliver(call: Call, prepared: Prepared): unknown {
  const result = prepared.result();
  return call.details && ArrayBuffer.isView(result) ? { output: result } : result;
}
