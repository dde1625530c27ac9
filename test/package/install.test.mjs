// The packed package in an empty project: every way of installing it that users have.
import { join } from 'node:path';
import { describe, expect, inject, test } from 'vitest';
import {
  builtHere,
  execute,
  hasBuild,
  installed,
  nodeOf,
  pathWith,
  project,
  run,
  runExamples,
} from './project.mjs';

describe('the prebuilt addon loads', () => {
  test('as installed by default', () => {
    const folder = installed(project());
    runExamples(folder);
    expect(builtHere(folder)).toBe(false);
    expect(execute(folder, 'build.cjs', hasBuild).output).toBe('prebuilt\n');
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
    const readable = run(folder, nodeOf(), ['-e', 'console.log(1)'], nobody);
    const code = `${hasBuild.replace('console.log(', 'process.stdout.write(')}`;
    const { output } = run(folder, nodeOf(), ['-e', code], nobody);
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
    expect(run(folder, nodeOf(), ['out.cjs']).output).toBe('prebuilt\n');
  });
});
