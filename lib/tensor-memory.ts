/** Which objects own memory on a device. Apart from what allocates it, which loads the addon. */

export interface Memory {
  /** That the native code gave it, 0 once it was freed. */
  readonly number: number;
  owners: number;
}

/** By owner. Whoever stands here is a DeviceTensor, whatever else it seems. */
export const memories = new WeakMap<object, Memory>();

/** The number of the memory of `owner`: 0 once it was freed, undefined for what is no tensor. */
export function memoryOf(owner: unknown): number | undefined {
  return typeof owner === 'object' && owner !== null ? memories.get(owner)?.number : undefined;
}
