/**
 * The memory behind DeviceTensors: a number that the native code gave (see
 * native/binding/device_memory.h) for each of them. It is freed by free(), or some time after its
 * owner was forgotten; calls in progress keep what they use.
 */
import { binding, DeviceType } from './binding';
import { errorOfFailure } from './errors';

/** Numbers by owner; 0 once freed. Whoever stands here is a DeviceTensor, whatever else it seems. */
const numbers = new WeakMap<object, number>();

const forgotten = new FinalizationRegistry<number>((memory) => binding.release({ memory }));

/** Allocates for `owner`, which must live as long as the memory is used. */
export function allocateFor(
  owner: object,
  device: number,
  dtype: keyof typeof DeviceType,
  elements: number,
): void {
  const given = binding.allocate({ device, type: DeviceType[dtype], elements });
  if (typeof given !== 'number') {
    throw errorOfFailure(given, { name: `a DeviceTensor of ${elements} elements`, device });
  }
  numbers.set(owner, given);
  forgotten.register(owner, given, owner);
}

/** The number of the memory of `owner`: 0 once it was freed, undefined for what is no tensor. */
export function memoryOf(owner: unknown): number | undefined {
  return typeof owner === 'object' && owner !== null ? numbers.get(owner) : undefined;
}

/** Frees; a second time does nothing. */
export function free(owner: object): void {
  const memory = numbers.get(owner);
  if (!memory) return;
  numbers.set(owner, 0);
  forgotten.unregister(owner);
  binding.release({ memory });
}
