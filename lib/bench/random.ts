/** Reproducible random numbers for synthetic inputs and sampled rows. */

/** A generator of uniform numbers in [0, 1) (mulberry32). */
export function uniforms(seed: number): () => number {
  let state = (seed ^ 0x9e3779b9) >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** A generator of N(0,1) numbers (Box and Muller, both of each pair). */
export function normals(seed: number): () => number {
  const uniform = uniforms(seed);
  let spare = NaN;
  return () => {
    if (!Number.isNaN(spare)) {
      const value = spare;
      spare = NaN;
      return value;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    const angle = 2 * Math.PI * uniform();
    spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  };
}

export function gaussianArray(length: number, seed: number): Float32Array {
  const next = normals(seed);
  const array = new Float32Array(length);
  for (let i = 0; i < length; ++i) array[i] = next();
  return array;
}
