/** Where a call computes, and where its arrays belong. */
import { Storage } from './binding';
import { readDevice } from './device';
import { CPU, deviceName } from './device-name';
import { type DeviceDtype, type DeviceTensor, deviceOf, isDeviceTensor } from './device-tensor';
import { outOfRange } from './errors';
import type { TypedArrayKind } from './intrinsics';
import type { Values } from './options';

/**
 * Arrays of floats that are stored on a device as the call says, float32 or bfloat16; all others are
 * float32 (cuda/backend.h).
 */
const FOLLOW_STORAGE: ReadonlySet<string> = new Set([
  'query',
  'key',
  'value',
  'inputs',
  'scores',
  'a',
  'b',
  'values',
  'output',
  'gradOutput',
]);

export class Place {
  constructor(
    /** Number of the CUDA device that computes, or CPU. */
    readonly device: number,
    /** How arrays of floats lie on the device. */
    readonly storage: number,
    /** The first option that is a DeviceTensor: where there is one, results are DeviceTensors. */
    readonly tensor: string | undefined,
  ) {}

  /** What an array of this kind is on the device. */
  dtypeOf(name: string, kind: TypedArrayKind): DeviceDtype {
    switch (kind) {
      case 'Int32Array':
        return 'int32';
      case 'BigUint64Array':
        return 'uint64';
      case 'Float64Array':
        return 'float64';
      case 'Float32Array':
        return this.storage === Storage.bfloat16 && FOLLOW_STORAGE.has(name)
          ? 'bfloat16'
          : 'float32';
    }
  }
}

const ON_CPU = new Place(CPU, Storage.float32, undefined);

/**
 * The place that the options ask for: where the first DeviceTensor is (see checkDevices); else
 * where `device` says. 'auto' leaves plain arrays on the CPU: its bits do not depend on what else
 * the machine has, and no process starts CUDA unasked.
 */
export function readPlace(values: Values): Place {
  const asked = readDevice(values['device']);
  const tensor = firstTensor(values);
  if (tensor === undefined) {
    return asked === undefined || asked === CPU
      ? ON_CPU
      : new Place(asked, Storage.float32, tensor);
  }
  const device = deviceOf(values[tensor] as DeviceTensor);
  if (asked !== undefined && asked !== device) {
    const expected = `'auto' or '${deviceName(device)}', where ${tensor} is`;
    throw outOfRange('device', expected, values['device']);
  }
  return new Place(device, storageOf(values), tensor);
}

/** Refuses tensors on another device: all of a call are on one. */
export function checkDevices({ device, tensor }: Place, values: Values): void {
  for (const name in values) {
    const value = values[name];
    if (!isDeviceTensor(value) || deviceOf(value) === device) continue;
    throw outOfRange(name, `on ${deviceName(device)}, where ${tensor} is`, value.device);
  }
}

function firstTensor(values: Values): string | undefined {
  for (const name in values) {
    if (isDeviceTensor(values[name])) return name;
  }
  return undefined;
}

/** That of the first tensor that has a say in it. */
function storageOf(values: Values): number {
  for (const name of FOLLOW_STORAGE) {
    const value = values[name];
    if (!isDeviceTensor(value)) continue;
    return value.dtype === 'bfloat16' ? Storage.bfloat16 : Storage.float32;
  }
  return Storage.float32;
}
