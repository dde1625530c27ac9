'use strict';
// Builds the native tests for 64-bit Arm and runs them under emulation, so that the NEON target is
// tested on a machine that has none; arguments go to the test program. A few minutes.

const { spawnSync } = require('node:child_process');
const { join } = require('node:path');
const { cmake, has } = require('./build.cjs');

const folder = 'build/arm-tests';
const compiler = 'aarch64-linux-gnu-g++';
const emulators = ['qemu-aarch64-static', 'qemu-aarch64'];
const libraries = '/usr/aarch64-linux-gnu'; // the compiler's package brings them along

/** The program that runs the tests: an emulator that is there. */
function findEmulator() {
  const emulator = emulators.find(has);
  if (has(compiler) && emulator !== undefined) return emulator;
  const missing = has(compiler) ? emulators.join(' or ') : compiler;
  throw new Error(
    `${missing} was not found (on Debian or Ubuntu: apt-get install g++-aarch64-linux-gnu qemu-user-static)`,
  );
}

try {
  const emulator = findEmulator();
  cmake(folder, {
    CMAKE_SYSTEM_NAME: 'Linux',
    CMAKE_SYSTEM_PROCESSOR: 'aarch64',
    CMAKE_CXX_COMPILER: compiler,
    CA_BUILD_ADDON: 'OFF',
    CA_BUILD_TESTS: 'ON',
  });
  const program = join(__dirname, '..', folder, 'native_tests');
  const { status, signal } = spawnSync(
    emulator,
    ['-L', libraries, program, ...process.argv.slice(2)],
    { stdio: 'inherit' },
  );
  if (signal) console.error(`Arm tests: ended by ${signal}`);
  process.exitCode = status ?? 1;
} catch (error) {
  console.error(`Arm tests: ${error.message}`);
  process.exitCode = 1;
}
