// What must not stand anywhere: flags that change floating point for the whole process, ways to
// end the process from a kernel, tests that do not run.

import { execFileSync } from 'node:child_process';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { codeOf, filesUnder, read, root } from './sources.mjs';

const NATIVE = ['.h', '.cc', '.inl', '.cu', '.cuh'];

/** Lines of `text` that match, as "file:line: text". */
function findings(file, text, pattern) {
  return text
    .split('\n')
    .flatMap((line, i) => (pattern.test(line) ? [`${file}:${i + 1}: ${line.trim()}`] : []));
}

/** A build file without its comments. */
const withoutComments = (text) => text.replace(/^\s*#.*$|\s#\s.*$/gm, '');

describe('floating point', () => {
  const FLAGS =
    /-ffast-math|-Ofast|-ffinite-math|-funsafe-math|-fassociative-math|-freciprocal-math|-fp:fast|\/fp:fast|use_fast_math|fast-math|-ftz=true|_MM_SET_FLUSH_ZERO_MODE|_MM_SET_DENORMALS_ZERO_MODE/;

  test('no build file turns on unsafe optimisations', () => {
    const files = [
      'CMakeLists.txt',
      'binding.gyp',
      'package.json',
      ...filesUnder('cuda', ['.txt', '.cmake']),
      ...filesUnder('scripts', ['.cjs', '.mjs', '.sh', '.cmake']),
      ...filesUnder('.ci', ['run']),
    ];
    const found = files.flatMap((file) => findings(file, withoutComments(read(file)), FLAGS));
    expect(found).toEqual([]);
    expect(findings('x', 'add_compile_options(-O3 -ffast-math)', FLAGS)).toHaveLength(1);
    expect(findings('x', withoutComments('# never -ffast-math'), FLAGS)).toHaveLength(0);
  });

  test('no source file does either', () => {
    const pattern = new RegExp(`${FLAGS.source}|#pragma\\s+(GCC|clang)\\s+optimize|float_control`);
    const files = [...filesUnder('native', NATIVE), ...filesUnder('cuda', NATIVE)];
    expect(files.flatMap((file) => findings(file, codeOf(read(file)), pattern))).toEqual([]);
  });

  test('loading and using the addon leaves denormal numbers alone', () => {
    const script = `
      const check = (when) => {
        const tiny = Float32Array.of(1e-20, 1e-20, 0);
        tiny[2] = tiny[0] * tiny[1];
        const half = Float64Array.of(2.2250738585072014e-308);
        half[0] /= 2;
        if (!(5e-324 / 1 === 5e-324 && tiny[2] > 0 && half[0] > 0 && Math.fround(1e-45) > 0)) {
          console.log('denormals vanish ' + when);
        }
      };
      check('before');
      const ca = require(${JSON.stringify(path.join(root, 'dist', 'index.js'))});
      check('after loading');
      const options = {
        query: new Float32Array(640).fill(1e-20),
        key: new Float32Array(640).fill(1e-20),
        value: new Float32Array(640).fill(1e-39),
        shape: { batch: 1, heads: 1, queryLength: 40, headDim: 16 },
      };
      const output = ca.improvedClusteredAttentionSync({ ...options, clusters: 3 });
      check('after a synchronous call');
      if (!output.every((value) => value > 0)) console.log('denormals vanish in kernels');
      ca.attention(options).then((output) => {
        check('after an asynchronous call');
        if (!output.every((value) => value > 0)) console.log('denormals vanish in pool threads');
        console.log('checked');
      });
    `;
    const output = execFileSync(process.execPath, ['-e', script], { encoding: 'utf8' });
    expect(output).toBe('checked\n');
  });
});

describe('kernels', () => {
  const CALLS = [
    ['exit', '_exit', '_Exit', 'quick_exit', 'abort', 'terminate', 'assert', '__builtin_trap'],
    ['printf', 'fprintf', 'vprintf', 'vfprintf', 'puts', 'fputs', 'putchar', 'perror', 'raise'],
    ['longjmp'],
  ].flat();
  // Not after a comma or a colon and a space: there stand the members that a constructor sets.
  const BANNED = new RegExp(
    `(?<![\\w.]|->|[,:] )(${CALLS.join('|')})\\s*\\(|\\bthrow\\b|\\bstd::(cout|cerr|clog)\\b|<(cassert|iostream|csetjmp)>`,
  );

  test('never exit, abort, assert, print or throw', () => {
    const folders = ['native/core', 'native/kernels', 'native/simd', 'native/reference', 'cuda'];
    const files = folders.flatMap((folder) => filesUnder(folder, NATIVE));
    expect(files.length).toBeGreaterThan(20);
    expect(files.flatMap((file) => findings(file, codeOf(read(file)), BANNED))).toEqual([]);
  });

  test.each([
    'if (bad) exit(1);',
    'std::abort();',
    '  assert(length > 0);',
    'std::printf("x");',
    'throw std::bad_alloc();',
    'std::cout << length;',
    '#include <cassert>',
  ])('the search finds: %s', (line) => {
    expect(findings('planted.cc', codeOf(`int a;\n${line}\n`), BANNED)).toHaveLength(1);
  });

  test.each([
    '// never throw, exit() or abort()',
    '/* assert(x)\n throw */ int a;',
    'static_assert(sizeof(float) == 4);',
    'context.abort(1); S() : abort(flag), abort_(abort), fail("exit(1)");',
  ])('the search does not find: %s', (line) => {
    expect(findings('innocent.cc', codeOf(line), BANNED)).toEqual([]);
  });
});

describe('tests', () => {
  const SLEEPING =
    /\b(?:it|test|describe|suite)(?:\.\w+)*\.(?:only|skip|todo|fails)\b|\b[xf](?:it|describe)\(/;

  test('all of them run', () => {
    const files = filesUnder('test', ['.test.mjs', '.test.ts', '.test.js']);
    expect(files.length).toBeGreaterThan(15);
    const own = 'test/structure/banned.test.mjs';
    const searched = files.filter((file) => file !== own);
    expect(searched.flatMap((file) => findings(file, read(file), SLEEPING))).toEqual([]);
  });

  test.each(['test.only(', 'describe.skip(', 'it.concurrent.only(', 'test.todo(', 'xit('])(
    'the search finds %s',
    (call) => {
      expect(findings('planted.test.mjs', `${call}'name', () => {});`, SLEEPING)).toHaveLength(1);
    },
  );
});
