/** Typed arrays by their dimensions: how many elements, new ones, and those of the caller. */
import { invalidType, outOfMemory, shapeMismatch, tooLarge } from './errors';
import * as intrinsics from './intrinsics';
import type { TypedArray, TypedArrayKind, TypedArrays } from './intrinsics';

/** The dimensions of an array, in order, with their names. */
export type Axes = Readonly<Record<string, number>>;

/** Number of elements of an array with these dimensions. */
export function elementCount(argument: string, axes: Axes): number {
  let count = 1;
  let bound = 1; // zeros counted as ones: strides inside an empty batch must not overflow either
  for (const name of Object.keys(axes)) {
    const size = axes[name]!;
    count *= size;
    bound *= size > 0 ? size : 1;
  }
  if (bound > Number.MAX_SAFE_INTEGER) {
    throw tooLarge(argument, shapeText(axes));
  }
  return count;
}

function shapeText(axes: Axes): string {
  return `(${Object.keys(axes).join(', ')}) = (${Object.values(axes).join(', ')})`;
}

/** A new array of zeros. */
export function allocate<Kind extends TypedArrayKind>(
  kind: Kind,
  argument: string,
  axes: Axes,
): TypedArrays[Kind] {
  const count = elementCount(argument, axes);
  try {
    return intrinsics.create(kind, count);
  } catch {
    throw outOfMemory(`${argument}: a ${kind} of ${count} elements`);
  }
}

/** A copy that nobody else has; of shared memory, of as many elements as it had when asked. */
export function copyOf(
  argument: string,
  kind: TypedArrayKind,
  array: TypedArray,
  axes: Axes = { length: intrinsics.lengthOf(array) },
): TypedArray {
  const copy = allocate(kind, `a copy of ${argument}`, axes);
  intrinsics.copyInto(copy, intrinsics.fixedView(array, kind, intrinsics.lengthOf(copy)));
  return copy;
}

/** `value` when it is a typed array of this kind and these dimensions. */
export function checkedArray(
  argument: string,
  kind: TypedArrayKind,
  value: unknown,
  axes: Axes,
): TypedArray {
  const count = elementCount(argument, axes);
  const received = intrinsics.kindOf(value);
  const matches =
    received === kind &&
    intrinsics.lengthOf(value) === count &&
    (count > 0 || !intrinsics.isDetached(value as TypedArray));
  if (matches) return value as TypedArray;

  const article = kind === 'Int32Array' ? 'an' : 'a';
  const expected = `${article} ${kind} of ${count} elements, ${shapeText(axes)}`;
  if (received !== kind) throw invalidType(argument, expected, value);
  if (intrinsics.isDetached(value as TypedArray)) {
    throw shapeMismatch(argument, expected, `a detached ${kind}`);
  }
  throw shapeMismatch(argument, expected, `${intrinsics.lengthOf(value)} elements`);
}
