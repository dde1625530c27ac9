/** The option `device`. */
import { CPU } from './device-name';
import { invalidType, outOfRange } from './errors';
import { isAbsent } from './options';

const EXPECTED = "'auto', 'cpu', 'cuda' or 'cuda:N'";

/** The number of a device; undefined for 'auto' and when none is named. */
export function readDevice(value: unknown): number | undefined {
  if (isAbsent(value)) return undefined;
  if (typeof value !== 'string') throw invalidType('device', EXPECTED, value);
  if (value === 'auto') return undefined;
  if (value === 'cpu') return CPU;
  const match = /^cuda(?::(\d{1,9}))?$/.exec(value);
  if (match === null) throw outOfRange('device', EXPECTED, value);
  return Number(match[1] ?? 0);
}
