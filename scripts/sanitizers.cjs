'use strict';
// The suites under tools that see what a test cannot.
//   node scripts/sanitizers.cjs asan [native filter ...]   AddressSanitizer and UBSan: native tests,
//                                                          then the JavaScript suite's quick share
//   node scripts/sanitizers.cjs tsan [native filter ...]   ThreadSanitizer: native tests with 1, 2,
//                                                          3, 8 and 16 threads
//   node scripts/sanitizers.cjs valgrind                   memcheck: a sample of the native tests
// Each first proves itself awake: test/hooks/planted.cc has a bug for each tool, and the addon that
// is built for asan one for the sanitizer inside Node.

const { spawnSync } = require('node:child_process');
const { copyFileSync, mkdirSync } = require('node:fs');
const { join } = require('node:path');
const { addonDefinitions, cmake } = require('./build.cjs');
const { copyTree, root } = require('./trees.cjs');

const FLAGS = {
  asan: '-fsanitize=address,undefined -fno-sanitize-recover=undefined',
  tsan: '-fsanitize=thread',
  valgrind: '-O1',
};
const ADDON = 'cluster_attention.node';
const THREADS = [1, 2, 3, 8, 16];
/** Tests of the pool and of what runs on it; every operation promises the same bits on any number. */
const TSAN_FILTERS = ['threads', 'thread pool', 'workspace'];
const VALGRIND_FILTERS = ['order', 'top-k: ', 'softmax', 'hash: ', 'broadcast: '];
/** Suites that reach all operations without fresh processes of their own. */
const SUITES = [
  'hostile-input',
  'arguments',
  'gradients',
  'non-finite',
  'vjp',
  'async',
  'options',
  'found',
];

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

/** Runs the native tests; what they say of themselves. */
function runNative(tool, program, args, environment) {
  const command = tool === 'valgrind' ? 'valgrind' : program;
  const before = tool === 'valgrind' ? ['-q', '--error-exitcode=9', program] : [];
  const { status, signal, stdout, stderr } = start(command, [...before, ...args], environment);
  const summary = /\d+ passed, \d+ failed/.exec(stdout)?.[0] ?? 'no summary';
  figure(`${tool}: native tests ${args.join(' ')}`, summary);
  if (status !== 0) fail(`${tool} ${args}: ${signal ?? status}\n${stdout}\n${stderr}`);
}

/** Where the compiler keeps a library. */
const library = (name) => start('c++', [`-print-file-name=${name}`]).stdout.trim();

/** A copy of the package with the addon of build('asan'), and what Node needs to load it. */
function makeTree() {
  const tree = copyTree('asan');
  const folder = join(tree, 'build', 'Release');
  mkdirSync(folder, { recursive: true });
  copyFileSync(join(root, 'build', 'asan-addon', ADDON), join(folder, ADDON));
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
  const found = status !== 0 && /heap-buffer-overflow/.test(stderr);
  if (!found) fail(`asan sleeps inside Node\n${stderr}`);
  figure('asan: planted bug inside Node', found ? 'found' : 'MISSED');
}

/** The JavaScript suites on an addon with the address sanitizer, whose library comes first. */
function runSuites({ tree, environment }) {
  const vitest = join(root, 'node_modules', 'vitest', 'vitest.mjs');
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [vitest, 'run', '--testTimeout=600000', ...SUITES.map((suite) => `test/lib/${suite}`)],
    { cwd: tree, encoding: 'utf8', env: environment, maxBuffer: 1 << 28 },
  );
  // oxlint-disable-next-line no-control-regex
  const plain = stdout.replace(/\x1b\[[0-9;]*m/g, '');
  figure('asan: JavaScript tests', /Tests\s+(.*)/.exec(plain)?.[1] ?? 'no summary');
  if (status !== 0) fail(`asan: the JavaScript suites\n${plain}\n${stderr}`);
}

const tools = {
  asan(filters) {
    proveAwake('asan', {
      heap: /heap-buffer-overflow|insufficient space/, // whichever of the two sees it first
      free: /heap-use-after-free/,
      overflow: /signed integer overflow/,
    });
    const program = join(build('asan'), 'native_tests');
    const tree = makeTree();
    proveAwakeInNode(tree);
    runSuites(tree);
    runNative('asan', program, filters);
  },
  tsan(filters) {
    proveAwake('tsan', { race: /data race/ });
    const program = join(build('tsan'), 'native_tests');
    for (const threads of THREADS) {
      runNative('tsan', program, [
        `--threads=${threads}`,
        ...(filters.length > 0 ? filters : TSAN_FILTERS),
      ]);
    }
  },
  valgrind() {
    proveAwake('valgrind', { heap: /Invalid (read|write)/, uninitialised: /uninitialised value/ });
    // The plain build: memcheck says that there is no AVX-512, and the tests take other kernels.
    cmake('build/native-tests', { CA_BUILD_ADDON: 'OFF', CA_BUILD_TESTS: 'ON' });
    runNative('valgrind', join(root, 'build/native-tests/native_tests'), VALGRIND_FILTERS);
  },
};

const [tool, ...filters] = process.argv.slice(2);
if (tools[tool] === undefined) {
  console.error(`usage: node scripts/sanitizers.cjs ${Object.keys(tools).join('|')}`);
  process.exitCode = 2;
} else {
  tools[tool](filters);
}
