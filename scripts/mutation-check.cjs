'use strict';
// Plants one bug at a time (test/mutations.json) in a copy of the package and demands that its tests
// fail: a test that cannot fail proves nothing. A bug in native/ is met by the native tests with the
// names in `filter`, one in lib/ by the suites in `suites`.
//   node scripts/mutation-check.cjs [part of a name, or start of a file]

const { spawnSync } = require('node:child_process');
const { copyFileSync, mkdirSync, readFileSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');
const { copyTree, root } = require('./trees.cjs');

const tree = copyTree('mutations');
const tests = join(tree, 'build', 'native-tests', 'native_tests');

function run(program, args) {
  return spawnSync(program, args, { cwd: tree, encoding: 'utf8', maxBuffer: 1 << 28 });
}

const installed = (...parts) => join(root, 'node_modules', ...parts);

const kinds = {
  native: {
    build() {
      const script = join(tree, 'scripts', 'build.cjs');
      const program = `require(${JSON.stringify(script)}).cmake('build/native-tests', {
        CA_BUILD_ADDON: 'OFF', CA_BUILD_TESTS: 'ON' })`;
      return run(process.execPath, ['-e', program]);
    },
    test: ({ filter }) => run(tests, filter),
  },
  lib: {
    // Unchecked: a planted bug may well break a type.
    build: () =>
      run(process.execPath, [
        installed('typescript', 'bin', 'tsc'),
        '-p',
        'tsconfig.json',
        '--noCheck',
      ]),
    test: ({ suites }) =>
      run(process.execPath, [installed('vitest', 'vitest.mjs'), 'run', ...suites]),
  },
};
const kindOf = ({ file }) => (file.startsWith('lib/') ? kinds.lib : kinds.native);

/** Builds and runs the tests that should notice; what they said. */
function verdict(mutation) {
  const kind = kindOf(mutation);
  const built = kind.build();
  if (built.status !== 0) return `does not compile:\n${built.stdout}${built.stderr}`;
  const { status, signal } = kind.test(mutation);
  return status === 0 ? 'SURVIVED' : `caught${signal ? ` (${signal})` : ''}`;
}

/** The addon of the package, for the suites of lib/. */
function copyAddon() {
  const addon = ['build', 'Release', 'cluster_attention.node'];
  mkdirSync(join(tree, 'build', 'Release'), { recursive: true });
  copyFileSync(join(root, ...addon), join(tree, ...addon));
}

/** Without a planted bug everything builds, and the tests that are to notice one pass. */
function checkClean(mutations) {
  for (const kind of new Set(mutations.map(kindOf))) {
    const { status, stdout, stderr } = kind.build();
    if (status !== 0) throw new Error(`the tree does not build:\n${stdout}${stderr}`);
  }
  const suites = Array.from(new Set(mutations.flatMap((mutation) => mutation.suites ?? [])));
  if (suites.length === 0) return;
  copyAddon();
  const { status, stdout } = kinds.lib.test({ suites });
  if (status !== 0) throw new Error(`the suites fail without a planted bug:\n${stdout}`);
}

const all = JSON.parse(readFileSync(join(root, 'test', 'mutations.json'), 'utf8'));
const wanted = process.argv[2];
const mutations = all.filter(
  ({ name, file }) => wanted === undefined || name.includes(wanted) || file.startsWith(wanted),
);
for (const { name, file, find } of mutations) {
  const places = readFileSync(join(tree, file), 'utf8').split(find).length - 1;
  if (places !== 1) throw new Error(`${name}: "${find}" stands ${places} times in ${file}`);
}
checkClean(mutations);
let caught = 0;
for (const mutation of mutations) {
  const file = join(tree, mutation.file);
  const source = readFileSync(file, 'utf8');
  writeFileSync(file, source.split(mutation.find).join(mutation.replace));
  const said = verdict(mutation);
  writeFileSync(file, source);
  caught += said.startsWith('caught') ? 1 : 0;
  console.log(`${mutation.name.padEnd(60)} ${said}`);
}
console.log(`${caught} of ${mutations.length} planted bugs caught`);
process.exitCode = caught === mutations.length ? 0 : 1;
