/**
 * Finds the native addon: one built on this machine first, else the prebuilt one of this platform.
 * Also what the install script asks whether a build is needed (scripts/install.cjs).
 */
import { closeSync, existsSync, fstatSync, openSync, readFileSync, readSync } from 'node:fs';
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

/** Whether a 64-bit ELF file ends before the tables that its header names: loading it would crash. */
function isTruncated(file: string): boolean {
  const handle = openSync(file, 'r');
  try {
    const header = Buffer.alloc(64);
    readSync(handle, header);
    const isKnown = header.toString('latin1', 0, 6) === '\x7fELF\x02\x01'; // 64 bits, little endian
    const tables = header.readUInt16LE(58) * header.readUInt16LE(60);
    return isKnown && fstatSync(handle).size < Number(header.readBigUInt64LE(40)) + tables;
  } finally {
    closeSync(handle);
  }
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
      if (isTruncated(file)) throw new Error('the file is truncated');
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

const NAME = 'cluster-attention';

/** Whether the package is at `root`; this code may have been put into a bundle elsewhere. */
function isPackage(root: string): boolean {
  try {
    const manifest = readFileSync(join(root, 'package.json'), 'utf8');
    return (JSON.parse(manifest) as { name?: unknown }).name === NAME;
  } catch {
    return false;
  }
}

const UNBUNDLE = `This is not the package but a bundle of it, which holds no addon. Leave the package out of the bundle
(esbuild: --external:${NAME}; webpack: externals; rollup: external) and install it where the bundle runs`;

const ALLOW = `Node was told to load no addons: start it without --no-addons, and with --allow-addons where it has --permission`;

/** The commands that build the addon, for every package manager. */
const build = (
  root: string,
) => `Prebuilt: linux-x64 and linux-arm64 with glibc 2.29 or newer. Elsewhere it is built on the machine; that
needs CMake 3.20 or newer, make or ninja, and a C++17 compiler (Debian, Ubuntu: apt-get install cmake g++ make):
  npm:   npm rebuild ${NAME} --build-from-source --foreground-scripts
         (npm 12 and newer run no install script unasked; first: npm approve-scripts ${NAME})
  pnpm:  pnpm approve-builds, then pnpm rebuild ${NAME}
  yarn:  yarn rebuild ${NAME} (yarn 1: yarn install --force)
  any:   node "${join(root, 'scripts', 'build.cjs')}"`;

/** What helps against the failure of all attempts. */
function remedy(root: string, attempts: Attempt[]): string {
  const codes = attempts.map(({ cause }) => (cause as NodeJS.ErrnoException | undefined)?.code);
  if (codes.includes('ERR_DLOPEN_DISABLED')) return ALLOW;
  return isPackage(root) ? build(root) : UNBUNDLE;
}

/** What was tried, why each failed, and what helps. */
export function explain(root: string, attempts: Attempt[]): string {
  const tried = attempts.map(({ file, reason }) => `  - ${file}\n    ${reason}`).join('\n');
  return `no native addon loads on ${platform} (Node ${process.versions.node}${libraryOfC()})
Tried, in this order:
${tried}
${remedy(root, attempts)}`;
}
