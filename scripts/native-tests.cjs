'use strict';
// Builds and runs the native tests, those of the CUDA backend on a model of a GPU; arguments go to
// the test programs.

const { spawnSync } = require('node:child_process');
const { join } = require('node:path');
const { cmake } = require('./build.cjs');

const folder = 'build/native-tests';
const NOTHING_RAN = 2; // the exit code of a program none of whose tests was selected

function run(name) {
  const program = join(__dirname, '..', folder, name);
  const { status, signal } = spawnSync(program, process.argv.slice(2), { stdio: 'inherit' });
  if (signal) console.error(`${name}: ended by ${signal}`);
  return status ?? 1;
}

try {
  cmake(folder, {
    CA_BUILD_ADDON: 'OFF',
    CA_BUILD_TESTS: 'ON',
    CA_BUILD_CUDA_TESTS: 'ON',
    CA_CUDA_MODEL: 'ON',
  });
  const results = ['native_tests', 'cuda_tests'].map(run);
  const ran = results.filter((status) => status !== NOTHING_RAN);
  process.exitCode = ran.length === 0 ? NOTHING_RAN : Math.max(...ran);
} catch (error) {
  console.error(`native tests: ${error.message}`);
  process.exitCode = 1;
}
