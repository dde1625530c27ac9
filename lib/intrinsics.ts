/**
 * What typed arrays really are, whatever their owner has done to them: the getters of
 * %TypedArray%.prototype look at internal slots, so subclasses, Proxies and own properties named
 * `length` cannot mislead them. They are captured when the package is loaded, and so later changes
 * to the prototypes do not matter either.
 */
import { types } from 'node:util';

export type TypedArray = Float32Array | Float64Array | Int32Array | BigUint64Array;
export type TypedArrayKind = 'Float32Array' | 'Float64Array' | 'Int32Array' | 'BigUint64Array';

const prototype = Object.getPrototypeOf(Int8Array.prototype) as object;
const { call } = Function.prototype;

/** A getter of a prototype as a function of the object. */
export function getterOf<Result>(owner: object, name: string | symbol): (from: unknown) => Result {
  const { get } = Object.getOwnPropertyDescriptor(owner, name)!;
  return call.bind(get as never) as unknown as (from: unknown) => Result;
}

/** A method of a prototype as a function of the object. */
export function methodOf<Method>(owner: object, name: string): Method {
  // Not its descriptor: with --frozen-intrinsics a getter stands in the place of a method.
  const method = (owner as Readonly<Record<string, unknown>>)[name];
  return call.bind(method as never) as Method;
}

/** 'Float32Array' and so on; undefined for everything that is not a typed array. */
export const kindOf = getterOf<string | undefined>(prototype, Symbol.toStringTag);
/** Number of elements; 0 when the memory is detached. */
export const lengthOf = getterOf<number>(prototype, 'length');
const byteOffsetOf = getterOf<number>(prototype, 'byteOffset');
const byteLengthOf = getterOf<number>(prototype, 'byteLength');
const bufferOf = getterOf<ArrayBufferLike>(prototype, 'buffer');
export const copyInto = methodOf<(target: TypedArray, source: TypedArray) => void>(
  prototype,
  'set',
);

const { isSharedArrayBuffer } = types;
const constructors = { Float32Array, Float64Array, Int32Array, BigUint64Array };
const BytesOf = Uint8Array;
const WordsOf = Uint32Array;

export function isShared(array: TypedArray): boolean {
  return isSharedArrayBuffer(bufferOf(array));
}

/** True when the memory was transferred away. */
export function isDetached(array: TypedArray): boolean {
  if (lengthOf(array) !== 0) return false;
  try {
    // The one thing that a detached buffer refuses in every version of Node.
    return new BytesOf(bufferOf(array)).length < 0;
  } catch {
    return true;
  }
}

/** True when the two views have a byte in common. */
export function overlap(a: TypedArray, b: TypedArray): boolean {
  if (bufferOf(a) !== bufferOf(b)) return false;
  const beginA = byteOffsetOf(a);
  const beginB = byteOffsetOf(b);
  return beginA < beginB + byteLengthOf(b) && beginB < beginA + byteLengthOf(a);
}

/** The first elements of an array, as many even if another thread lets the memory grow. */
export function fixedView(array: TypedArray, kind: TypedArrayKind, length: number): TypedArray {
  return new constructors[kind](bufferOf(array) as ArrayBuffer, byteOffsetOf(array), length);
}

/** The memory of an array as words of 32 bits: numbers, where the elements are bigints. */
export function wordsOf(array: TypedArray): Uint32Array {
  const buffer = bufferOf(array) as ArrayBuffer;
  return new WordsOf(buffer, byteOffsetOf(array), byteLengthOf(array) / 4);
}

export interface TypedArrays {
  Float32Array: Float32Array;
  Float64Array: Float64Array;
  Int32Array: Int32Array;
  BigUint64Array: BigUint64Array;
}

/** A new array of zeros; a RangeError of the language when the memory cannot be had. */
export function create<Kind extends TypedArrayKind>(kind: Kind, length: number): TypedArrays[Kind] {
  return new constructors[kind](length) as TypedArrays[Kind];
}
