// The quick share of the programs of this folder; `npm run test:hard` runs them at full length.

import { describe, expect, test } from 'vitest';
import { runChild } from './support/program.mjs';

const QUICK = [
  ['hostile-arguments.mjs', { cases: 40, pairs: 60 }],
  ['workers.mjs', { terminations: 10, alone: 2 }],
  ['life.mjs', { rounds: 1, aborts: 20, exits: 2 }],
  ['drift.mjs', { calls: 40 }],
  ['fuzz-safetensors.mjs', { executions: 5000 }],
];

describe('quick share', { timeout: 300_000 }, () => {
  test.each(QUICK)('%s', async (file, parameters) => {
    const { code, signal, output } = await runChild(new URL(file, import.meta.url), parameters);
    expect(output).not.toContain('FAILED');
    expect([code, signal], output).toEqual([0, null]);
    expect(output).toContain('{"figure"');
  });
});
