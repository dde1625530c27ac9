// npm run bench:peers, with whatever peers this machine has.

import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { expect, test } from 'vitest';
import { root } from '../lib/support/package.mjs';

function run(...parameters) {
  const file = path.join(root, 'bench', 'peers', 'main.mjs');
  return spawnSync(process.execPath, [file, ...parameters], { encoding: 'utf8' });
}

test('every peer is measured with its error, or listed as missing with the reason', () => {
  const { status, stdout } = run('--length', '96', '--heads', '2', '--dim', '16', '--clusters', '8',
    '--rounds', '3', '--methods', 'exact', '--threads', '1'); // prettier-ignore
  expect(status).toBe(0);
  const peers = [
    'onnxruntime MultiHeadAttention',
    'onnxruntime MatMul, Softmax, MatMul',
    'PyTorch scaled_dot_product_attention',
    'PyTorch matmul, softmax, matmul',
    'scikit-learn kmeans C=8, 10 iterations',
  ];
  for (const peer of peers) {
    const line = stdout.split('\n').find((text) => text.startsWith(peer));
    expect(line, peer).toMatch(/: missing, .{10,}|\d [µm]s .*\de-\d/);
  }
  expect(stdout).toMatch(/^kmeans C=8, 10 iterations .* [µm]s/m);
});

test('fewer queries than groups are not grouped', () => {
  const { status, stdout } = run('--length', '96', '--queries', '3', '--heads', '2', '--dim', '16',
    '--clusters', '8', '--rounds', '3', '--methods', 'exact', '--threads', '1'); // prettier-ignore
  expect(status).toBe(0);
  expect(stdout).toMatch(/^B=1 H=2 L=3 S=96/m);
  expect(stdout).not.toContain('kmeans');
});

test('bad options are one line and exit code 2', () => {
  const { status, stderr } = run('--methods', 'magic');
  expect(stderr).toMatch(/^bench:peers: unknown --methods "magic".*\n$/);
  expect(status).toBe(2);
});
