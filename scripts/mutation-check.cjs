'use strict';
// Plants one bug at a time (test/mutations.json) in a copy of the native code and demands that the
// native tests fail: a test that cannot fail proves nothing.
//   node scripts/mutation-check.cjs [name]

const { spawnSync } = require('node:child_process');
const { cpSync, mkdirSync, readFileSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');

const root = join(__dirname, '..');
const tree = join(root, 'build', 'mutations');
const tests = join(tree, 'build', 'native-tests', 'native_tests');

function build() {
  const script = join(tree, 'scripts', 'build.cjs');
  const program = `require(${JSON.stringify(script)}).cmake('build/native-tests', {
    CA_BUILD_ADDON: 'OFF', CA_BUILD_TESTS: 'ON' })`;
  return spawnSync(process.execPath, ['-e', program], { encoding: 'utf8' });
}

/** Builds and runs the tests that should notice; what they said. */
function verdict({ filter }) {
  const built = build();
  if (built.status !== 0) return `does not compile:\n${built.stdout}${built.stderr}`;
  const { status, signal } = spawnSync(tests, filter, { encoding: 'utf8' });
  return status === 0 ? 'SURVIVED' : `caught${signal ? ` (${signal})` : ''}`;
}

mkdirSync(tree, { recursive: true });
for (const part of ['native', 'test', 'scripts', 'CMakeLists.txt']) {
  cpSync(join(root, part), join(tree, part), { recursive: true });
}
const clean = build();
if (clean.status !== 0) throw new Error(`the tree does not build:\n${clean.stdout}${clean.stderr}`);

const all = JSON.parse(readFileSync(join(root, 'test', 'mutations.json'), 'utf8'));
const wanted = process.argv[2];
const mutations = all.filter(({ name }) => wanted === undefined || name.includes(wanted));
let caught = 0;
for (const mutation of mutations) {
  const file = join(tree, mutation.file);
  const source = readFileSync(file, 'utf8');
  const parts = source.split(mutation.find);
  if (parts.length !== 2) throw new Error(`${mutation.name}: "${mutation.find}" is not unique`);
  writeFileSync(file, parts.join(mutation.replace));
  const said = verdict(mutation);
  writeFileSync(file, source);
  caught += said.startsWith('caught') ? 1 : 0;
  console.log(`${mutation.name.padEnd(60)} ${said}`);
}
console.log(`${caught} of ${mutations.length} planted bugs caught`);
process.exitCode = caught === mutations.length ? 0 : 1;
