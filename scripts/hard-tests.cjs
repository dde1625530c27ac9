'use strict';
// Attacks the package at full length and prints every figure as a table (docs/reliability.md).
//   npm run test:hard [-- part ...]      parts: see PARTS; all of them when none is named
// Takes hours on a small machine; each part can be run alone.

const { spawnSync } = require('node:child_process');
const { join } = require('node:path');
const { cmake } = require('./build.cjs');
const { replace, root, treeWithAddon } = require('./trees.cjs');

const nativeTests = join(root, 'build', 'native-tests', 'native_tests');
const cudaTests = join(root, 'build', 'native-tests', 'cuda_tests');

function program(name, parameters = {}, tree = root) {
  const list = Object.entries(parameters).map(([key, value]) => `${key}=${value}`);
  return [process.execPath, [join(tree, 'test', 'hard', name), ...list]];
}
const script = (name, ...args) => [process.execPath, [join(root, 'scripts', name), ...args]];

/** Each part: its commands, made when its turn comes. */
const PARTS = {
  hostile: () => [program('hostile-arguments.mjs', { cases: 10_000, pairs: 'all' })],
  faults: () => {
    const tree = treeWithAddon('hooks', { CA_BUILD_TEST_HOOKS: 'ON' });
    buildNativeTests(); // the stand-in for the CUDA backend
    const stub = join('build', 'native-tests', 'stub');
    replace(join(root, stub), join(tree, stub));
    return [program('faults.mjs', {}, tree)];
  },
  workers: () => [program('workers.mjs', { terminations: 1000, processes: 4 })],
  life: () => [program('life.mjs', { rounds: 10, aborts: 1000, exits: 50 })],
  drift: () => [program('drift.mjs', { calls: 10_000 })],
  safetensors: () => [program('fuzz-safetensors.mjs', { executions: 2_000_000 })],
  fuzz: () => [script('fuzz.cjs', 'seconds=300')],
  numbers: () => {
    buildNativeTests();
    return [
      ...[1, 2, 3, 4].map((seed) => [nativeTests, [`--random=${seed},500`, 'reference']]),
      [nativeTests, ['--long=1,20', 'reference']],
    ];
  },
  model: () => {
    buildNativeTests({ CA_BUILD_CUDA_TESTS: 'ON', CA_CUDA_MODEL: 'ON' });
    return [[cudaTests, ['--long=1,20', 'reference']]];
  },
  devices: () => {
    buildNativeTests({ CA_BUILD_CUDA_TESTS: 'ON', CA_CUDA_MODEL: 'ON' });
    return [1, 2, 3].map((kind) => [
      'env',
      [`CLUSTER_ATTENTION_CUDA_MODEL=first-device=${kind}`, cudaTests],
    ]);
  },
  kernels: () => [script('kernel-coverage.cjs')],
  guards: () => {
    buildNativeTests();
    return ['begin', 'end'].map((side) => [
      nativeTests,
      [`--guard=${side}`, '--sizes=130', 'reference'],
    ]);
  },
  asan: () => [script('sanitizers.cjs', 'asan')],
  tsan: () => [script('sanitizers.cjs', 'tsan')],
  valgrind: () => [script('sanitizers.cjs', 'valgrind')],
  mutations: () => [script('mutation-check.cjs')],
};

function buildNativeTests(more = {}) {
  cmake('build/native-tests', { CA_BUILD_ADDON: 'OFF', CA_BUILD_TESTS: 'ON', ...more });
}

/** The figures that a command printed, and what the last line of the others said. */
function figuresOf(output, title) {
  const figures = [];
  for (const line of output.split('\n')) {
    if (line.startsWith('{"figure"')) {
      const { figure, value } = JSON.parse(line);
      figures.push([figure, value]);
    } else if (
      /^\d+ passed, \d+ failed|planted bugs caught|never (?:launched|reached)$/.test(line)
    ) {
      figures.push([title, line]);
    }
  }
  return figures;
}

const wanted = process.argv.slice(2);
const unknown = wanted.filter((name) => PARTS[name] === undefined);
if (unknown.length > 0) throw new Error(`no such part: ${unknown}; parts: ${Object.keys(PARTS)}`);
const table = [];
for (const [name, commands] of Object.entries(PARTS)) {
  if (wanted.length > 0 && !wanted.includes(name)) continue;
  const begin = Date.now();
  for (const [command, args] of commands()) {
    const options = { cwd: root, encoding: 'utf8', maxBuffer: 1 << 28 };
    const { status, signal, stdout, stderr } = spawnSync(command, args, options);
    table.push(
      ...figuresOf(stdout, `${name}: ${args.filter((arg) => !arg.includes('/')).join(' ')}`),
    );
    if (status === 0) continue;
    process.exitCode = 1;
    table.push([name, `FAILED (${signal ?? status})`]);
    console.log(`${stdout}\n${stderr}`);
  }
  table.push([`${name}: seconds`, Math.round((Date.now() - begin) / 1000)]);
}
const width = Math.max(...table.map(([name]) => name.length));
console.log(`\n${'figure'.padEnd(width)}  value`);
for (const [name, value] of table) console.log(`${name.padEnd(width)}  ${value}`);
