#!/usr/bin/env node
'use strict';
// Takes the place of node-gyp for prebuildify, which runs it in the folder whose build/Release it
// then reads. node-gyp itself would download Node's headers; CMake finds them in an npm package.

const { join } = require('node:path');
const { addonDefinitions, cmake } = require('./build.cjs');
const { buildBackend } = require('./build-cuda.cjs');
const { wantsBackend } = require('./prebuild.cjs');

const { PREBUILD_ARCH: arch, PREBUILD_PLATFORM: platform } = process.env;

const cross = {
  CMAKE_SYSTEM_NAME: 'Linux',
  CMAKE_SYSTEM_PROCESSOR: 'aarch64',
  CMAKE_CXX_COMPILER: 'aarch64-linux-gnu-g++',
};

const folder = join('build', 'prebuild', `${platform}-${arch}`);
const output = { CA_OUTPUT_DIRECTORY: join(process.cwd(), 'build', 'Release') };

cmake(join(folder, 'cmake'), {
  ...addonDefinitions(),
  ...(arch !== process.arch && cross),
  ...output,
});

// The backend for the GPUs of a release comes along when it is asked for: CLUSTER_ATTENTION_CUDA=release.
if (wantsBackend(arch)) buildBackend(join(folder, 'cuda'), output);
