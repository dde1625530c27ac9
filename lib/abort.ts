/**
 * Calls that wait for an AbortSignal. However many calls share a signal, it gets one listener
 * (Node warns of a leak from the eleventh on), and none once they have settled.
 *
 * As of typed arrays (intrinsics.ts), nothing that its owner has put on a signal is believed or run.
 */
import { invalidType } from './errors';
import { getterOf, methodOf } from './intrinsics';
import { isAbsent } from './options';

const isAborted = getterOf<boolean>(AbortSignal.prototype, 'aborted');
const reasonOf = getterOf<unknown>(AbortSignal.prototype, 'reason');
type ChangeListener = (
  signal: AbortSignal,
  type: 'abort',
  listener: () => void,
  options?: { once: boolean },
) => void;
const addListener = methodOf<ChangeListener>(EventTarget.prototype, 'addEventListener');
const removeListener = methodOf<ChangeListener>(EventTarget.prototype, 'removeEventListener');

/** The option `signal`. */
export function readSignal(value: unknown): AbortSignal | undefined {
  if (isAbsent(value)) return undefined;
  if (!isSignal(value)) throw invalidType('signal', 'an AbortSignal', value);
  return value;
}

function isSignal(value: unknown): value is AbortSignal {
  try {
    isAborted(value); // which throws for anything else
    return true;
  } catch {
    return false;
  }
}

/** Throws the reason of a signal that is aborted. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal !== undefined && isAborted(signal)) throw reasonOf(signal);
}

/** The calls of one signal; `listener` is what the signal holds. */
interface Watch {
  readonly calls: Set<() => void>;
  readonly listener: () => void;
}

const watches = new WeakMap<AbortSignal, Watch>();

function watch(signal: AbortSignal): Watch {
  const calls = new Set<() => void>();
  const listener = (): void => {
    watches.delete(signal);
    for (const onAbort of calls) onAbort();
  };
  addListener(signal, 'abort', listener, { once: true });
  const added = { calls, listener };
  watches.set(signal, added);
  return added;
}

/**
 * Settles like `pending`, or rejects with the reason of the signal when that comes first; then
 * `flag` is raised, which the native code polls. It rejects at once, or, with `whenDone`, when the
 * native code is done with what it was given.
 */
export async function abortable<Result>(
  pending: Promise<Result>,
  signal: AbortSignal,
  flag: Int32Array,
  whenDone: boolean,
): Promise<Result> {
  const { calls } = watches.get(signal) ?? watch(signal);
  let onAbort!: () => void;
  const aborted = new Promise<never>((_, reject) => {
    onAbort = (): void => {
      flag[0] = 1;
      reject(reasonOf(signal));
    };
  });
  calls.add(onAbort);
  try {
    const first = Promise.race([pending, aborted]);
    if (whenDone) await Promise.allSettled([first, pending]);
    return await first;
  } finally {
    calls.delete(onAbort);
    const current = watches.get(signal);
    if (calls.size === 0 && current?.calls === calls) {
      removeListener(signal, 'abort', current.listener);
      watches.delete(signal);
    }
  }
}
