/**
 * The memory behind DeviceTensors: a number that the native code gave (see
 * native/binding/device_memory.h) for each of them. It is freed when the last of its owners has
 * called free(), or some time after they were forgotten; calls in progress keep what they use.
 */
import { binding, DeviceType } from './binding';
import { errorOfFailure } from './errors';
import { memories, type Memory } from './tensor-memory';

export { memoryOf } from './tensor-memory';

/** What owners have in the end. */
const FREED: Memory = { number: 0, owners: 0 };

const forgotten = new FinalizationRegistry<Memory>(letGo);

function letGo(memory: Memory): void {
  memory.owners -= 1;
  if (memory.owners === 0) binding.release({ memory: memory.number });
}

function own(owner: object, memory: Memory): void {
  memory.owners += 1;
  memories.set(owner, memory);
  forgotten.register(owner, memory, owner);
}

/** Allocates for `owner`, which must live as long as the memory is used. */
export function allocateFor(
  owner: object,
  device: number,
  dtype: keyof typeof DeviceType,
  elements: number,
): void {
  const given = binding.allocate({ device, type: DeviceType[dtype], elements });
  if (typeof given !== 'number') {
    const name = `a DeviceTensor of ${elements} elements`;
    throw errorOfFailure(given, { name, device, tensor: true });
  }
  own(owner, { number: given, owners: 0 });
}

/** Makes `owner` a second owner of the memory of `other`, which has not freed it. */
export function shareWith(owner: object, other: object): void {
  own(owner, memories.get(other)!);
}

/** Gives up ownership; a second time does nothing. */
export function free(owner: object): void {
  const memory = memories.get(owner);
  if (memory === undefined || memory === FREED) return;
  memories.set(owner, FREED);
  forgotten.unregister(owner);
  letGo(memory);
}
