/**
 * Reads and writes safetensors files: 8 bytes with the length of a header, the header in JSON
 * (name → dtype, shape, data_offsets), and the tensors, dense and little-endian. Nothing in a file
 * is believed: sizes are checked before anything is allocated or read, and a file that is refused
 * gives a {@link SafetensorsError} with one line that says what is wrong.
 */
import { closeSync, fstatSync, openSync, readSync, statSync } from 'node:fs';
import { endianness } from 'node:os';
import { types } from 'node:util';
import { invalidType, kindOfObject } from './errors';
import * as intrinsics from './intrinsics';
import { replaceFile, writeAll } from './replace-file';

/** What a file says about one of its tensors. */
export interface TensorInfo {
  /** 'F32', 'F16', 'BF16' can be read; others are listed only. */
  readonly dtype: string;
  readonly shape: readonly number[];
}

/** A tensor in memory: dense, row-major. */
export interface Tensor {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

/** A file that is no safetensors file, or not the one that was expected. */
export class SafetensorsError extends Error {
  readonly code = 'ERR_INVALID_FILE';
  readonly path: string;

  constructor(path: string, problem: string, options?: { cause?: unknown }) {
    super(`${path}: ${problem}`, options);
    this.name = 'SafetensorsError';
    this.path = path;
  }
}

/** Bytes of one element. */
const ELEMENT_SIZES: ReadonlyMap<string, number> = new Map([
  ['BOOL', 1],
  ['U8', 1],
  ['I8', 1],
  ['F8_E4M3', 1],
  ['F8_E5M2', 1],
  ['U16', 2],
  ['I16', 2],
  ['F16', 2],
  ['BF16', 2],
  ['U32', 4],
  ['I32', 4],
  ['F32', 4],
  ['U64', 8],
  ['I64', 8],
  ['F64', 8],
]);

/** As in the reference implementation: a longer header is an attack, not a model. */
const MAXIMUM_HEADER = 100_000_000;
const MAXIMUM_RANK = 32;
const READ_LIMIT = 1 << 26;
const CHUNK_ELEMENTS = 1 << 18;

interface Extent extends TensorInfo {
  readonly begin: number;
  readonly end: number;
}

interface Header {
  readonly tensors: Map<string, Extent>;
  readonly metadata: Map<string, string>;
}

// ---- header -----------------------------------------------------------------------------------

type Fields = Readonly<Record<string, unknown>>;

function isObject(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

const isSize = (value: unknown): value is number =>
  Number.isSafeInteger(value) && (value as number) >= 0;

/** Tensor names come from the file: they are shown short and without control characters. */
const quote = (name: string) => JSON.stringify(name.length > 60 ? `${name.slice(0, 60)}…` : name);

function parseExtent(entry: unknown, dataBytes: number): Extent | string {
  if (!isObject(entry)) return 'must be an object';
  const { dtype, shape, data_offsets: offsets } = entry;
  const size = typeof dtype === 'string' ? ELEMENT_SIZES.get(dtype) : undefined;
  if (size === undefined) return 'has an unknown dtype';
  if (!Array.isArray(shape) || shape.length > MAXIMUM_RANK || !shape.every(isSize)) {
    return 'has no valid shape';
  }
  const bytes = shape.reduce<number>((product, axis) => product * (axis as number), size);
  if (!Number.isSafeInteger(bytes)) return 'is too large';
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize)) {
    return 'has no valid data_offsets';
  }
  const [begin, end] = offsets as [number, number];
  if (end > dataBytes) {
    return `ends at byte ${end} of ${dataBytes}: the file is truncated, or the header wrong`;
  }
  if (end - begin !== bytes) {
    return `takes ${end - begin} bytes, but ${dtype as string} of shape [${shape.join(',')}] needs ${bytes}`;
  }
  return { dtype: dtype as string, shape: Object.freeze(shape as number[]), begin, end };
}

const METADATA_PROBLEM = '__metadata__ must map to texts';

function parseMetadata(entry: unknown): Map<string, string> | undefined {
  if (!isObject(entry)) return undefined;
  const pairs = Object.entries(entry);
  if (!pairs.every(([, value]) => typeof value === 'string')) return undefined;
  return new Map(pairs as [string, string][]);
}

/** The tensors must lie one after the other and fill the file: no hole can hide anything. */
function checkCoverage(path: string, tensors: Map<string, Extent>, dataBytes: number): void {
  const extents = Array.from(tensors).toSorted(
    ([, a], [, b]) => a.begin - b.begin || a.end - b.end,
  );
  let position = 0;
  for (const [name, { begin, end }] of extents) {
    if (begin !== position) {
      const fault = begin < position ? 'overlaps another' : 'leaves a hole before it';
      throw new SafetensorsError(path, `tensor ${quote(name)} ${fault}`);
    }
    position = end;
  }
  if (position !== dataBytes) {
    throw new SafetensorsError(path, `${dataBytes - position} bytes belong to no tensor`);
  }
}

function parseHeader(path: string, text: string, dataBytes: number): Header {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (cause) {
    throw new SafetensorsError(path, 'no safetensors file: its header is not JSON', { cause });
  }
  if (!isObject(parsed)) throw new SafetensorsError(path, 'the header must be a JSON object');
  const tensors = new Map<string, Extent>();
  let metadata = new Map<string, string>();
  for (const [name, entry] of Object.entries(parsed)) {
    if (name === '__metadata__') {
      const pairs = parseMetadata(entry);
      if (pairs === undefined) throw new SafetensorsError(path, METADATA_PROBLEM);
      metadata = pairs;
      continue;
    }
    const extent = parseExtent(entry, dataBytes);
    if (typeof extent === 'string') {
      throw new SafetensorsError(path, `tensor ${quote(name)} ${extent}`);
    }
    tensors.set(name, extent);
  }
  checkCoverage(path, tensors, dataBytes);
  return { tensors, metadata };
}

// ---- reading ----------------------------------------------------------------------------------

/** Fills `bytes` from `position` of the file. */
function readExactly(path: string, file: number, bytes: Uint8Array, position: number): void {
  let filled = 0;
  while (filled < bytes.length) {
    const length = Math.min(bytes.length - filled, READ_LIMIT);
    const read = readSync(file, bytes, filled, length, position + filled);
    if (read === 0) throw new SafetensorsError(path, 'the file became shorter while it was read');
    filled += read;
  }
}

function readHeader(path: string, file: number): Header & { start: number } {
  const size = fstatSync(file).size;
  if (size < 8) {
    throw new SafetensorsError(path, `no safetensors file: ${size} bytes are too few for a header`);
  }
  const prefix = new Uint8Array(8);
  readExactly(path, file, prefix, 0);
  const length = new DataView(prefix.buffer).getBigUint64(0, true);
  if (length > BigInt(Math.min(size - 8, MAXIMUM_HEADER))) {
    const problem = `no safetensors file, or truncated: a header of ${length} bytes in a file of ${size}`;
    throw new SafetensorsError(path, problem);
  }
  const start = 8 + Number(length);
  const bytes = new Uint8Array(Number(length));
  readExactly(path, file, bytes, 8);
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw new SafetensorsError(path, 'no safetensors file: its header is not UTF-8', { cause });
  }
  return { ...parseHeader(path, text, size - start), start };
}

/** A half-precision number with these bits. */
function halfToFloat(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** The floats that each 16-bit pattern of a dtype stands for. */
function widen(dtype: string, source: DataView, target: Float32Array): void {
  if (dtype === 'F16') {
    for (let i = 0; i < target.length; ++i) target[i] = halfToFloat(source.getUint16(2 * i, true));
    return;
  }
  const bits = new Uint32Array(target.buffer, target.byteOffset, target.length);
  for (let i = 0; i < bits.length; ++i) bits[i] = source.getUint16(2 * i, true) << 16;
}

function newFloats(path: string, name: string, count: number): Float32Array {
  try {
    return new Float32Array(count);
  } catch (cause) {
    const problem = `tensor ${quote(name)} of ${count} elements does not fit in memory`;
    throw new SafetensorsError(path, problem, { cause });
  }
}

/** An open file. Its header has been read and checked; tensors are read one by one. */
export class SafetensorsFile {
  readonly path: string;
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  readonly metadata: ReadonlyMap<string, string>;
  readonly #file: number;
  readonly #start: number;
  #open = true;

  /** @throws SafetensorsError when it is no valid file; the system's error when it cannot be read */
  constructor(path: string) {
    // Before opening: to open a pipe would wait for its writer.
    if (!statSync(path).isFile()) throw new SafetensorsError(path, 'not a regular file');
    this.path = path;
    this.#file = openSync(path, 'r');
    try {
      const { tensors, metadata, start } = readHeader(path, this.#file);
      this.tensors = tensors;
      this.metadata = metadata;
      this.#start = start;
    } catch (error) {
      closeSync(this.#file);
      throw error;
    }
  }

  /** The elements of a tensor of dtype F32, F16 or BF16, as float32. */
  read(name: string): Float32Array {
    if (!this.#open) throw new SafetensorsError(this.path, 'the file is closed');
    const extent = this.tensors.get(name) as Extent | undefined;
    if (extent === undefined) throw new SafetensorsError(this.path, `no tensor ${quote(name)}`);
    const { dtype, begin, end } = extent;
    const size = { F32: 4, F16: 2, BF16: 2 }[dtype];
    if (size === undefined) {
      const problem = `tensor ${quote(name)} is ${dtype}: expected F32, F16 or BF16`;
      throw new SafetensorsError(this.path, problem);
    }
    const data = newFloats(this.path, name, (end - begin) / size);
    if (size === 4) this.#readWords(data, begin);
    else this.#readHalves(dtype, data, begin);
    return data;
  }

  #readWords(data: Float32Array, begin: number): void {
    const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
    readExactly(this.path, this.#file, bytes, this.#start + begin);
    if (endianness() === 'BE') bytes.swap32();
  }

  #readHalves(dtype: string, data: Float32Array, begin: number): void {
    const chunk = new Uint8Array(2 * Math.min(CHUNK_ELEMENTS, data.length));
    for (let first = 0; first < data.length; first += CHUNK_ELEMENTS) {
      const part = data.subarray(first, first + CHUNK_ELEMENTS);
      const bytes = chunk.subarray(0, 2 * part.length);
      readExactly(this.path, this.#file, bytes, this.#start + begin + 2 * first);
      widen(dtype, new DataView(chunk.buffer), part);
    }
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    closeSync(this.#file);
  }
}

/** All tensors of a file, as float32. */
export function readSafetensors(path: string): Map<string, Tensor> {
  const file = new SafetensorsFile(path);
  try {
    const names = Array.from(file.tensors.keys());
    return new Map(
      names.map((name) => [name, { shape: file.tensors.get(name)!.shape, data: file.read(name) }]),
    );
  } finally {
    file.close();
  }
}

// ---- writing ----------------------------------------------------------------------------------

/** Whether it looks like a tensor; its numbers may be wrong. */
function isTensor(value: unknown): value is Tensor {
  if (!isObject(value)) return false;
  const { shape } = value;
  return Array.isArray(shape) && shape.every((axis) => typeof axis === 'number');
}

function checkTensor(path: string, name: unknown, tensor: unknown): void {
  if (typeof name !== 'string') throw invalidType('tensors', 'tensors by name', name);
  if (!isTensor(tensor)) {
    throw invalidType(`tensors[${quote(name)}]`, 'an object with shape and data', tensor);
  }
  const { shape, data } = tensor;
  const elements = shape.reduce((product, axis) => product * axis, 1);
  const isFloats = intrinsics.kindOf(data) === 'Float32Array'; // of any realm
  if (!isFloats || !shape.every(isSize) || elements !== intrinsics.lengthOf(data)) {
    const problem = `tensor ${quote(name)} of shape [${shape.join(',')}] needs a Float32Array of ${elements} elements`;
    throw new SafetensorsError(path, problem);
  }
}

function headerOf(tensors: ReadonlyMap<string, Tensor>, metadata: Fields | undefined): Buffer {
  const entries: [string, unknown][] = metadata ? [['__metadata__', metadata]] : [];
  let offset = 0;
  for (const [name, { shape, data }] of tensors) {
    const end = offset + data.byteLength;
    entries.push([name, { dtype: 'F32', shape, data_offsets: [offset, end] }]);
    offset = end;
  }
  const text = Buffer.from(JSON.stringify(Object.fromEntries(entries)));
  const padded = Buffer.alloc(8 + Math.ceil(text.length / 8) * 8, ' '); // tensors stay aligned
  padded.writeBigUInt64LE(BigInt(padded.length - 8));
  text.copy(padded, 8);
  return padded;
}

/**
 * Writes tensors as F32. The file appears whole or not at all; a link stays and the file that it
 * names is replaced, a device or a pipe is written to as it is.
 * @throws SafetensorsError for a tensor whose data do not fit its shape, and for metadata that are
 * no texts; ERR_INVALID_ARG_TYPE for what are no tensors or no path
 */
export function writeSafetensors(
  path: string,
  tensors: ReadonlyMap<string, Tensor> | Readonly<Record<string, Tensor>>,
  metadata?: Readonly<Record<string, string>>,
): void {
  if (typeof path !== 'string') throw invalidType('path', 'a string', path);
  const isMap = types.isMap(tensors); // of any realm
  if (!isMap && (!isObject(tensors) || kindOfObject(tensors) !== undefined)) {
    throw invalidType('tensors', 'a Map or an object of tensors', tensors);
  }
  const all = isMap ? (tensors as Map<string, Tensor>) : new Map(Object.entries(tensors));
  if (all.has('__metadata__')) throw new SafetensorsError(path, '__metadata__ names no tensor');
  for (const [name, tensor] of all) checkTensor(path, name, tensor);
  if (metadata && !parseMetadata(metadata)) throw new SafetensorsError(path, METADATA_PROBLEM);
  replaceFile(path, (file) => {
    writeAll(file, headerOf(all, metadata));
    for (const { data } of all.values()) {
      const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
      writeAll(file, endianness() === 'BE' ? Buffer.from(bytes).swap32() : bytes);
    }
  });
}
