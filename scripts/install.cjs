'use strict';
// Runs when the package is installed: keeps the prebuilt addon when it loads on this machine,
// otherwise builds from source. `npm_config_build_from_source` skips the first.

const { join } = require('node:path');
const nodeGypBuild = require('node-gyp-build');
const { buildAddon } = require('./build.cjs');

const root = join(__dirname, '..');

/** npm's --build-from-source: true, or a list of the packages that it is meant for. */
function wantsSource() {
  const value = process.env.npm_config_build_from_source ?? '';
  return value === 'true' || value.split(',').includes('cluster-attention');
}

/** Why the addon that is there does not load; undefined when it does. */
function loadFailure() {
  try {
    nodeGypBuild(root);
    return undefined;
  } catch (error) {
    return error.message.trim();
  }
}

function install() {
  const failure = wantsSource() ? 'a build from source was asked for' : loadFailure();
  if (failure === undefined) return;
  console.log(`cluster-attention: building the native addon from source: ${failure}`);
  try {
    buildAddon();
  } catch (error) {
    console.error(`cluster-attention: the native addon was not built: ${error.message}`);
    console.error('cluster-attention: then run "npm rebuild cluster-attention"');
    process.exitCode = 1;
  }
}

install();
