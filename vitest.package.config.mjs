import { defineConfig } from 'vitest/config';

// npm run test:package: packs the package and installs it the way users do.
export default defineConfig({
  test: {
    include: ['test/package/*.test.mjs'],
    globalSetup: ['test/package/pack.mjs'],
    maxWorkers: 2,
    testTimeout: 300_000,
    hookTimeout: 300_000,
  },
});
