'use strict';
// Runs the tests of the CUDA backend on the model of a GPU, built with gcov, and names the kernels that
// none of them launched, an instantiation each, and the lines of cuda/ that none reached. A kernel that
// never ran is no better than one that was never compiled.
//   node scripts/kernel-coverage.cjs       fails where a kernel did not run

const { spawnSync } = require('node:child_process');
const { readFileSync, readdirSync, rmSync } = require('node:fs');
const { join, relative, resolve } = require('node:path');
const { cmake } = require('./build.cjs');
const { root } = require('./trees.cjs');

const folder = join('build', 'kernel-coverage');
/** A function that takes one structure of parameters, as kernels do; templates name their result. */
const CANDIDATE =
  /^(?:void )?cluster_attention::cuda::((\w+)(?:<.*>)?)\(cluster_attention::cuda::\w+\)$/;

/** Files below `directory` with this ending. */
const filesBelow = (directory, ending) =>
  readdirSync(directory, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith(ending))
    .map((name) => join(directory, name));

function run(program, args, options = {}) {
  const { status, signal, error, stdout } = spawnSync(program, args, {
    cwd: join(root, folder),
    maxBuffer: 1 << 30,
    ...options,
  });
  if (error) throw error;
  if (status !== 0) throw new Error(`${program} failed (${signal ?? status})`);
  return stdout;
}

/** The names of all kernels in the sources. */
function namesOfKernels() {
  const sources = ['.cu', '.cuh'].flatMap((ending) => filesBelow(join(root, 'cuda'), ending));
  const found = sources.flatMap((file) =>
    [...readFileSync(file, 'utf8').matchAll(/__global__[^;{]*?\b(\w+)\(\s*const \w+ /g)].map(
      ([, name]) => name,
    ),
  );
  return new Set(found);
}

/** What gcov says of every source that a counted object was made of. */
function* counted() {
  for (const data of filesBelow(join(root, folder), '.gcda')) {
    const text = run('gcov', ['--json-format', '--stdout', data], { encoding: 'utf8' });
    for (const line of text.split('\n')) {
      if (line.startsWith('{')) yield* JSON.parse(line).files;
    }
  }
}

/** Adds to what has been counted of `key`. */
const add = (counts, key, count) => counts.set(key, (counts.get(key) ?? 0) + count);

/** What has been counted 0 times, in the order of its name. */
const never = (counts) =>
  [...counts]
    .filter(([, count]) => count === 0)
    .map(([key]) => key)
    .toSorted();

function main() {
  cmake(
    folder,
    {
      CMAKE_BUILD_TYPE: 'None',
      CMAKE_CXX_FLAGS: '-O1 --coverage',
      CA_BUILD_ADDON: 'OFF',
      CA_BUILD_CUDA_TESTS: 'ON',
      CA_CUDA_MODEL: 'ON',
    },
    'cuda_tests',
  );
  for (const data of filesBelow(join(root, folder), '.gcda')) rmSync(data);
  run(join(root, folder, 'cuda_tests'), [], { stdio: ['ignore', 'inherit', 'inherit'] });

  const names = namesOfKernels();
  const kernels = new Map(Array.from(names, (name) => [name, 0])); // launches, of all objects
  const lines = new Map();
  for (const { file, functions, lines: ofFile } of counted()) {
    const path = relative(root, resolve(root, folder, file));
    if (!path.startsWith('cuda/')) continue;
    for (const { demangled_name: name, execution_count: count } of functions) {
      const [, instantiation, kernel] = CANDIDATE.exec(name) ?? [];
      if (!names.has(kernel)) continue;
      add(kernels, instantiation.replaceAll('cluster_attention::cuda::', ''), count);
      if (instantiation !== kernel) kernels.delete(kernel);
    }
    for (const { line_number: number, count } of ofFile) add(lines, `${path}:${number}`, count);
  }
  const idle = never(kernels);
  const missed = never(lines);
  console.log(`${kernels.size} kernels, ${idle.length} never launched`);
  for (const kernel of idle) console.log(`  ${kernel}`);
  console.log(`${lines.size} lines of cuda/, ${missed.length} never reached`);
  for (const line of missed) console.log(`  ${line}`);
  if (idle.length > 0) process.exitCode = 1;
}

main();
