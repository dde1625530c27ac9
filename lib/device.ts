/** The option `device`. */
import { CPU } from './device-name';
import { invalidType, outOfRange } from './errors';
import { isAbsent } from './options';

/** The number of a device; undefined for 'auto' and when none is named. */
export function readDevice(value: unknown, { cpu = true } = {}): number | undefined {
  if (isAbsent(value)) return undefined;
  const expected = `'auto', ${cpu ? "'cpu', " : ''}'cuda' or 'cuda:N'`;
  if (typeof value !== 'string') throw invalidType('device', expected, value);
  if (value === 'auto') return undefined;
  if (cpu && value === 'cpu') return CPU;
  const match = /^cuda(?::(\d{1,9}))?$/.exec(value);
  if (match === null) throw outOfRange('device', expected, value);
  return Number(match[1] ?? 0);
}
