'use strict';
// Fills prebuilds/<platform>-<arch>/ with the stripped addon and the libraries beside it.
//   node scripts/prebuild.cjs [x64|arm64]    default: this machine's
// arm64 is cross-built on x64 with Debian's compiler (apt-get install g++-aarch64-linux-gnu). For x64
// CLUSTER_ATTENTION_CUDA=release adds the CUDA backend, which then must be built: docs/gpu.md.

const { mkdirSync, readdirSync, rmSync, statSync } = require('node:fs');
const { join } = require('node:path');
const prebuildify = require('prebuildify');

const root = join(__dirname, '..');
const ARCHITECTURES = ['x64', 'arm64'];

/** The largest addon that is let into the package, and the largest CUDA backend: bytes. */
const LARGEST_ADDON = 2 * 2 ** 20;
const LARGEST_LIBRARY = 17.5 * 2 ** 20;

/** Whether the CUDA backend was asked for; it is for x64 alone. */
const wantsBackend = (arch) =>
  arch === 'x64' && !['', '0'].includes(process.env.CLUSTER_ATTENTION_CUDA ?? '');

function checkSizes(folder) {
  for (const name of readdirSync(folder).toSorted()) {
    const { size } = statSync(join(folder, name));
    const largest = name.endsWith('.node') ? LARGEST_ADDON : LARGEST_LIBRARY;
    console.log(`${join(folder, name)}: ${(size / 2 ** 20).toFixed(2)} MiB`);
    if (size > largest) throw new Error(`${name} is larger than ${largest} bytes`);
  }
}

function prebuild(arch) {
  const crossed = arch !== process.arch;
  const target = `${process.platform}-${arch}`;
  // prebuildify takes what it finds in <cwd>/build/Release: a folder of its own, so that the
  // addon of this checkout stays where it is.
  const cwd = join(root, 'build', 'prebuild', target, 'package');
  rmSync(cwd, { recursive: true, force: true });
  mkdirSync(cwd, { recursive: true });
  const folder = join(root, 'prebuilds', target);
  rmSync(folder, { recursive: true, force: true });
  const options = {
    arch,
    cwd,
    name: 'cluster-attention',
    napi: true,
    nodeGyp: join(__dirname, 'prebuild-node-gyp.cjs'),
    out: root,
    strip: true,
    stripBin: crossed && arch === 'arm64' ? 'aarch64-linux-gnu-strip' : 'strip',
    targets: [process.versions.node],
  };
  prebuildify(options, (error) => {
    try {
      if (error) throw error;
      checkSizes(folder);
    } catch (failure) {
      rmSync(folder, { recursive: true, force: true });
      console.error(`prebuilds: ${failure.message}`);
      process.exitCode = 1;
    }
  });
}

module.exports = { wantsBackend };

if (require.main === module) {
  const arch = process.argv[2] ?? process.arch;
  if (ARCHITECTURES.includes(arch)) {
    prebuild(arch);
  } else {
    console.error(`prebuilds: unknown architecture ${arch}; one of ${ARCHITECTURES.join(', ')}`);
    process.exitCode = 2;
  }
}
