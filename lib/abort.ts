/**
 * Calls that wait for an AbortSignal. However many calls share a signal, it gets one listener
 * (Node warns of a leak from the eleventh on), and none once they have settled.
 */

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
  signal.addEventListener('abort', listener, { once: true });
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
      reject(signal.reason);
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
      signal.removeEventListener('abort', current.listener);
      watches.delete(signal);
    }
  }
}
