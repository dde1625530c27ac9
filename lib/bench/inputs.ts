/** The inputs of a case: three tensors of a safetensors file, whoever wrote it. */
import { SafetensorsError, SafetensorsFile } from '../safetensors';
import type { Tensors } from './distributions';
import type { Problem } from './record';
import { UsageError } from './usage';

/** Where the tensors of a problem are. */
export interface InputFile {
  readonly path: string;
  /** Names of the query, key and value in it. */
  readonly names: readonly [query: string, key: string, value: string];
}

export interface Inputs extends Tensors {
  readonly problem: Problem;
}

/** (B,H,N,D) of a tensor of rank 4; missing leading axes are 1. */
function axesOf(path: string, name: string, shape: readonly number[]): number[] {
  if (shape.length < 2 || shape.length > 4) {
    const expected = '[batch, heads, length, dim], [heads, length, dim] or [length, dim]';
    throw new UsageError(
      `${path}: tensor "${name}" has shape [${shape.join(',')}], expected ${expected}`,
    );
  }
  return [...Array<number>(4 - shape.length).fill(1), ...shape];
}

function readShapes(file: SafetensorsFile, { path, names }: InputFile): number[][] {
  return names.map((name) => {
    const info = file.tensors.get(name);
    if (info === undefined) {
      const known = Array.from(file.tensors.keys()).slice(0, 6).join(', ') || 'none';
      throw new UsageError(`${path}: no tensor "${name}"; there are: ${known}`);
    }
    if (!['F32', 'F16', 'BF16'].includes(info.dtype)) {
      throw new UsageError(`${path}: tensor "${name}" is ${info.dtype}, expected F32, F16 or BF16`);
    }
    return axesOf(path, name, info.shape);
  });
}

/** Runs `use` on an open file; every fault of the file becomes one line for the user. */
function withFile<T>(input: InputFile, use: (file: SafetensorsFile) => T): T {
  let file: SafetensorsFile | undefined;
  try {
    file = new SafetensorsFile(input.path);
    return use(file);
  } catch (error) {
    if (error instanceof SafetensorsError) throw new UsageError(error.message);
    if ((error as NodeJS.ErrnoException).syscall !== undefined) {
      throw new UsageError(`cannot read ${input.path}: ${(error as Error).message}`);
    }
    throw error;
  } finally {
    file?.close();
  }
}

const fits = (actual: readonly number[], expected: readonly number[]): boolean =>
  actual.every((size, axis) => size === expected[axis]);

function problemIn(file: SafetensorsFile, input: InputFile): Problem {
  const [query, key, value] = readShapes(file, input) as [number[], number[], number[]];
  const shapes = [query, key, value].map((shape) => `[${shape.join(',')}]`).join(', ');
  const [batch, heads, queryLength, headDim] = query as [number, number, number, number];
  const [, , keyLength, valueDim] = value as [number, number, number, number];
  if (
    !fits(key, [batch, heads, keyLength, headDim]) ||
    !fits(value, [batch, heads, keyLength, valueDim])
  ) {
    throw new UsageError(
      `${input.path}: query, key and value of shapes ${shapes} do not fit each other`,
    );
  }
  const problem = { batch, heads, queryLength, keyLength, headDim, valueDim };
  if (Object.values(problem).includes(0)) {
    throw new UsageError(`${input.path}: query, key and value of shapes ${shapes} hold nothing`);
  }
  return problem;
}

/** The sizes that a file asks for, after a check of names, dtypes and shapes. */
export function inspectInputs(input: InputFile): Problem {
  return withFile(input, (file) => problemIn(file, input));
}

/** @throws UsageError also for a NaN or an infinity */
export function loadInputs(input: InputFile): Inputs {
  return withFile(input, (file) => {
    const problem = problemIn(file, input);
    const [query, key, value] = input.names.map((name) => {
      const tensor = file.read(name);
      const bad = tensor.findIndex((x) => !Number.isFinite(x));
      if (bad >= 0) {
        throw new UsageError(`${input.path}: tensor "${name}" holds ${tensor[bad]} at ${bad}`);
      }
      return tensor;
    }) as [Float32Array, Float32Array, Float32Array];
    return { problem, query, key, value };
  });
}

/** Nearest bfloat16, ties to even. */
function roundToBfloat16(source: Float32Array): Float32Array {
  const rounded = new Float32Array(source);
  const bits = new Uint32Array(rounded.buffer);
  for (let i = 0; i < bits.length; ++i) {
    const word = bits[i]!;
    bits[i] = (word + 0x7fff + ((word >>> 16) & 1)) & 0xffff0000;
  }
  return rounded;
}

/** The operands of `precision: 'bfloat16'`. */
export function roundInputs({ problem, query, key, value }: Inputs): Inputs {
  return {
    problem,
    query: roundToBfloat16(query),
    key: roundToBfloat16(key),
    value: roundToBfloat16(value),
  };
}
