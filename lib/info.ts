import { sep } from 'node:path';
import { binding, bindingFile } from './binding';
import { CUDA_REASON } from './call';

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
  /** Whether `device: 'cuda'` works, and why not. */
  cuda: { available: false; reason: string };
}

/** What this installation is and uses: for bug reports and for a look before trusting it. */
export function info(): Info {
  const { version, found, used } = binding.info();
  return {
    version,
    instructionSets: { found: found.split(',').map((name) => name.trim()), used },
    threads: binding.getNumThreads(),
    build: bindingFile.includes(`${sep}prebuilds${sep}`) ? 'prebuilt' : 'local',
    cuda: { available: false, reason: CUDA_REASON },
  };
}
