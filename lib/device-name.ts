/** The CPU among the numbers of devices. */
export const CPU = -1;

/** The name of a device. */
export function deviceName(device: number): 'cpu' | `cuda:${number}` {
  return device === CPU ? 'cpu' : `cuda:${device}`;
}
