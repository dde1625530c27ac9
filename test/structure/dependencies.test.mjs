import { describe, expect, test } from 'vitest';
import { importFault, includeFault, layerOf } from './layers.mjs';
import { filesUnder, importsOf, includesOf, read } from './sources.mjs';

const NATIVE = ['.h', '.cc', '.cpp', '.inl', '.cu', '.cuh', '.hpp', '.c'];
const SCRIPTS = ['.ts', '.mts', '.cts', '.js', '.mjs', '.cjs'];
const FOLDERS = ['native', 'cuda', 'lib', 'test', 'bench', 'examples', 'scripts'];

const { dependencies } = JSON.parse(read('package.json'));

const includeFaults = (file, text) =>
  includesOf(text)
    .map((include) => includeFault(file, include))
    .filter(Boolean);
const importFaults = (file, text) =>
  importsOf(text)
    .map((name) => importFault(file, name, Object.keys(dependencies)))
    .filter(Boolean);

describe('the arrows of dependence', () => {
  test('hold for every #include', () => {
    const files = FOLDERS.flatMap((folder) => filesUnder(folder, NATIVE));
    expect(files.length).toBeGreaterThan(50);
    expect(files.flatMap((file) => includeFaults(file, read(file)))).toEqual([]);
  });

  test('hold for every import', () => {
    const files = FOLDERS.flatMap((folder) => filesUnder(folder, SCRIPTS));
    expect(files.length).toBeGreaterThan(20);
    expect(files.flatMap((file) => importFaults(file, read(file)))).toEqual([]);
  });

  test('every native file belongs to a layer', () => {
    const files = [...filesUnder('native', NATIVE), ...filesUnder('cuda', NATIVE)];
    expect(files.filter((file) => layerOf(file) === undefined)).toEqual([]);
  });

  test('every #include "…" of native code names a file from the root', () => {
    const files = [...filesUnder('native', NATIVE), ...filesUnder('cuda', NATIVE)];
    const missing = files.flatMap((file) =>
      includesOf(read(file))
        .filter(({ name, system }) => !system && !files.includes(name))
        .map(({ name }) => `${file}: ${name}`),
    );
    expect(missing).toEqual([]);
  });
});

describe('the checker itself', () => {
  test.each([
    ['native/core/a.h', '#include "native/simd/simd.h"'],
    ['native/core/a.h', '  #  include "native/kernels/hash.h"'],
    ['native/simd/a.cc', '#include "native/kernels/hash.h"'],
    ['native/kernels/a.cc', '#include "native/dispatch.h"'],
    ['native/kernels/a.cc', '#include "cuda/attention.h"'],
    ['native/kernels/a.cc', '#include "native/reference/hash.h"'],
    ['native/kernels/a.cc', '#include "native/binding/errors.h"'],
    ['native/kernels/a.cc', '#include "test/native/check.h"'],
    ['native/kernels/a.cc', '#include "hash.h"'],
    ['native/kernels/a.cc', '#include <napi.h>'],
    ['native/dispatch.cc', '#include <node_api.h>'],
    ['native/dispatch.cc', '#include "native/binding/errors.h"'],
    ['native/dispatch.cc', '#include <cuda_runtime.h>'],
    ['native/kernels/a.cc', '#include <cub/cub.cuh>'],
    ['native/dispatch.cc', '#include "cuda/attention.cuh"'],
    ['native/reference/a.cc', '#include "native/kernels/hash.h"'],
    ['native/binding/a.cc', '#include "native/reference/hash.h"'],
    ['cuda/primitives/a.cuh', '#include "cuda/attention.h"'],
    ['cuda/a.cu', '#include "native/kernels/hash.h"'],
    ['cuda/a.cu', '#include "bench/native/timer.h"'],
  ])('refuses in %s: %s', (file, line) => {
    expect(includeFaults(file, `#pragma once\n\n${line}\n#include <cstdint>\n`)).toHaveLength(1);
  });

  test.each([
    ['native/simd/a.cc', '#include "native/core/order.h"'],
    ['native/binding/a.cc', '#include <node_api.h>'],
    ['native/dispatch.cc', '#include "cuda/attention.h"'],
    ['cuda/a.cu', '#include <cuda_runtime.h>'],
    ['test/native/a.cc', '#include "native/reference/hash.h"'],
    ['native/kernels/a.cc', '// #include "native/dispatch.h"'],
  ])('allows in %s: %s', (file, line) => {
    expect(includeFaults(file, line)).toEqual([]);
  });

  test.each([
    "import { x } from '../bench/data';",
    "import '../test/lib/oracle.mjs';",
    "export * from '../examples/a';",
    "const x = require('../scripts/build.cjs');",
    "const x = await import('../native/core');",
    "import fc from 'fast-check';",
    "import {\n  a,\n  b,\n} from '../bench/data';",
  ])('refuses in lib: %s', (line) => {
    expect(importFaults('lib/attention.ts', line)).toHaveLength(1);
  });

  test.each([
    "import { Call } from './call';",
    "import { types } from 'node:util';",
    "import headers from 'node-api-headers';",
    "import manifest from '../package.json';",
  ])('allows in lib: %s', (line) => {
    expect(importFaults('lib/attention.ts', line)).toEqual([]);
  });
});
