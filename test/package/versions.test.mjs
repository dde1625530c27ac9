// The packed package on every Node that it promises, on the newest npm, and on Arm; and which systems
// the prebuilt addons ask for.
import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, inject, test } from 'vitest';
import {
  builtHere,
  execute,
  installed,
  nodeOf,
  pathWith,
  project,
  run,
  runExamples,
} from './project.mjs';

test.each([20, 22, 24, 26])('on Node %i, with scripts off and no compiler', (major) => {
  const env = { PATH: pathWith() };
  const folder = installed(project(), { flags: ['--ignore-scripts'], env });
  runExamples(folder, { node: nodeOf(major), env });
  const { output } = execute(folder, 'version.cjs', 'console.log(process.versions.node)', {
    node: nodeOf(major),
  });
  expect(Number.parseInt(output, 10)).toBe(major);
});

test('as installed by npm 12, which runs no script unasked and needs a newer Node than 20', () => {
  const folder = installed(project(), { npm: 12, node: nodeOf(24) });
  expect(builtHere(folder)).toBe(false);
  runExamples(folder, { node: nodeOf(24) });
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
    const sysroot = ['-L', '/usr/aarch64-linux-gnu'];
    const there = run(folder, 'qemu-aarch64-static', [...sysroot, inject('armNode'), 'same.cjs']);
    const arm = JSON.parse(there.output);
    expect(arm.used).toBe('neon');
    arm.output.forEach((x, i) => expect(Math.abs(x - here.output[i])).toBeLessThan(1e-6));
  });
});

/** Of two versions: negative, 0 or positive. */
const compare = (a, b) => a.map((part, i) => part - (b[i] ?? 0)).find((step) => step) ?? 0;

describe('the prebuilt addons', () => {
  // Debian 11, Ubuntu 20.04, RHEL 9 and Amazon Linux 2023 have these or newer. CUDA's runtime, as it is
  // linked on the systems that build, asks for more: Debian 12, Ubuntu 22.04, the other two.
  const addon = { GLIBC: [2, 29], GLIBCXX: [3, 4, 22], CXXABI: [1, 3, 11], GCC: [3, 4] };
  const backend = { ...addon, GLIBC: [2, 34] };

  const files = inject('architectures').flatMap((arch) =>
    readdirSync(join(inject('root'), 'prebuilds', `linux-${arch}`)).map((name) => [arch, name]),
  );

  test.each(files)('ask for no newer C or C++ library: %s %s', (arch, name) => {
    const newest = name.endsWith('.node') ? addon : backend;
    const objdump = arch === process.arch ? 'objdump' : 'aarch64-linux-gnu-objdump';
    const symbols = execFileSync(
      objdump,
      ['-T', join(inject('root'), 'prebuilds', `linux-${arch}`, name)],
      {
        encoding: 'utf8',
        maxBuffer: 2 ** 26,
      },
    );
    const versions = [...symbols.matchAll(/\b(GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)/g)];
    expect(versions.length).toBeGreaterThan(10);
    const tooNew = versions
      .filter(
        ([, library, version]) => compare(version.split('.').map(Number), newest[library]) > 0,
      )
      .map(([text]) => text);
    expect([...new Set(tooNew)]).toEqual([]);
  });
});
