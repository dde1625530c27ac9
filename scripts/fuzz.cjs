'use strict';
// Fuzzes the addon's operations, over a fake Node-API, with libFuzzer, AddressSanitizer and UBSan
// (test/fuzz), and the reader of safetensors with mutated files. Needs clang.
//   npm run fuzz -- [seconds=60] [runs=500000] [keep=40] [operation ...]
// Each operation is a target twice: with requests that its decoder accepts, and with damaged ones;
// both for `runs` executions or `seconds`, whichever ends first. They start from the corpus in
// test/fuzz/corpus/operations.json. With `keep`, the fewest inputs that reach all that was reached
// are written there, at most about that many of an operation. An input that breaks something is kept in
// build/fuzz/found and named with the command that repeats it.

const { spawnSync } = require('node:child_process');
const { createHash } = require('node:crypto');
const { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');
const { addonDefinitions, cmake, has } = require('./build.cjs');

const root = join(__dirname, '..');
const build = join(root, 'build', 'fuzz');
const program = join(build, 'fuzz_operations');
const corpusFile = join(root, 'test', 'fuzz', 'corpus', 'operations.json');
const corpusOf = (operation) => join(build, 'corpus', operation);

const given = process.argv.slice(2);
const number = (name, fallback) => {
  const argument = given.find((each) => each.startsWith(`${name}=`));
  return argument === undefined ? fallback : Number(argument.slice(name.length + 1));
};
const wanted = given.filter((each) => !each.includes('='));

/** Operations that need no device, as native/binding/addon.cc exports them. */
function operations() {
  const source = readFileSync(join(root, 'native', 'binding', 'addon.cc'), 'utf8');
  const names = Array.from(source.matchAll(/add_operation<\w+>\(\s*env, exports,\s*"(\w+)"/g)).map(
    ([, name]) => name,
  );
  const onHost = names.filter((name) => !['upload', 'download', 'probe'].includes(name));
  const unknown = wanted.filter((name) => !onHost.includes(name));
  if (unknown.length > 0) throw new Error(`no such operation: ${unknown}; there are: ${onHost}`);
  return wanted.length > 0 ? wanted : onHost;
}

function compile() {
  const compiler = [process.env.CXX, 'clang++', 'clang++-14'].find((name) => {
    return name?.includes('clang') && has(name);
  });
  if (compiler === undefined) throw new Error('clang++ was not found: apt-get install clang');
  cmake('build/fuzz', {
    ...addonDefinitions(),
    CMAKE_CXX_COMPILER: compiler,
    CMAKE_CXX_FLAGS_RELEASE: '-O1',
    CA_BUILD_ADDON: 'OFF',
    CA_BUILD_FUZZERS: 'ON',
  });
}

/** Files for libFuzzer of the inputs that the repository keeps, as base64. */
function unpack(operation, kept) {
  const folder = corpusOf(operation);
  mkdirSync(folder, { recursive: true });
  for (const text of kept[operation] ?? []) {
    const bytes = Buffer.from(text, 'base64');
    writeFileSync(join(folder, createHash('sha1').update(bytes).digest('hex')), bytes);
  }
  return folder;
}

function run(args) {
  const options = { cwd: build, encoding: 'utf8', maxBuffer: 1 << 28 };
  const { status, stdout, stderr } = spawnSync(program, args, options);
  return { failed: status !== 0, output: `${stdout}${stderr}` };
}

// Leaks are looked for once, at the end of a target: after each input, as libFuzzer would, it takes
// longer than the input itself.
const LIMITS = [
  '-max_len=160',
  '-timeout=60',
  '-rss_limit_mb=4096',
  '-entropic=0',
  '-detect_leaks=0',
];

/** One target to its end; the number of its executions. */
function fuzz(operation, hostile, kept) {
  const found = join(build, 'found');
  mkdirSync(found, { recursive: true });
  const target = [`--operation=${operation}`, ...(hostile ? ['--hostile'] : [])];
  const { failed, output } = run([
    ...target,
    ...LIMITS,
    `-runs=${number('runs', 500_000)}`,
    `-max_total_time=${number('seconds', 60)}`,
    `-artifact_prefix=${join(found, `${operation}-`)}`,
    '-print_final_stats=1',
    unpack(operation, kept),
  ]);
  if (failed) {
    const file = /Test unit written to (.*)/.exec(output)?.[1] ?? 'FILE';
    const again = `${program} ${target.join(' ')} --print ${file}`;
    console.log(`FAILED ${target.join(' ')}\n${output.slice(-6000)}\nagain: ${again}`);
    process.exitCode = 1;
  }
  const executions = Number(/number_of_executed_units: *(\d+)/.exec(output)?.[1] ?? 0);
  console.log(JSON.stringify({ figure: `fuzzing: ${target.join(' ')}`, value: executions }));
  return executions;
}

/** The fewest inputs that reach as much; a share of them when they are too many. */
function reduce(operation, most) {
  const folder = join(build, 'reduced');
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder);
  const args = [`--operation=${operation}`, ...LIMITS, '-merge=1', folder, corpusOf(operation)];
  const { failed, output } = run(args);
  if (failed) throw new Error(`the corpus of ${operation} cannot be reduced:\n${output}`);
  const inputs = readdirSync(folder)
    .map((name) => readFileSync(join(folder, name)))
    .toSorted((a, b) => a.length - b.length || Buffer.compare(a, b));
  // Short and long ones alike.
  const stride = Math.max(1, Math.ceil(inputs.length / most));
  return inputs.filter((_, i) => i % stride === 0).map((bytes) => bytes.toString('base64'));
}

function main() {
  compile();
  const kept = JSON.parse(readFileSync(corpusFile, 'utf8'));
  const all = operations();
  let executions = 0;
  for (const operation of all) {
    for (const hostile of [false, true]) executions += fuzz(operation, hostile, kept);
  }
  const figure = 'fuzzing: executions of all operations';
  console.log(JSON.stringify({ figure, value: executions }));
  const keep = number('keep', 0);
  if (keep > 0) {
    for (const operation of all) kept[operation] = reduce(operation, keep);
    writeFileSync(corpusFile, `${JSON.stringify(kept, null, 2)}\n`);
  }
  if (wanted.length > 0) return;
  const reader = join(root, 'test', 'hard', 'fuzz-safetensors.mjs');
  const { status } = spawnSync(process.execPath, [reader], { stdio: 'inherit' });
  if (status !== 0) process.exitCode = 1;
}

try {
  main();
} catch (error) {
  console.error(`fuzz: ${error.message}`);
  process.exitCode = 1;
}
