'use strict';
// Copies of the package under build/, with another addon than the one that users get: built with
// sanitizers, with test hooks, or with a planted bug.

const { cpSync, existsSync, mkdirSync, rmSync, symlinkSync } = require('node:fs');
const { join } = require('node:path');

const root = join(__dirname, '..');
const PARTS = ['lib', 'dist', 'native', 'cuda', 'test', 'bench', 'scripts', 'docs', 'examples'];
const FILES = [
  'package.json',
  'tsconfig.json',
  'vitest.config.mjs',
  'CMakeLists.txt',
  'binding.gyp',
];
const MORE = ['README.md', 'CONTRIBUTING.md', 'SECURITY.md', 'LICENSE'];

/** A fresh copy of everything that is not built, at build/<name>; returns its folder. */
function copyTree(name) {
  const tree = join(root, 'build', name);
  mkdirSync(tree, { recursive: true });
  for (const part of [...PARTS, ...FILES, ...MORE]) {
    if (!existsSync(join(root, part))) continue;
    rmSync(join(tree, part), { recursive: true, force: true });
    cpSync(join(root, part), join(tree, part), { recursive: true, preserveTimestamps: true });
  }
  const modules = join(tree, 'node_modules');
  if (!existsSync(modules)) symlinkSync(join(root, 'node_modules'), modules);
  return tree;
}

/**
 * Copies a file or folder to where another may be. That one is removed first: writing into a library
 * changes the code of the processes that have loaded it.
 */
function replace(from, to) {
  rmSync(to, { recursive: true, force: true });
  cpSync(from, to, { recursive: true }); // makes the folders above
}

/** A copy of the package whose addon is built with these CMake definitions. */
function treeWithAddon(name, definitions) {
  const { addonDefinitions, cmake } = require('./build.cjs');
  const tree = copyTree(name);
  cmake(`build/${name}/build/addon`, {
    ...addonDefinitions(),
    ...definitions,
    CA_OUTPUT_DIRECTORY: join(tree, 'build', 'Release'),
  });
  return tree;
}

module.exports = { copyTree, replace, root, treeWithAddon };
