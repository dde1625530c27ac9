import { binding } from './binding';
import { asInteger } from './options';

export const MAXIMUM_THREADS = 1024;

/**
 * Sets the number of threads that compute at once, in the whole process: synchronous callers
 * included. Running work finishes undisturbed; results do not depend on it. The start value is the
 * number of hardware threads, or what the environment variable CLUSTER_ATTENTION_NUM_THREADS says.
 *
 * @param threads 1 to 1024
 * @throws ERR_INVALID_ARG_TYPE, ERR_OUT_OF_RANGE
 */
export function setNumThreads(threads: number): void {
  binding.setNumThreads({ threads: asInteger('threads', threads, 1, MAXIMUM_THREADS) });
}

/** The number of threads that compute at once. */
export function getNumThreads(): number {
  return binding.getNumThreads();
}
