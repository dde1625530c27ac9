// What the loader says when nothing loads, and that one bad file does not hide a good one.
import { mkdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, inject, test } from 'vitest';
import { execute, install, NODE, project } from './project.mjs';

const platform = `linux-${process.arch}`;
const load = 'try { require("cluster-attention") } catch (e) { console.log(e.code, e.message) }';

function installed() {
  const folder = project();
  expect(install(folder, inject('tarball'), { flags: ['--ignore-scripts'] }).status).toBe(0);
  const home = join(folder, 'node_modules', 'cluster-attention');
  return {
    folder,
    local: join(home, 'build', 'Release', 'cluster_attention.node'),
    prebuilt: join(home, 'prebuilds', platform, 'cluster-attention.node'),
  };
}

test('nothing there: every path, the reason, and a command per package manager', () => {
  const { folder, local, prebuilt } = installed();
  rmSync(prebuilt);
  const { output } = execute(folder, 'load.cjs', load);
  const begin = `ERR_BINDING_LOAD no native addon loads on ${platform} (Node ${NODE}.`;
  expect(output.slice(0, begin.length)).toBe(begin);
  for (const file of [local, prebuilt])
    expect(output).toContain(`- ${file}\n    there is no such file`);
  expect(output).toContain('npm rebuild cluster-attention --build-from-source');
  expect(output).toContain('npm approve-scripts cluster-attention');
  expect(output).toContain('pnpm rebuild cluster-attention');
  expect(output).toContain('yarn rebuild cluster-attention');
});

test('a truncated file: the reason of the dynamic loader', () => {
  const { folder, prebuilt } = installed();
  truncateSync(prebuilt, 40);
  const { output } = execute(folder, 'load.cjs', load);
  expect(output).toContain(`- ${prebuilt}\n    ${prebuilt}: `);
  expect(output).toMatch(/file too short|cannot read file data|ELF/);
});

test('a broken local build: the prebuilt addon is taken', () => {
  const { folder, local } = installed();
  mkdirSync(join(local, '..'), { recursive: true });
  writeFileSync(local, 'not a library');
  const code = 'console.log(require("cluster-attention").info().build)';
  expect(execute(folder, 'load.cjs', code).output).toBe('prebuilt\n');
});

test('the CUDA backend is found beside the prebuilt addon, where the package has it', () => {
  const { folder } = installed();
  const code = `
    const { targets, reason } = require('cluster-attention').info().cuda;
    console.log(JSON.stringify([targets.length > 0, /cannot open/.test(reason ?? '')]));`;
  const there = inject('backend');
  expect(JSON.parse(execute(folder, 'cuda.cjs', code).output)).toEqual([there, !there]);
});
