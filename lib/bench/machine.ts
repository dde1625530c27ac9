/** What a measurement ran on. */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { availableParallelism, cpus, release, totalmem } from 'node:os';
import { join } from 'node:path';
import { info } from '../info';

export interface Machine {
  readonly processor: string;
  readonly cores: number;
  /** bytes */
  readonly memory: number;
  /** Operating system, its version and the architecture. */
  readonly system: string;
  readonly node: string;
  readonly package: string;
  readonly instructionSet: string;
  readonly build: string;
  readonly cuda: string;
  /** Of the working tree that the package runs from, if it is one; "+" when it has changes. */
  readonly commit?: string;
}

const root = join(__dirname, '..', '..');

function git(...args: string[]): string {
  return execFileSync('git', args, { cwd: root, encoding: 'utf8', stdio: 'pipe' }).trim();
}

function commitOf(): string | undefined {
  if (!existsSync(join(root, '.git'))) return undefined;
  try {
    const changed = git('status', '--porcelain', '--untracked-files=no') !== '';
    return git('rev-parse', '--short=12', 'HEAD') + (changed ? '+' : '');
  } catch {
    return undefined; // no git here
  }
}

export function describeMachine(): Machine {
  const { version, instructionSets, build, cuda } = info();
  const commit = commitOf();
  return {
    processor: cpus()[0]?.model.trim().replaceAll(/\s+/g, ' ') ?? 'unknown',
    cores: availableParallelism(),
    memory: totalmem(),
    system: `${process.platform} ${release()} ${process.arch}`,
    node: process.version,
    package: version,
    instructionSet: instructionSets.used,
    build,
    // The reason without its details: recordings are published, and paths are nobody's business.
    cuda: cuda.reason?.split(':')[0] ?? cuda.devices.map((device) => device.name).join(', '),
    ...(commit !== undefined && { commit }),
  };
}
