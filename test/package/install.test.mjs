// The packed package in an empty project: every way of installing it that users have, and every
// Node that it promises.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, inject, test } from 'vitest';
import { execute, install, nodeOf, pathWith, project, run, runExamples } from './project.mjs';

const tarball = inject('tarball');
const builtHere = (folder) =>
  existsSync(join(folder, 'node_modules', 'cluster-attention', 'build', 'Release'));

function installed(folder, options, from = tarball) {
  const { status, output } = install(folder, from, options);
  expect(output).not.toMatch(/npm error/);
  expect(status).toBe(0);
  return folder;
}

const hasBuild = 'console.log(require("cluster-attention").info().build)';

describe('the prebuilt addon loads', () => {
  test('as installed by default', () => {
    const folder = installed(project());
    runExamples(folder);
    expect(builtHere(folder)).toBe(false);
    expect(execute(folder, 'build.cjs', hasBuild).output).toBe('prebuilt\n');
  });

  test.each([20, 22, 24, 26])('on Node %i, with scripts off and no compiler', (major) => {
    const env = { PATH: pathWith() };
    const folder = installed(project(), { flags: ['--ignore-scripts'], env });
    runExamples(folder, { node: nodeOf(major), env });
    const { output } = execute(folder, 'version.cjs', 'console.log(process.versions.node)', {
      node: nodeOf(major),
    });
    expect(Number.parseInt(output, 10)).toBe(major);
  });

  test('as installed by npm 12, which runs no script unasked', () => {
    const folder = installed(project(), { npm: 12 });
    expect(builtHere(folder)).toBe(false);
    runExamples(folder, { node: nodeOf(24) });
  });

  test('with scripts on and no compiler', () => {
    const env = { PATH: pathWith() };
    runExamples(installed(project(), { env }), { env });
  });

  test('from a path with spaces and letters beyond ASCII', () => {
    runExamples(installed(project('my project µ')));
  });

  test('in a worker thread only', () => {
    const code = `
      const { Worker } = require('node:worker_threads');
      const worker = new Worker(\`
        const { attentionSync } = require('cluster-attention');
        const one = Float32Array.of(1);
        const shape = { batch: 1, heads: 1, queryLength: 1, headDim: 1 };
        console.log(attentionSync({ query: one, key: one, value: one, shape })[0]);
      \`, { eval: true });
      worker.on('exit', (code) => console.log('exit', code));`;
    const { status, output } = execute(installed(project()), 'worker.cjs', code);
    expect(output).toBe('1\nexit 0\n');
    expect(status).toBe(0);
  });

  test('for a user who may not write to node_modules', () => {
    const folder = installed(project());
    run(folder, 'chmod', ['-R', 'a+rX,a-w', '.']);
    // root may write everywhere: then as the user "nobody".
    const nobody = process.getuid() === 0 ? { uid: 65534, gid: 65534 } : {};
    run(inject('work'), 'chmod', ['a+rx', inject('work'), join(folder, '..')]);
    const readable = run(folder, nodeOf(20), ['-e', 'console.log(1)'], nobody);
    const code = `${hasBuild.replace('console.log(', 'process.stdout.write(')}`;
    const { output } = run(folder, nodeOf(20), ['-e', code], nobody);
    expect(readable.output).toBe('1\n');
    expect(output).toBe('prebuilt');
  });

  test('bundled by esbuild, the package external', () => {
    const folder = installed(project());
    const code = "import { info } from 'cluster-attention'; console.log(info().build);\n";
    execute(folder, 'service.mjs', code);
    const esbuild = join(inject('root'), 'node_modules', '.bin', 'esbuild');
    const flags = [
      '--bundle',
      '--platform=node',
      '--external:cluster-attention',
      '--outfile=out.cjs',
    ];
    expect(run(folder, esbuild, ['service.mjs', ...flags]).status).toBe(0);
    expect(run(folder, nodeOf(20), ['out.cjs']).output).toBe('prebuilt\n');
  });
});

describe('the source builds', () => {
  const compilers = ['cmake', 'c++', 'as', 'ld', 'ar', 'ranlib', 'make', 'nproc', 'uname'];

  test('with a C++ compiler, CMake and make alone, when no prebuilt addon fits', () => {
    const env = { PATH: pathWith(...compilers), CLUSTER_ATTENTION_CUDA: '0' };
    const folder = installed(project(), { env }, inject('sourceTarball'));
    expect(builtHere(folder)).toBe(true);
    expect(execute(folder, 'build.cjs', hasBuild, { env }).output).toBe('local\n');
    runExamples(folder, { env });
  });

  test('not without a compiler: the installation says what is missing', () => {
    const env = { PATH: pathWith() };
    const { status, output } = install(project(), inject('sourceTarball'), { env });
    expect(status).not.toBe(0);
    expect(output).toMatch(/CMake 3\.20 or newer was not found/);
    expect(output).toMatch(/apt-get install cmake g\+\+/);
  });
});

describe('the prebuilt addon for Arm', () => {
  test('computes the same, under emulation', () => {
    const folder = installed(project());
    const code = `
      const { attentionSync, info } = require('cluster-attention');
      const query = Float32Array.from({ length: 60 }, (_, i) => Math.sin(i));
      const shape = { batch: 1, heads: 2, queryLength: 10, headDim: 3 };
      const output = attentionSync({ query, key: query, value: query, shape });
      console.log(JSON.stringify({ used: info().instructionSets.used, output: [...output] }));`;
    const here = JSON.parse(execute(folder, 'same.cjs', code).output);
    const node = join(inject('tools'), 'node20-arm64', 'bin', 'node');
    const sysroot = ['-L', '/usr/aarch64-linux-gnu'];
    const there = run(folder, 'qemu-aarch64-static', [...sysroot, node, 'same.cjs']);
    const arm = JSON.parse(there.output);
    expect(arm.used).toBe('neon');
    arm.output.forEach((x, i) => expect(Math.abs(x - here.output[i])).toBeLessThan(1e-6));
  });
});
