// Where the results go: all of them or none.

import { accessSync, constants, mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { fileError } from './options.mjs';

/** Makes the folder and checks that it takes files, before any work is done. */
export function prepareFolder(output) {
  const folder = output instanceof URL ? fileURLToPath(output) : output;
  try {
    mkdirSync(folder, { recursive: true });
    accessSync(folder, constants.W_OK);
  } catch (error) {
    throw fileError(`write to ${folder}`, error);
  }
  return folder;
}

/**
 * Writes every file under a name of its own first and renames them when all are complete.
 *
 * @param {string} folder
 * @param {Record<string, string | Buffer>} files content by name
 * @returns {string[]} the paths
 */
export function writeFiles(folder, files) {
  const pending = Object.entries(files).map(([name, content]) => ({
    content,
    path: join(folder, name),
    draft: join(folder, `.${name}.${process.pid}`),
  }));
  const placed = [];
  try {
    for (const { draft, content } of pending) writeFileSync(draft, content);
    for (const { draft, path } of pending) {
      renameSync(draft, path);
      placed.push(path);
    }
  } catch (error) {
    const drafts = pending.map(({ draft }) => draft);
    for (const path of [...drafts, ...placed]) rmSync(path, { force: true });
    throw fileError(`write to ${folder}`, error);
  }
  return placed;
}
