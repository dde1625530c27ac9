'use strict';
// Formats the C++ sources; with --check it only says which are not formatted and fails.

const { spawnSync } = require('node:child_process');
const { existsSync, readdirSync } = require('node:fs');
const { join } = require('node:path');

const root = join(__dirname, '..');
// Newer versions format some lines differently: the one that the sources follow comes first.
const programs = ['clang-format-14', 'clang-format'];
const folders = ['native', 'cuda', 'test/native', 'test/cuda'];
const sources = /\.(h|cc|inl|cu|cuh)$/;

function sourceFiles() {
  return folders
    .filter((folder) => existsSync(join(root, folder)))
    .flatMap((folder) =>
      readdirSync(join(root, folder), { recursive: true }).map((file) => join(folder, file)),
    )
    .filter((file) => sources.test(file));
}

function main() {
  const program = programs.find(
    (name) => spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0,
  );
  if (program === undefined) {
    console.error('clang-format was not found: apt-get install clang-format-14');
    return 1;
  }
  const mode = process.argv.includes('--check') ? ['--dry-run', '--Werror'] : ['-i'];
  const { status } = spawnSync(program, [...mode, ...sourceFiles()], {
    cwd: root,
    stdio: 'inherit',
  });
  return status ?? 1;
}

process.exitCode = main();
