'use strict';
// Builds the CUDA backend beside the addon: build/Release/cluster_attention_cuda.so. What the
// environment variable CLUSTER_ATTENTION_CUDA says:
//   unset     an install builds it where there is a CUDA compiler, as for 1; a later build keeps one
//             that was built here up to date
//   0         do not build it
//   1         build it for the GPU of this machine, else for Hopper (90a)
//   80;90a    build it for these (CMAKE_CUDA_ARCHITECTURES), "release" for all
//   node scripts/build-cuda.cjs    builds it even if unset or 0, and fails when that fails

const { existsSync, rmSync } = require('node:fs');
const { join } = require('node:path');
const { cmake, has } = require('./build.cjs');

const root = join(__dirname, '..');
const buildFolder = 'build/cuda';
const backend = join(root, 'build', 'Release', 'cluster_attention_cuda.so');

/** Whether there is a CUDA compiler: where cuda/backend.cmake looks. */
function hasCompiler() {
  const { CUDACXX, CUDA_HOME } = process.env;
  const folders = [CUDA_HOME && join(CUDA_HOME, 'bin'), '/usr/local/cuda/bin', '/opt/cuda/bin'];
  const files = [CUDACXX, ...folders.map((folder) => folder && join(folder, 'nvcc'))];
  return has('nvcc') || files.some((file) => file && existsSync(file));
}

const wasBuilt = () => existsSync(join(root, buildFolder, 'CMakeCache.txt'));

/** What CMake is told; undefined when no backend is wanted. */
function cudaDefinitions(asked, wantedUnasked) {
  if (process.platform !== 'linux' || asked === '0') return undefined;
  if (asked === '' && !wantedUnasked()) return undefined;
  return { CA_BUILD_CUDA: 'ON', CA_CUDA_ARCHITECTURES: asked === '1' ? '' : asked };
}

/** In a folder of its own, so that a compiler that does not work cannot harm the addon. */
function build(definitions, folder = buildFolder) {
  const settings = { CA_BUILD_ADDON: 'OFF', CA_BUILD_TESTS: 'OFF', ...definitions };
  cmake(folder, settings, 'cluster_attention_cuda');
}

/** For the GPUs asked for, in another folder and with more definitions. */
function buildBackend(folder, definitions) {
  const asked = process.env.CLUSTER_ATTENTION_CUDA;
  if (!hasCompiler()) throw new Error(`there is no nvcc for CLUSTER_ATTENTION_CUDA=${asked}`);
  build({ ...cudaDefinitions(asked, () => true), ...definitions }, folder);
}

/**
 * Beside a build of the addon, which it cannot harm: a compiler that fails leaves the package
 * without a backend, and with a message.
 */
function buildWantedBackend(installing) {
  const asked = process.env.CLUSTER_ATTENTION_CUDA ?? '';
  const definitions = cudaDefinitions(asked, installing ? hasCompiler : wasBuilt);
  try {
    if (definitions !== undefined) return build(definitions);
  } catch (error) {
    console.error(`cluster-attention: the CUDA backend was not built: ${error.message}`);
    console.error('cluster-attention: the package computes on the CPU alone');
  }
  rmSync(backend, { force: true }); // one of an older build may not fit
}

module.exports = { buildBackend, buildWantedBackend, hasCompiler };

if (require.main === module) {
  const asked = process.env.CLUSTER_ATTENTION_CUDA ?? '';
  try {
    build(cudaDefinitions(asked === '0' ? '' : asked, () => true));
  } catch (error) {
    console.error(`cluster-attention: the CUDA backend was not built: ${error.message}`);
    process.exitCode = 1;
  }
}
