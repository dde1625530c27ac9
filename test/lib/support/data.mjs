// Reproducible inputs. The generator is not the package's: tests must not lean on what they test.

/** Uniform numbers in [0,1): the "mulberry32" generator. */
export function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Normal numbers with the given standard deviation and mean. */
export function normals(length, seed, deviation = 1, mean = 0) {
  const uniform = generator(seed);
  return Float32Array.from({ length }, () => {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    return mean + deviation * radius * Math.cos(2 * Math.PI * uniform());
  });
}

/** Whole numbers in [low, high] as floats: sums and products of few of them are exact. */
export function integers(length, seed, low = -3, high = 3) {
  const uniform = generator(seed);
  return Float32Array.from({ length }, () => low + Math.floor(uniform() * (high - low + 1)));
}

/** Whole numbers in [low, high] as an Int32Array. */
export function indices(length, seed, low, high) {
  return Int32Array.from(integers(length, seed, low, high));
}

/** Random 64-bit words. */
export function words(length, seed, bits = 64) {
  const uniform = generator(seed);
  const word = () => BigInt(Math.floor(uniform() * 2 ** 32));
  return BigUint64Array.from({ length }, () => BigInt.asUintN(bits, (word() << 32n) | word()));
}

/** A random permutation of 0…length−1. */
export function permutation(length, seed) {
  const uniform = generator(seed);
  const order = Array.from({ length }, (_, index) => index);
  for (let last = length - 1; last > 0; --last) {
    const other = Math.floor(uniform() * (last + 1));
    [order[last], order[other]] = [order[other], order[last]];
  }
  return order;
}

/** query, key, value of one shape. Deviation and mean go to query and key. */
export function attentionInputs(shape, seed, draw = normals) {
  const { batch, heads, queryLength, headDim } = shape;
  const { keyLength = queryLength, valueDim = headDim } = shape;
  return {
    query: draw(batch * heads * queryLength * headDim, seed),
    key: draw(batch * heads * keyLength * headDim, seed + 1),
    value: draw(batch * heads * keyLength * valueDim, seed + 2),
  };
}

/**
 * A BHLD array in BLHD order, or, since the two differ by a swap of their middle axes, back:
 * swapAxes(array, batch, heads, rows, columns) reads (batch,heads,rows,columns).
 */
export function swapAxes(array, batch, first, second, columns) {
  const swapped = new array.constructor(array.length);
  for (let b = 0; b < batch; ++b) {
    for (let i = 0; i < first; ++i) {
      for (let j = 0; j < second; ++j) {
        const from = ((b * first + i) * second + j) * columns;
        const to = ((b * second + j) * first + i) * columns;
        swapped.set(array.subarray(from, from + columns), to);
      }
    }
  }
  return swapped;
}

/** The same contents as a view at an odd offset of a larger buffer full of NaN. */
export function oddView(array) {
  const padding = array instanceof Float32Array ? NaN : array instanceof BigUint64Array ? -1n : -7;
  const large = new array.constructor(array.length + 12);
  if (padding !== -1n) large.fill(padding);
  large.set(array, 5);
  return large.subarray(5, 5 + array.length);
}

/** A float rounded to bfloat16, nearest, ties to even. */
export function roundToBfloat16(array) {
  const rounded = Float32Array.from(array);
  const bits = new Uint32Array(rounded.buffer);
  for (let i = 0; i < bits.length; ++i) {
    bits[i] = (bits[i] + 0x7fff + ((bits[i] >>> 16) & 1)) & 0xffff0000;
  }
  return rounded;
}

/** The options without some of them. */
export function omit(options, ...names) {
  return Object.fromEntries(Object.entries(options).filter(([name]) => !names.includes(name)));
}
