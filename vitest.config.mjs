import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.mjs'],
    exclude: ['test/package/**', 'test/report/**'], // npm run test:package, test:report
    // A native addon deserves a process of its own per file: a crash then names its file.
    pool: 'forks',
    maxWorkers: 2,
    testTimeout: 60_000,
    // The package under test is loaded by Node itself, not by the transformer of the test runner.
    server: { deps: { external: [/\/dist\/.*\.js$/] } },
  },
});
