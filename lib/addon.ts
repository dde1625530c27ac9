/**
 * Finds the native addon: one built on this machine first, else the prebuilt one of this platform.
 * Also what the install script asks whether a build is needed (scripts/install.cjs).
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';

/** The addon and the file it came from. */
export interface Addon {
  file: string;
  exports: unknown;
}

/** A file that was tried in vain. */
export interface Attempt {
  file: string;
  reason: string;
  cause?: unknown;
}

const platform = `${process.platform}-${process.arch}`;

/** The files that may hold the addon of the package at `root`, in the order they are tried. */
function candidates(root: string): string[] {
  return [
    join(root, 'build', 'Release', 'cluster_attention.node'),
    join(root, 'prebuilds', platform, 'cluster-attention.node'),
  ];
}

/** The first addon that loads; when none does, why not, file by file. */
export function loadAddon(root: string): Addon | Attempt[] {
  const attempts: Attempt[] = [];
  for (const file of candidates(root)) {
    if (!existsSync(file)) {
      attempts.push({ file, reason: 'there is no such file' });
      continue;
    }
    try {
      return { file, exports: require(file) as unknown };
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      attempts.push({ file, reason, cause });
    }
  }
  return attempts;
}

/** The C library that Node runs on, which a prebuilt addon must not be newer than. */
function libraryOfC(): string {
  if (process.platform !== 'linux') return '';
  const report = process.report.getReport() as { header?: { glibcVersionRuntime?: string } };
  const version = report.header?.glibcVersionRuntime;
  return version === undefined ? ', not glibc' : `, glibc ${version}`;
}

/** What was tried, why each failed, and the command that helps, for every package manager. */
export function explain(root: string, attempts: Attempt[]): string {
  const name = 'cluster-attention';
  const tried = attempts.map(({ file, reason }) => `  - ${file}\n    ${reason}`).join('\n');
  return `no native addon loads on ${platform} (Node ${process.versions.node}${libraryOfC()})
Tried, in this order:
${tried}
Prebuilt: linux-x64 and linux-arm64 with glibc 2.29 or newer. Elsewhere it is built on the machine; that
needs CMake 3.20 or newer, make or ninja, and a C++17 compiler (Debian, Ubuntu: apt-get install cmake g++ make):
  npm:   npm rebuild ${name} --build-from-source --foreground-scripts
         (npm 12 and newer run no install script unasked; first: npm approve-scripts ${name})
  pnpm:  pnpm approve-builds, then pnpm rebuild ${name}
  yarn:  yarn rebuild ${name} (yarn 1: yarn install --force)
  any:   node "${join(root, 'scripts', 'build.cjs')}"`;
}
