/**
 * Makes both forms of an operation from one description: `prepare` reads the options, checks them
 * and allocates the results; what follows is the same for all operations.
 */
import { throwIfAborted } from './abort';
import type { NativeOperation } from './binding';
import { Call } from './call';
import { isDeviceTensor } from './device-tensor';
import { computeAsync, computeSync } from './native-call';
import { declareNames, type KnownNames } from './options';

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
  declareNames(operation);
  const name = `${operation.name}Sync`;
  return named(name, (options: unknown): unknown => {
    const call = new Call(name, 'sync', options, operation);
    const prepared = operation.prepare(call);
    runSync(operation, call, prepared);
    return deliver(call, prepared);
  });
}

/** The form that computes on other threads. It never throws: bad arguments reject the promise. */
export function asynchronous<Callable>(operation: Operation): Callable {
  const { name } = operation;
  return named(name, async (options: unknown): Promise<unknown> => {
    const call = new Call(name, 'async', options, operation);
    throwIfAborted(call.signal);
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
  call.discard();
  throw error;
}

/** Runs a prepared call on other threads. */
export async function runAsync(
  { native }: Operation,
  call: Call,
  { request }: Prepared,
): Promise<void> {
  try {
    const error = await computeAsync(native, call, request, call.signal, call.writesOut);
    if (error !== undefined) throw error;
  } catch (error) {
    call.discard();
    throw error;
  }
}

/** With `details: true` every operation returns an object. */
function deliver(call: Call, prepared: Prepared): unknown {
  const result = prepared.result();
  return call.details ? asObject(result) : result;
}

/** A result that is the output alone, as an object. */
export function asObject(result: unknown): object {
  const bare = ArrayBuffer.isView(result) || isDeviceTensor(result);
  return bare ? { output: result } : (result as object);
}
