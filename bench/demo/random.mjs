// Seeded random numbers for the demo: the same noise and the same test picture in every run.

/** Uniform in [0,1): a Weyl sequence through a 32-bit mixer. */
export function createRandom(seed) {
  let state = (Math.imul(seed, 0x9e3779b1) ^ 0x243f6a88) >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let mixed = state;
    mixed = Math.imul(mixed ^ (mixed >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    return ((mixed ^ (mixed >>> 15)) >>> 0) / 2 ** 32;
  };
}

/** Normal with mean 0 and deviation 1, by the Box-Muller transform. */
export function createNormal(seed) {
  const random = createRandom(seed);
  return () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}
