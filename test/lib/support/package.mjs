// The package as its users meet it: `required` through CommonJS, `imported` through ESM.

import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { expectSameResult } from './compare.mjs';

export const root = fileURLToPath(new URL('../../..', import.meta.url)).replace(/[\\/]$/, '');
export const required = createRequire(import.meta.url)('../../..');
export const imported = await import('../../../dist/index.js');

/** The file that `require('cluster-attention')` loads, for child processes and workers. */
export const entry = path.join(root, 'dist', 'index.js');

/**
 * An operation in both forms: the synchronous one through `require`, the asynchronous one through
 * `import`. They must give the same bits, which are the result.
 */
export function bothForms(name) {
  return async (options) => {
    const result = await imported[name](options);
    expectSameResult(required[`${name}Sync`](options), result);
    return result;
  };
}

/** The synchronous form, for tests that are about numbers only. */
export function sync(name) {
  return (options) => required[`${name}Sync`](options);
}
