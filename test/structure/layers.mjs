// The arrows of dependence: lib → native/binding → native/dispatch → {native/kernels, cuda} →
// {native/simd, cuda/primitives} → native/core. A layer may use itself and what is below it.

import path from 'node:path';
import { builtinModules } from 'node:module';

const BELOW = {
  'native/core': [],
  'native/simd': ['native/core'],
  'cuda/primitives': ['native/core'],
  'native/kernels': ['native/simd', 'native/core'],
  cuda: ['cuda/primitives', 'native/core'],
  'native/dispatch': ['native/kernels', 'cuda', 'native/simd', 'native/core'],
  'native/binding': ['native/dispatch', 'native/kernels', 'native/simd', 'native/core'],
  // The double loops stand for themselves: they share the problem structs and nothing else.
  'native/reference': ['native/core'],
  lib: [],
};

const ANYTHING = ['test', 'bench', 'examples', 'scripts'];
const CUDA_HEADER =
  /^(cuda\w*\.h|cub\/|cooperative_groups|nvrtc|nvtx|thrust\/|device_launch)|\.cuh$/;
const NODE_HEADER = /^(napi|node_api|js_native_api|node|v8|uv)(\b|[-_.])/;

/** The layer that a root-relative path belongs to; undefined outside of all. */
export function layerOf(file) {
  const layers = [...Object.keys(BELOW), ...ANYTHING].toSorted((a, b) => b.length - a.length);
  return layers.find(
    (layer) =>
      file.startsWith(`${layer}/`) ||
      (layer === 'native/dispatch' && /^native\/dispatch[._]/.test(file)),
  );
}

/** What is wrong with one #include of `file`, or undefined. */
export function includeFault(file, { name, system }) {
  const from = layerOf(file);
  // Test hooks become part of the binding, in a build of its own; a fuzzer stands in for Node.
  const binding = from === 'native/binding' || /^test\/(hooks|fuzz)\//.test(file);
  if (NODE_HEADER.test(name) && !binding) {
    return `${file} includes ${name}: Node headers belong to native/binding`;
  }
  const fromCuda = CUDA_HEADER.test(name) || (system && name.startsWith('cuda/'));
  if (fromCuda && file.startsWith('native/')) {
    return `${file} includes ${name}: no CUDA header in native/`;
  }
  if (system || ANYTHING.includes(from)) return undefined;
  const to = layerOf(name);
  if (from === undefined || to === undefined) return `${file} includes ${name}: outside the layers`;
  if (to === from || BELOW[from].includes(to)) return undefined;
  return `${file} includes ${name}: ${from} must not depend on ${to}`;
}

/** What is wrong with one import of a file in lib/, or undefined. */
export function importFault(file, name, dependencies) {
  if (ANYTHING.includes(layerOf(file))) return undefined;
  if (name.startsWith('node:') || builtinModules.includes(name)) return undefined;
  if (!name.startsWith('.')) {
    const known = dependencies.some((each) => name === each || name.startsWith(`${each}/`));
    return known ? undefined : `${file} imports ${name}: no dependency in package.json`;
  }
  const target = path.posix.join(path.posix.dirname(file), name);
  if (layerOf(target) === 'lib' || target === 'package.json') return undefined;
  return `${file} imports ${name}: lib must not depend on ${target}`;
}
