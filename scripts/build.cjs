'use strict';
// Builds the native addon with CMake: the only way it is built, whoever asks (npm, node-gyp,
// prebuildify). Headers come from npm packages, nothing is downloaded.
//   node scripts/build.cjs  ->  build/Release/cluster_attention.node

const { spawnSync } = require('node:child_process');
const { existsSync, readFileSync, rmSync } = require('node:fs');
const { availableParallelism } = require('node:os');
const { join } = require('node:path');

const root = join(__dirname, '..');

/** Whether a program runs at all. */
function has(program) {
  return spawnSync(program, ['--version'], { stdio: 'ignore' }).status === 0;
}

/** Why a build cannot even start, with what to install; undefined when it can. */
function missingTools() {
  const hint = 'on Debian or Ubuntu: apt-get install cmake g++ make';
  if (!has('cmake')) return `CMake 3.20 or newer was not found (${hint})`;
  if (process.platform === 'win32') return undefined; // Visual Studio is found by CMake itself
  const compilers = process.env.CXX ? [process.env.CXX.split(' ')[0]] : ['c++', 'g++', 'clang++'];
  if (!compilers.some(has)) return `a C++17 compiler was not found (${hint})`;
  if (!has('ninja') && !has('make')) return `neither ninja nor make was found (${hint})`;
  return undefined;
}

function run(program, args) {
  const { status, error } = spawnSync(program, args, { cwd: root, stdio: 'inherit' });
  if (error) throw error;
  if (status !== 0) throw new Error(`${program} ${args.slice(0, 2).join(' ')} failed`);
}

/** CMake refuses a build folder that was copied here from another place. */
function dropForeignCache(build) {
  const cache = join(build, 'CMakeCache.txt');
  const home = `CMAKE_HOME_DIRECTORY:INTERNAL=${root.replaceAll('\\', '/')}\n`;
  if (existsSync(cache) && !readFileSync(cache, 'utf8').includes(home)) {
    rmSync(build, { recursive: true });
  }
}

/** Configures and builds `folder` (relative to the package) with these CMake definitions. */
function cmake(folder, definitions, target = 'all') {
  const missing = missingTools();
  if (missing !== undefined) throw new Error(missing);
  const build = join(root, folder);
  dropForeignCache(build);
  const fresh = !existsSync(join(build, 'CMakeCache.txt'));
  const generator = fresh && has('ninja') ? ['-G', 'Ninja'] : []; // an old cache keeps its own
  const defined = Object.entries({ CMAKE_BUILD_TYPE: 'Release', ...definitions });
  const settings = defined.map(([name, value]) => `-D${name}=${value}`);
  run('cmake', ['-S', root, '-B', build, ...generator, ...settings]);
  const jobs = String(availableParallelism());
  const wanted = target === 'all' ? [] : ['--target', target];
  run('cmake', ['--build', build, '--config', 'Release', '--parallel', jobs, ...wanted]);
}

/** What CMake is told to build the addon. */
function addonDefinitions() {
  return {
    CA_BUILD_ADDON: 'ON',
    CA_BUILD_TESTS: 'OFF',
    CA_NODE_INCLUDE_DIRS: require('node-api-headers').include_dir,
    CA_PACKAGE_VERSION: require('../package.json').version,
  };
}

/** The addon, and the CUDA backend where it is wanted. */
function buildAddon({ installing = false } = {}) {
  cmake('build/addon', addonDefinitions());
  require('./build-cuda.cjs').buildWantedBackend(installing); // here: it needs this file
}

module.exports = { addonDefinitions, buildAddon, cmake, has };

if (require.main === module) {
  try {
    buildAddon();
  } catch (error) {
    console.error(`cluster-attention: the native addon was not built: ${error.message}`);
    process.exitCode = 1;
  }
}
