// What is in the tarball, and how large it is.
import { execFileSync } from 'node:child_process';
import { readFileSync, statSync } from 'node:fs';
import { join, posix } from 'node:path';
import { describe, expect, inject, test } from 'vitest';
import { run } from './project.mjs';

const root = inject('root');
const architectures = inject('architectures');
const backend = inject('backend');
const list = (program, args) =>
  execFileSync(program, args, { cwd: root, encoding: 'utf8' }).trim().split('\n');

const packed = list('tar', ['-tzf', inject('tarball')])
  .map((path) => path.replace(/^package\//, ''))
  .toSorted();
const tracked = list('git', ['ls-files', '--cached', '--others', '--exclude-standard']);

describe('the tarball', () => {
  test('holds the library, its source, the prebuilt addons and the documents, nothing else', () => {
    const source = tracked.filter(
      (path) =>
        (/^(native|cuda)\//.test(path) && !path.startsWith('native/reference/')) ||
        path.startsWith('lib/') ||
        path.startsWith('examples/') ||
        /^docs\/[^/]*\.md$/.test(path),
    );
    const compiled = source
      .filter((path) => /^lib\/.*\.ts$/.test(path))
      .flatMap((path) => {
        const file = path.replace(/^lib/, 'dist').replace(/\.ts$/, '');
        return [`${file}.js`, `${file}.d.ts`];
      });
    const prebuilt = architectures.map((arch) => `prebuilds/linux-${arch}/cluster-attention.node`);
    if (backend) prebuilt.push('prebuilds/linux-x64/cluster_attention_cuda.so');
    const rest = [
      'CHANGELOG.md',
      'CMakeLists.txt',
      'CONTRIBUTING.md',
      'LICENSE',
      'README.md',
      'SECURITY.md',
      'dist/bench/page.css',
      'dist/bench/page.js',
      'package.json',
      'scripts/build-cuda.cjs',
      'scripts/build.cjs',
      'scripts/install.cjs',
    ];
    expect(packed).toEqual([...source, ...compiled, ...prebuilt, ...rest].toSorted());
  });

  test('has no binding.gyp, from which package managers would make up a build of their own', () => {
    expect(packed).not.toContain('binding.gyp');
  });

  test('has what the links of its documents name', () => {
    const pages = packed.filter((path) => path.endsWith('.md'));
    const broken = pages.flatMap((page) => {
      const text = readFileSync(join(root, page), 'utf8').replace(/```[^]*?```/g, '');
      const links = [...text.matchAll(/\]\(([^)\s#]+)[^)]*\)/g)].map(([, link]) => link);
      return links
        .filter((link) => !/^https?:/.test(link))
        .map((link) => posix.join(posix.dirname(page), link))
        .filter((file) => !packed.includes(file))
        .map((file) => `${page}: ${file}`);
    });
    expect(pages.length).toBeGreaterThan(10);
    expect(broken).toEqual([]);
  });

  test('is smaller than 20 MB', () => {
    expect(statSync(inject('tarball')).size).toBeLessThan(20e6);
  });

  test.each([
    ['publint', ['--strict']],
    ['attw', ['--profile', 'strict', '--no-emoji', '--format', 'ascii']],
  ])('satisfies %s', (tool, flags) => {
    const program = join(root, 'node_modules', '.bin', tool);
    const { status, output } = run(root, program, [inject('tarball'), ...flags]);
    expect(status, output).toBe(0);
  });
});
