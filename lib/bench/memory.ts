/**
 * The memory of a problem's tensors, and the extra memory of a call: how far the resident memory of
 * this process rises above its level just before. On Linux the high-water mark (VmHWM) is set back
 * first; elsewhere nothing is known.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import type { Problem } from './record';

/** Bytes of query, key, value and output as float32. */
export function tensorBytes(problem: Problem): number {
  const { batch, heads, queryLength, keyLength, headDim, valueDim } = problem;
  return 4 * batch * heads * (queryLength + keyLength) * (headDim + valueDim);
}

function highWaterMark(): number {
  const match = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'latin1'));
  return Number(match![1]) * 1024;
}

/** Bytes, or undefined where they cannot be measured. */
export function extraMemoryOf(run: () => void): number | undefined {
  try {
    highWaterMark(); // what reading it takes
    (globalThis as { gc?: () => void }).gc?.();
    writeFileSync('/proc/self/clear_refs', '5');
  } catch {
    run();
    return undefined;
  }
  const before = highWaterMark();
  run();
  return Math.max(highWaterMark() - before, 0);
}
