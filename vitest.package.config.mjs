import { defineConfig } from 'vitest/config';

/** What needs more than this machine's Node and compiler, or builds from source once more. */
const LONG = ['test/package/source.test.mjs', 'test/package/versions.test.mjs'];

// npm run test:package: packs the package and installs it the way users do; in the mode "share" with
// this machine's Node, for its processor alone.
export default defineConfig(({ mode }) => ({
  test: {
    include: ['test/package/*.test.mjs'],
    exclude: mode === 'share' ? LONG : [],
    provide: { share: mode === 'share' },
    globalSetup: ['test/package/pack.mjs'],
    maxWorkers: 2,
    testTimeout: 300_000,
    hookTimeout: 300_000,
  },
}));
