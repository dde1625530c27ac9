import { sep } from 'node:path';
import { binding, bindingFile, type CudaDescription } from './binding';

/** A CUDA device that the driver knows. */
export interface CudaDevice {
  /** Its number: `device: 'cuda:N'`. */
  index: number;
  name: string;
  /** "9.0" */
  computeCapability: string;
  multiprocessors: number;
  /** Bytes. */
  memory: number;
  /** Why it cannot be used; absent when it can. */
  reason?: string;
}

/** What {@link info} knows of CUDA. */
export interface CudaInfo {
  /** Whether `device: 'cuda'` can work: the backend is there, and the driver knows a device. */
  available: boolean;
  /** Why not. */
  reason?: string;
  /** Compute capabilities that the backend was compiled for, such as "90a"; none without it. */
  targets: string[];
  /** CUDA version of the backend, "13.0"; absent without it. */
  runtime?: string;
  /** Newest CUDA version that the driver knows; absent without a driver. */
  driver?: string;
  devices: CudaDevice[];
}

/** What {@link info} returns. */
export interface Info {
  /** Of the native addon; the same as the package's. */
  version: string;
  /** Instruction sets that this processor and build offer, best first, and the one in use. */
  instructionSets: { found: string[]; used: string };
  /** Threads that compute at once. */
  threads: number;
  /** Whether the addon came with the package or was built on this machine. */
  build: 'prebuilt' | 'local';
  /** Whether `device: 'cuda'` works, on what, and why not. */
  cuda: CudaInfo;
}

/** 13000 is 13.0, 0 none. */
function versionText(version: number): string | undefined {
  return version === 0 ? undefined : `${Math.floor(version / 1000)}.${(version % 1000) / 10}`;
}

function describeDevice(device: CudaDescription['devices'][number], index: number): CudaDevice {
  const { name, major, minor, multiprocessors, memory, reason } = device;
  const computeCapability = `${major}.${minor}`;
  const known = { index, name, computeCapability, multiprocessors, memory };
  return reason === '' ? known : { ...known, reason };
}

function cudaInfo(): CudaInfo {
  const { reason, targets, runtime, driver, devices } = binding.cudaInfo();
  const versions = { runtime: versionText(runtime), driver: versionText(driver) };
  return {
    available: reason === '',
    ...(reason !== '' && { reason }),
    targets: targets === '' ? [] : targets.split(','),
    ...(versions.runtime !== undefined && { runtime: versions.runtime }),
    ...(versions.driver !== undefined && { driver: versions.driver }),
    devices: devices.map(describeDevice),
  };
}

/**
 * What this installation is and uses: for bug reports and for a look before trusting it. Opens the
 * CUDA backend and asks its driver, which may take a moment the first time.
 */
export function info(): Info {
  const { version, found, used } = binding.info();
  return {
    version,
    instructionSets: { found: found.split(',').map((name) => name.trim()), used },
    threads: binding.getNumThreads(),
    build: bindingFile.includes(`${sep}prebuilds${sep}`) ? 'prebuilt' : 'local',
    cuda: cudaInfo(),
  };
}
