// The command line as its users start it.

import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { onTestFinished } from 'vitest';
import { root } from '../../lib/support/package.mjs';

const file = path.join(root, 'dist', 'cli.js');

export function run(...parameters) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [file, ...parameters], {
    encoding: 'utf8',
  });
  return { status, stdout, stderr };
}

/** A running command, its output so far, and a promise of its end. */
export function start(...parameters) {
  const child = spawn(process.execPath, [file, ...parameters], { stdio: 'pipe' });
  const output = { text: '' };
  child.stdout.on('data', (text) => (output.text += text));
  child.stderr.resume();
  const ended = new Promise((resolve) => {
    child.once('close', (code, signal) => resolve({ code, signal }));
  });
  const shows = (pattern) =>
    new Promise((resolve, reject) => {
      const look = () => pattern.test(output.text) && resolve();
      child.stdout.on('data', look);
      child.once('close', () => reject(new Error(`ended without ${pattern}: ${output.text}`)));
      look();
    });
  return { child, output, ended, shows };
}

/** A folder that is gone after the test. */
export function temporaryFolder() {
  const folder = mkdtempSync(path.join(tmpdir(), 'cluster-attention-test-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}
