'use strict';
// The suites under tools that see what a test cannot.
//   node scripts/sanitizers.cjs asan       AddressSanitizer and UBSan: test/lib and test/hard, and
//                                          all native tests, those of kernels for GPUs too
//   node scripts/sanitizers.cjs tsan       ThreadSanitizer: all native tests but the comparisons with
//                                          references, whose plain loops are slow there, with 1, 2,
//                                          3, 8 and 16 threads, each on another instruction set; then
//                                          the threads of kernels for GPUs, on the model
//   node scripts/sanitizers.cjs valgrind   memcheck: a sample of the native tests
// After asan and tsan may stand "quick", for a share that takes minutes, or parts of the names of
// native tests, and then only those are run. On a core of its own each takes hours, most of them for
// the kernels for GPUs.
// Each first proves itself awake: test/hooks/planted.cc has a bug for each tool, the tests of the
// model kernels that are wrong, and the addon that is built for asan a bug for the sanitizer inside
// Node.

const { spawnSync } = require('node:child_process');
const { join } = require('node:path');
const { addonDefinitions, cmake } = require('./build.cjs');
const { copyTree, replace, root } = require('./trees.cjs');

const FLAGS = {
  asan: '-fsanitize=address,undefined -fno-sanitize-recover=undefined',
  tsan: '-fsanitize=thread',
  valgrind: '-O1',
};
const ADDON = 'cluster_attention.node';
const NOTHING_RAN = 2; // the exit code of a program none of whose tests was selected
const THREADS = [1, 2, 3, 8, 16];
/** What AddressSanitizer or UBSan, whichever sees it first, says of a read outside of an array. */
const READ_OUTSIDE = /heap-buffer-overflow|insufficient space/;
/** For tsan: tests of the pool and of what runs on it. */
const QUICK_FILTERS = {
  asan: ['threads', 'order', 'workspace'],
  tsan: ['threads', 'thread pool', 'workspace'],
};
/** The same of kernels for GPUs, and the tests of the model, whose kernels are wrong on purpose. */
const QUICK_KERNELS = ['CUDA hash', 'CUDA broadcast', 'CUDA attention: one launch'];
const MODEL = 'CUDA model';
const WRONG_KERNELS = {
  asan: { 'CUDA model: what stands behind shared memory': /use-after-poison/ },
  tsan: { 'CUDA model: a missing barrier': /data race/ },
};
const VALGRIND_FILTERS = ['order', 'top-k: ', 'softmax', 'hash: ', 'broadcast: '];
/** Suites of the addon, not of the programs around it; `quick`: those without fresh processes. */
const SUITES = {
  all: ['test/lib', 'test/hard'],
  quick: [
    'test/lib/hostile-input',
    'test/lib/arguments',
    'test/lib/gradients',
    'test/lib/non-finite',
    'test/lib/vjp',
    'test/lib/async',
    'test/lib/options',
    'test/lib/found',
  ],
};

function start(program, args, environment = {}) {
  return spawnSync(program, args, {
    cwd: root,
    encoding: 'utf8',
    env: { ...process.env, ...environment },
    maxBuffer: 1 << 28,
  });
}

function figure(name, value) {
  console.log(JSON.stringify({ figure: name, value }));
}

function fail(message) {
  console.log(`FAILED ${message}`);
  process.exitCode = 1;
}

/** Builds native tests (and the addon) with a sanitizer; the folder of the build. */
function build(tool) {
  const folder = `build/${tool}-native`;
  cmake(folder, {
    ...addonDefinitions(),
    CA_BUILD_ADDON: tool === 'asan' ? 'ON' : 'OFF',
    CA_BUILD_TEST_HOOKS: tool === 'asan' ? 'ON' : 'OFF',
    CA_BUILD_TESTS: 'ON',
    CA_BUILD_CUDA_TESTS: 'ON',
    CA_CUDA_MODEL: 'ON',
    CMAKE_CXX_FLAGS: `${FLAGS[tool]} -fno-omit-frame-pointer -g1`,
    CMAKE_CXX_FLAGS_RELEASE: '-O1',
    CA_OUTPUT_DIRECTORY: join(root, 'build', 'asan-addon'),
  });
  return join(root, folder);
}

/** A program with one bug for each tool, which must be found. */
function proveAwake(tool, bugs) {
  const program = join(root, 'build', `planted-${tool}`);
  const source = join(root, 'test', 'hooks', 'planted.cc');
  const flags = [...FLAGS[tool].split(' '), '-std=c++17', '-O1', '-g', '-pthread'];
  const built = start('c++', [...flags, source, '-o', program]);
  if (built.status !== 0) throw new Error(built.stderr);
  for (const [bug, expected] of Object.entries(bugs)) {
    const [command, args] =
      tool === 'valgrind'
        ? ['valgrind', ['-q', '--error-exitcode=9', program, bug]]
        : [program, [bug]];
    const { status, stderr } = start(command, args);
    const found = status !== 0 && expected.test(stderr);
    if (!found) fail(`${tool} sleeps: the planted bug "${bug}" was not found\n${stderr}`);
    figure(`${tool}: planted bug "${bug}"`, found ? 'found' : 'MISSED');
  }
}

/** Runs native tests; false where none has one of the names. */
function runNative(tool, program, args, environment) {
  const command = tool === 'valgrind' ? 'valgrind' : program;
  const before = tool === 'valgrind' ? ['-q', '--error-exitcode=9', program] : [];
  const { status, signal, stdout, stderr } = start(command, [...before, ...args], environment);
  if (status === NOTHING_RAN) return false;
  const summary = /\d+ passed, \d+ failed/.exec(stdout)?.[0] ?? 'no summary';
  figure(`${tool}: native tests ${args.join(' ')}`, summary);
  if (status !== 0) fail(`${tool} ${args}: ${signal ?? status}\n${stdout}\n${stderr}`);
  return true;
}

/** Runs the tests of kernels for GPUs on the model, after some whose kernels are wrong. */
function runModel(tool, folder, args) {
  const program = join(folder, 'cuda_tests');
  for (const [test, expected] of Object.entries(WRONG_KERNELS[tool])) {
    const { status, stderr } = start(program, [test]);
    const found = status !== 0 && expected.test(stderr);
    if (!found) fail(`${tool} sleeps: nothing was found in "${test}"\n${stderr}`);
    figure(`${tool}: wrong kernel of "${test}"`, found ? 'found' : 'MISSED');
  }
  return runNative(tool, program, [`--without=${MODEL}`, ...args]);
}

/** Where the compiler keeps a library. */
const library = (name) => start('c++', [`-print-file-name=${name}`]).stdout.trim();

/**
 * A copy of the package with the addon of build('asan'), and what Node needs to load it. The
 * stand-in for the CUDA backend and the model of a GPU are instrumented too.
 */
function makeTree() {
  const tree = copyTree('asan');
  const built = join(root, 'build');
  replace(join(built, 'asan-addon', ADDON), join(tree, 'build', 'Release', ADDON));
  const tests = join(tree, 'build', 'native-tests');
  for (const backend of ['stub', 'model']) {
    replace(join(built, 'asan-native', backend), join(tests, backend));
  }
  const environment = {
    LD_PRELOAD: `${library('libasan.so')} ${library('libubsan.so')}`,
    // Node leaks on purpose, and has its own handlers of signals.
    ASAN_OPTIONS: 'detect_leaks=0:allocator_may_return_null=1:handle_segv=0',
  };
  return { tree, environment: { ...process.env, ...environment } };
}

/** Inside Node too the sanitizer must find what is wrong. */
function proveAwakeInNode({ tree, environment }) {
  const script = `require(${JSON.stringify(join(tree, 'build', 'Release', ADDON))}).readOutside()`;
  const options = { encoding: 'utf8', env: environment };
  const { status, stderr } = spawnSync(process.execPath, ['-e', script], options);
  const found = status !== 0 && READ_OUTSIDE.test(stderr);
  if (!found) fail(`asan sleeps inside Node\n${stderr}`);
  figure('asan: planted bug inside Node', found ? 'found' : 'MISSED');
}

/** The JavaScript suites on an addon with the address sanitizer, whose library comes first. */
function runSuites({ tree, environment }, suites) {
  const vitest = join(root, 'node_modules', 'vitest', 'vitest.mjs');
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [vitest, 'run', '--testTimeout=600000', ...suites],
    { cwd: tree, encoding: 'utf8', env: environment, maxBuffer: 1 << 28 },
  );
  // oxlint-disable-next-line no-control-regex
  const plain = stdout.replace(/\x1b\[[0-9;]*m/g, '');
  figure('asan: JavaScript tests', /Tests\s+(.*)/.exec(plain)?.[1] ?? 'no summary');
  if (status !== 0) fail(`asan: the JavaScript suites\n${plain}\n${stderr}`);
}

const tools = {
  asan({ quick, filters }) {
    proveAwake('asan', {
      heap: READ_OUTSIDE,
      free: /heap-use-after-free/,
      overflow: /signed integer overflow/,
    });
    const folder = build('asan');
    if (filters.length === 0) {
      const tree = makeTree();
      proveAwakeInNode(tree);
      runSuites(tree, quick ? SUITES.quick : SUITES.all);
    }
    return [
      runNative('asan', join(folder, 'native_tests'), quick ? QUICK_FILTERS.asan : filters),
      runModel('asan', folder, quick ? QUICK_KERNELS : filters),
    ];
  },
  tsan({ quick, filters }) {
    proveAwake('tsan', { race: /data race/ });
    const folder = build('tsan');
    const program = join(folder, 'native_tests');
    const ran = THREADS.map((threads, i) => {
      const chosen = quick ? QUICK_FILTERS.tsan : filters;
      // One instruction set after the other: what threads do is the same code in all.
      const share = chosen.length > 0 ? chosen : [`--set=${i}`, '--without=reference'];
      return runNative('tsan', program, [`--threads=${threads}`, ...share]);
    });
    return [...ran, runModel('tsan', folder, quick ? QUICK_KERNELS : filters)];
  },
  valgrind() {
    proveAwake('valgrind', { heap: /Invalid (read|write)/, uninitialised: /uninitialised value/ });
    // The plain build: memcheck says that there is no AVX-512, and the tests take other kernels.
    cmake('build/native-tests', { CA_BUILD_ADDON: 'OFF', CA_BUILD_TESTS: 'ON' });
    return [runNative('valgrind', join(root, 'build/native-tests/native_tests'), VALGRIND_FILTERS)];
  },
};

const [tool, ...rest] = process.argv.slice(2);
const quick = rest[0] === 'quick';
const filters = quick ? [] : rest;
if (tools[tool] === undefined) {
  console.error(`usage: node scripts/sanitizers.cjs ${Object.keys(tools).join('|')}`);
  process.exitCode = 2;
} else {
  const ran = tools[tool]({ quick, filters });
  if (!ran.includes(true)) fail('no test has such a name');
}
