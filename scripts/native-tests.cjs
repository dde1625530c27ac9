'use strict';
// Builds and runs the native tests, those of the CUDA backend on a model of a GPU; arguments go to
// the test programs.

const { spawn } = require('node:child_process');
const { join } = require('node:path');
const { cmake } = require('./build.cjs');

const folder = 'build/native-tests';
const NOTHING_RAN = 2; // the exit code of a program none of whose tests was selected

/** What is run, all at once; the model of a GPU is slow and is shared out to two processes. */
const PROGRAMS = [['native_tests'], ['cuda_tests', '--part=0,2'], ['cuda_tests', '--part=1,2']];

/** Resolves to the exit code of a program, whose output is printed when it ends. */
function run([name, ...options]) {
  const program = join(__dirname, '..', folder, name);
  return new Promise((resolve) => {
    const child = spawn(program, [...options, ...process.argv.slice(2)], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const output = [];
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', (data) => output.push(data));
    child.on('error', (error) => output.push(Buffer.from(`${error.message}\n`)));
    child.on('close', (status, signal) => {
      process.stdout.write(`${[name, ...options].join(' ')}: ${Buffer.concat(output).toString()}`);
      if (signal) console.error(`${name}: ended by ${signal}`);
      resolve(status ?? 1);
    });
  });
}

async function main() {
  cmake(folder, {
    CA_BUILD_ADDON: 'OFF',
    CA_BUILD_TESTS: 'ON',
    CA_BUILD_CUDA_TESTS: 'ON',
    CA_CUDA_MODEL: 'ON',
  });
  const results = await Promise.all(PROGRAMS.map(run));
  const ran = results.filter((status) => status !== NOTHING_RAN);
  process.exitCode = ran.length === 0 ? NOTHING_RAN : Math.max(...ran);
}

main().catch((error) => {
  console.error(`native tests: ${error.message}`);
  process.exitCode = 1;
});
