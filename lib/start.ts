/** The `initial` option of the iterative operations: the name of a start, or the start itself. */
import type { Axes } from './arrays';
import type { Call, Floats } from './call';
import { isDeviceTensor } from './device-tensor';
import { invalidType } from './errors';
import { kindOf } from './intrinsics';
import { isAbsent } from './options';

/** The fields `start` and `initial` of a request. */
export function readStart(
  call: Call,
  starts: Readonly<Record<string, number>>,
  fallback: number,
  given: number,
  axes: Axes,
): { start: number; initial: Floats | undefined } {
  const value = call.value('initial');
  if (kindOf(value) !== undefined || isDeviceTensor(value)) {
    return { start: given, initial: call.floats('initial', axes) };
  }
  if (!isAbsent(value) && typeof value !== 'string') {
    const names = Object.keys(starts).map((name) => `'${name}'`);
    throw invalidType('initial', `a Float32Array or one of ${names.join(', ')}`, value);
  }
  return { start: call.choice('initial', starts, fallback), initial: undefined };
}
