/** The weights of a model, their gradients, and the optimiser that brings the two together. */
import type { Random } from './random';

export interface Parameter {
  readonly shape: readonly number[];
  readonly value: Float32Array;
  /** Summed up by the layers; the optimiser sets it back to zero. */
  readonly gradient: Float32Array;
  /** Whether weight decay applies: to matrices, not to biases and scales. */
  readonly decays: boolean;
}

/** `count` rows of a parameter from row `first` on, in the same memory. */
export function rowsOf(parameter: Parameter, first: number, count: number): Parameter {
  const { shape, value, gradient } = parameter;
  const width = value.length / shape[0]!;
  const [begin, end] = [first * width, (first + count) * width];
  return {
    ...parameter,
    shape: [count, ...shape.slice(1)],
    value: value.subarray(begin, end),
    gradient: gradient.subarray(begin, end),
  };
}

export class Parameters {
  readonly all = new Map<string, Parameter>();
  readonly #random: Random;

  constructor(random: Random) {
    this.#random = random;
  }

  /** A parameter drawn from N(0, deviation²). */
  normal(name: string, shape: readonly number[], deviation: number): Parameter {
    const parameter = this.#add(name, shape, true);
    for (let i = 0; i < parameter.value.length; ++i) {
      parameter.value[i] = deviation * this.#random.normal();
    }
    return parameter;
  }

  /** The weight (outputs,inputs) of a linear layer. */
  weight(name: string, outputs: number, inputs: number): Parameter {
    return this.normal(name, [outputs, inputs], Math.sqrt(1 / inputs));
  }

  /** A vector that starts at one value. */
  vector(name: string, length: number, value: number): Parameter {
    const parameter = this.#add(name, [length], false);
    parameter.value.fill(value);
    return parameter;
  }

  get count(): number {
    let count = 0;
    for (const { value } of this.all.values()) count += value.length;
    return count;
  }

  #add(name: string, shape: readonly number[], decays: boolean): Parameter {
    if (this.all.has(name)) throw new Error(`two parameters are called ${name}`);
    const length = shape.reduce((product, size) => product * size, 1);
    const gradient = new Float32Array(length);
    const parameter = { shape, value: new Float32Array(length), gradient, decays };
    this.all.set(name, parameter);
    return parameter;
  }
}

const FIRST_DECAY = 0.9;
const SECOND_DECAY = 0.98;
const EPSILON = 1e-8;
const WEIGHT_DECAY = 0.01;
const LARGEST_NORM = 1;

/** AdamW (Loshchilov, Hutter 2019) with the norm of all gradients clipped at 1. */
export class AdamW {
  /** Updates made so far. */
  step = 0;
  readonly moments: ReadonlyMap<string, { first: Float32Array; second: Float32Array }>;
  readonly #parameters: Parameters;

  constructor(parameters: Parameters) {
    this.#parameters = parameters;
    this.moments = new Map(
      Array.from(parameters.all, ([name, { value }]) => [
        name,
        { first: new Float32Array(value.length), second: new Float32Array(value.length) },
      ]),
    );
  }

  update(learningRate: number): void {
    ++this.step;
    const clip = Math.min(1, LARGEST_NORM / this.#gradientNorm());
    const firstBias = 1 - FIRST_DECAY ** this.step;
    const secondBias = 1 - SECOND_DECAY ** this.step;
    for (const [name, { value, gradient, decays }] of this.#parameters.all) {
      const { first, second } = this.moments.get(name)!;
      const keep = decays ? 1 - learningRate * WEIGHT_DECAY : 1;
      for (let i = 0; i < value.length; ++i) {
        const g = gradient[i]! * clip;
        first[i] = FIRST_DECAY * first[i]! + (1 - FIRST_DECAY) * g;
        second[i] = SECOND_DECAY * second[i]! + (1 - SECOND_DECAY) * g * g;
        const scaled = first[i]! / firstBias / (Math.sqrt(second[i]! / secondBias) + EPSILON);
        value[i] = keep * value[i]! - learningRate * scaled;
      }
      gradient.fill(0);
    }
  }

  #gradientNorm(): number {
    let sum = 0;
    for (const { gradient } of this.#parameters.all.values()) {
      for (let i = 0; i < gradient.length; ++i) sum += gradient[i]! * gradient[i]!;
    }
    return Math.sqrt(sum);
  }
}
