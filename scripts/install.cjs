'use strict';
// Runs when the package is installed: keeps the prebuilt addon when it loads on this machine,
// otherwise builds from source. `npm_config_build_from_source` skips the first; so does a build that
// was made here before, which is brought up to date.

const { existsSync } = require('node:fs');
const { join } = require('node:path');
const { buildAddon } = require('./build.cjs');

const root = join(__dirname, '..');

/** npm's --build-from-source: true, or a list of the packages that it is meant for. */
function wantsSource() {
  const value = process.env.npm_config_build_from_source ?? '';
  return value === 'true' || value.split(',').includes('cluster-attention');
}

/** Why no addon that is there loads; undefined when one does. */
function loadFailure() {
  const loader = join(root, 'dist', 'addon.js');
  if (!existsSync(loader)) return 'this is a checkout of the source'; // the library is compiled later
  const found = require(loader).loadAddon(root);
  if (!Array.isArray(found)) return undefined;
  return found.map(({ file, reason }) => `${file}: ${reason}`).join('; ');
}

/** Why the addon must be built; undefined when the one that is there will do. */
function reasonToBuild() {
  if (wantsSource()) return 'a build from source was asked for';
  if (existsSync(join(root, 'build', 'addon'))) return 'it was built here before';
  return loadFailure();
}

function install() {
  const reason = reasonToBuild();
  if (reason === undefined) return;
  console.log(`cluster-attention: building the native addon from source: ${reason}`);
  try {
    buildAddon({ installing: true });
  } catch (error) {
    console.error(`cluster-attention: the native addon was not built: ${error.message}`);
    // Not "npm rebuild": npm takes a package away whose script fails.
    console.error('cluster-attention: install what is missing, then repeat the installation');
    process.exitCode = 1;
  }
}

install();
