// What the loader says when nothing loads, and that one bad file does not hide a good one.
import { mkdirSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, inject, test } from 'vitest';
import { execute, install, NODE, nodeOf, project, run } from './project.mjs';

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

test('Node loads no addons: the flags, not how to build', () => {
  const { folder } = installed();
  writeFileSync(join(folder, 'load.cjs'), load);
  const permission = NODE < 24 ? '--experimental-permission' : '--permission';
  for (const flags of [['--no-addons'], [permission, '--allow-fs-read=*']]) {
    const { output } = run(folder, nodeOf(), [...flags, 'load.cjs']);
    expect(output).toContain('loading addons is disabled');
    expect(output).toMatch(/start it without --no-addons, and with --allow-addons/);
    expect(output).not.toMatch(/CMake|npm rebuild/);
  }
});

test('bundled: to leave the package out, not how to build', () => {
  const { folder } = installed();
  mkdirSync(join(folder, 'dist'));
  writeFileSync(join(folder, 'service.cjs'), load);
  const esbuild = join(inject('root'), 'node_modules', '.bin', 'esbuild');
  const flags = ['--bundle', '--platform=node', '--outfile=dist/out.cjs'];
  expect(run(folder, esbuild, ['service.cjs', ...flags]).status).toBe(0);
  const { output } = run(folder, nodeOf(), [join('dist', 'out.cjs')]);
  expect(output).toContain('ERR_BINDING_LOAD');
  expect(output).toContain('esbuild: --external:cluster-attention');
  expect(output).not.toMatch(/CMake|npm rebuild/);
});

test('a truncated file: the reason of the dynamic loader', () => {
  const { folder, prebuilt } = installed();
  truncateSync(prebuilt, 40);
  const { output } = execute(folder, 'load.cjs', load);
  expect(output).toContain(`- ${prebuilt}\n    ${prebuilt}: `);
  expect(output).toMatch(/file too short|cannot read file data|ELF/);
});

test('a file without its end: an error, not a crash', () => {
  const { folder, prebuilt } = installed();
  truncateSync(prebuilt, Math.floor(statSync(prebuilt).size / 2));
  const { output } = execute(folder, 'load.cjs', load);
  expect(output).toContain(`- ${prebuilt}\n    the file is truncated`);
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
