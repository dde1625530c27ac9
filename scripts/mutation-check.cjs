'use strict';
// Plants one bug at a time (test/mutations.json) in a copy of the package and demands that its tests
// fail: a test that cannot fail proves nothing. A bug in native/ is met by the native tests with the
// names in `filter`, one in cuda/ by those on the model of a GPU, one in lib/ by the suites in
// `suites`.
//   node scripts/mutation-check.cjs [part of a name, or start of a file]      e.g. cuda/

const { spawnSync } = require('node:child_process');
const { readFileSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');
const { copyTree, replace, root } = require('./trees.cjs');

const tree = copyTree('mutations');
const NOTHING_RAN = 2; // the exit code of a program none of whose tests was selected

function run(program, args) {
  return spawnSync(program, args, { cwd: tree, encoding: 'utf8', maxBuffer: 1 << 28 });
}

const installed = (...parts) => join(root, 'node_modules', ...parts);

/** Tests that are a program of their own, in a build folder of their own. */
function compiled(folder, program, definitions) {
  return {
    build() {
      const script = join(tree, 'scripts', 'build.cjs');
      const all = { CA_BUILD_ADDON: 'OFF', ...definitions };
      const call = `require(${JSON.stringify(script)}).cmake('build/${folder}', ${JSON.stringify(all)})`;
      return run(process.execPath, ['-e', call]);
    },
    test: ({ filter }) => run(join(tree, 'build', folder, program), ['--stop', ...filter]),
  };
}

const kinds = {
  native: compiled('native-tests', 'native_tests', { CA_BUILD_TESTS: 'ON' }),
  cuda: compiled('cuda-tests', 'cuda_tests', {
    CA_BUILD_CUDA_TESTS: 'ON',
    CA_CUDA_MODEL: 'ON',
  }),
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
const kindOf = ({ file }) => kinds[file.split('/')[0]];

/** Builds and runs the tests that should notice; what they said. */
function verdict(mutation) {
  const kind = kindOf(mutation);
  const built = kind.build();
  if (built.status !== 0) return `does not compile:\n${built.stdout}${built.stderr}`;
  const { status, signal } = kind.test(mutation);
  if (status === NOTHING_RAN) return 'no test has such a name';
  return status === 0 ? 'SURVIVED' : `caught${signal ? ` (${signal})` : ''}`;
}

/** The addon of the package, for the suites of lib/. */
function copyAddon() {
  const addon = ['build', 'Release', 'cluster_attention.node'];
  replace(join(root, ...addon), join(tree, ...addon));
}

/** Without a planted bug everything builds, and the tests that are to notice one pass. */
function checkClean(mutations) {
  for (const kind of new Set(mutations.map(kindOf))) {
    if (kind === kinds.lib) copyAddon();
    const built = kind.build();
    if (built.status !== 0)
      throw new Error(`the tree does not build:\n${built.stdout}${built.stderr}`);
    const own = mutations.filter((mutation) => kindOf(mutation) === kind);
    const unique = (field) => Array.from(new Set(own.flatMap((mutation) => mutation[field] ?? [])));
    const { status, stdout } = kind.test({ filter: unique('filter'), suites: unique('suites') });
    if (status !== 0) throw new Error(`the tests fail without a planted bug:\n${stdout}`);
  }
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
// The next run copies older files over these: objects of the last bug would look newer than them.
for (const kind of new Set(mutations.map(kindOf))) kind.build();
console.log(`${caught} of ${mutations.length} planted bugs caught`);
process.exitCode = caught === mutations.length ? 0 : 1;
