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

/** The form that computes on the calling thread. */
export function synchronous<Callable>(operation: Operation): Callable {
  declareNames([...operation.options, ...(operation.shape ?? [])]);
  const name = `${operation.name}Sync`;
  const compute = binding[operation.native];
  return named(name, (options: unknown): unknown => {
    const call = new Call(name, 'sync', options, operation);
    const prepared = operation.prepare(call);
    const request = complete(prepared.request, call, undefined);
    const failure = compute(request);
    if (failure !== undefined) {
      call.spoil();
      throw errorOf(failure, request);
    }
    return deliver(call, prepared);
  });
}

/** The form that computes on the thread pool. It never throws: bad arguments reject the promise. */
export function asynchronous<Callable>(operation: Operation): Callable {
  const { name } = operation;
  const compute = binding[`${operation.native}Async`];
  return named(name, async (options: unknown): Promise<unknown> => {
    const call = new Call(name, 'async', options, operation);
    call.signal?.throwIfAborted();
    const prepared = operation.prepare(call);
    const abort = new Int32Array(1);
    const request = complete(prepared.request, call, abort);
    const pending = compute(request);
    const failure = await (call.signal ? abortable(pending, call.signal, abort) : pending);
    if (failure !== undefined) throw errorOf(failure, request);
    return deliver(call, prepared);
  });
}

function named<Callable>(name: string, implementation: (options: unknown) => unknown): Callable {
  Object.defineProperty(implementation, 'name', { value: name });
  return implementation as Callable;
}

/**
 * The request with what every call has beside its problem. It has no prototype: an option that is
 * absent must not be found on a polluted Object.prototype.
 */
function complete(parts: readonly object[], call: Call, abort: Int32Array | undefined): Request {
  const { nonFinite, precision } = call;
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
