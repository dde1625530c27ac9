import { defineConfig } from 'vitest/config';

// npm run test:report: opens the benchmark's report in a browser (Debian: apt-get install chromium).
export default defineConfig({
  test: {
    include: ['test/report/*.test.mjs'],
    testTimeout: 60_000,
    hookTimeout: 60_000,
    server: { deps: { external: [/\/dist\/.*\.js$/] } },
  },
});
