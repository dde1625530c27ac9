// The package as its users meet it: `required` through CommonJS, `imported` through ESM.

import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = fileURLToPath(new URL('../../..', import.meta.url)).replace(/[\\/]$/, '');
export const required = createRequire(import.meta.url)('../../..');
export const imported = await import('../../../dist/index.js');

/** The file that `require('cluster-attention')` loads, for child processes and workers. */
export const entry = path.join(root, 'dist', 'index.js');

/**
 * Both forms of an operation as async functions: the synchronous one through `require`, the
 * asynchronous one through `import`.
 */
export function forms(name) {
  return [
    ['sync', async (options) => required[`${name}Sync`](options)],
    ['async', (options) => imported[name](options)],
  ];
}

/** The synchronous form, for tests that are about numbers only. */
export function sync(name) {
  return (options) => required[`${name}Sync`](options);
}
