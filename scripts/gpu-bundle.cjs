'use strict';
// Packs the built package, its JavaScript check and this Node into build/gpu-bundle/, for a machine
// with a GPU but without Node, a compiler or a network:
//   npm run build:cuda && node scripts/gpu-bundle.cjs
//   there: sh gpu-bundle/run.sh [device]
// The parts are compressed one by one, so that each stays small enough to be carried.

const { execFileSync } = require('node:child_process');
const {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} = require('node:fs');
const { join } = require('node:path');

const root = join(__dirname, '..');
const bundle = join(root, 'build', 'gpu-bundle');
const ADDON = 'build/Release/cluster_attention.node';
const BACKEND = 'build/Release/cluster_attention_cuda.so';
const FILES = ['package.json', 'dist', ADDON, BACKEND, 'test/cuda/javascript', 'test/lib/support'];

/** What runs there: unpacks beside itself, then checks. */
const RUN = `#!/bin/sh
set -e
cd "$(dirname "$0")"
mkdir -p unpacked
[ -e unpacked/package.json ] || xz -dc package.tar.xz | tar -x -C unpacked
[ -e unpacked/node ] || { xz -dc node.xz > unpacked/node && chmod +x unpacked/node; }
exec unpacked/node unpacked/test/cuda/javascript/check.mjs "$@"
`;

function shell(command) {
  execFileSync('bash', ['-o', 'pipefail', '-c', command], { cwd: root, stdio: 'inherit' });
}

/** A word for the shell. */
const quote = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function pack() {
  const missing = FILES.filter((file) => !existsSync(join(root, file)));
  if (missing.length > 0) throw new Error(`build the package first, there is no ${missing}`);
  rmSync(bundle, { recursive: true, force: true });
  mkdirSync(bundle, { recursive: true });
  const to = (name) => quote(join(bundle, name));
  shell(`tar -c ${FILES.map(quote).join(' ')} | xz -3 > ${to('package.tar.xz')}`);
  shell(`xz -3 -c ${quote(process.execPath)} > ${to('node.xz')}`);
  writeFileSync(join(bundle, 'run.sh'), RUN);
  chmodSync(join(bundle, 'run.sh'), 0o755);
  for (const name of readdirSync(bundle)) {
    console.log(`${name}: ${(statSync(join(bundle, name)).size / 2 ** 20).toFixed(2)} MiB`);
  }
}

try {
  pack();
} catch (error) {
  console.error(`GPU bundle: ${error.message}`);
  process.exitCode = 1;
}
