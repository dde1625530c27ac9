'use strict';
// Builds and runs the native tests; arguments go to the test program.

const { spawnSync } = require('node:child_process');
const { join } = require('node:path');
const { cmake } = require('./build.cjs');

const folder = 'build/native-tests';

try {
  cmake(folder, { CA_BUILD_ADDON: 'OFF', CA_BUILD_TESTS: 'ON' });
  const program = join(__dirname, '..', folder, 'native_tests');
  const { status, signal } = spawnSync(program, process.argv.slice(2), { stdio: 'inherit' });
  if (signal) console.error(`native tests: ended by ${signal}`);
  process.exitCode = status ?? 1;
} catch (error) {
  console.error(`native tests: ${error.message}`);
  process.exitCode = 1;
}
